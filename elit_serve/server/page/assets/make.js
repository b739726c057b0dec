// The views that make pictures: what is wished, what that would mean, the pictures, and what was done for them.

import { finishEarly } from "./api.js";
import { compare } from "./compare.js";
import { Controls } from "./controls.js";
import { drawn, NUM_PREVIEWS } from "./drawing.js";
import { ErrorPanel } from "./errors.js";
import { factsOf } from "./facts.js";
import { Forecast } from "./forecast.js";
import { History } from "./history.js";
import { fromLink, repeated } from "./requests.js";
import { SharePanel } from "./share.js";
import { Stage } from "./stage.js";
import { named, plural } from "./words.js";

const part = (id) => document.getElementById(id);

export class MakeView {
  #controls = new Controls(() => this.#foretell());
  #forecast = new Forecast((latencyMs) => this.#controls.setLatency(latencyMs));
  #error = new ErrorPanel(part("error"));
  #stage = new Stage();
  #share = new SharePanel();
  #history = new History((result) => this.#reopen(result));
  #model = null;
  #work = null; // an AbortController while something is made
  #requestId = null; // of what is being made, if it can be finished early
  #clock = null;

  constructor() {
    part("wishes").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    part("stop").addEventListener("click", () => this.#work?.abort());
    part("finish").addEventListener("click", () => this.#finishEarly());
  }

  /** Once it is known what is served. query: of a link, behind `?`; what it says is made. */
  async offer(model, query) {
    this.#model = model;
    this.#controls.offer(model);
    this.#error.clear();
    try {
      await this.#controls.measure();
    } catch (error) {
      return this.complain(error);
    }
    if (query) this.open(query);
  }

  /** view: `make` shows what one picture needs, `compare` what a comparison needs. */
  choose(view) {
    const compares = view === "compare";
    part("make-view").dataset.view = view;
    part("make-title").textContent = compares ? "Compare budgets" : "Make a picture";
    part("generate").textContent = compares ? "Compare" : "Generate";
  }

  /** Makes what a link says. */
  open(query) {
    try {
      const { wishes, modelHash } = fromLink(query, this.#model);
      this.#controls.fill(wishes);
      const isOther = modelHash !== null && modelHash !== this.#model.hash;
      const note = isOther ? " Its link is of another model, so it looks different." : "";
      if (this.#compares) this.#compare();
      else this.#generate({ ...wishes, seed: wishes.seed ?? this.#controls.wishes.seed }, { note });
    } catch (error) {
      this.complain(error);
    }
  }

  complain(error) {
    part("about").hidden = true;
    this.#error.show(error, {
      setLatency: (ms) => this.#controls.setLatency(ms),
      again: () => (this.#model ? part("wishes").requestSubmit() : location.reload()),
    });
  }

  /** What the form says, in the view that is shown. The address of a link that was followed says it no more. */
  #start() {
    if (!this.#model || this.#work) return;
    if (location.hash.includes("?")) history.replaceState(null, "", location.hash.replace(/\?.*/, ""));
    if (this.#compares) this.#compare();
    else this.#generate(this.#controls.wishes);
  }

  get #compares() {
    return part("make-view").dataset.view === "compare";
  }

  #foretell() {
    if (!this.#model) return;
    const { seed, ...wishes } = this.#controls.wishes;
    this.#forecast.ask(wishes, this.#model.latents);
  }

  /** original: a picture that is made again. note: what is to be said of it in the end. */
  async #generate(request, { original = null, note = "" } = {}) {
    if (!this.#model || this.#work) return;
    const count = request.n ?? 1;
    const name = (index) => `${named(request)}, seed ${request.seed + index}`;
    this.#begin(this.#forecast.latencyMs);
    if (part("outcome").contains(document.activeElement)) part("stop").focus(); // what has the focus goes away
    part("outcome").hidden = true;
    this.#stage.prepare(count);
    part("frame").scrollIntoView({ block: "nearest" }); // on a phone it lies below the form
    const onPreview = (index, src, number) => {
      this.#stage.show(index, src, `${name(index)}, preview ${number}`);
      part("status").textContent = `Preview ${number} of ${NUM_PREVIEWS}`;
      part("frame").dataset.preview = number;
    };
    const onTaken = (id) => {
      this.#requestId = id;
      part("finish").hidden = false;
    };
    try {
      const made = await drawn(request, { signal: this.#work.signal, onPreview, onTaken });
      const results = made.map((result) => ({ ...result, ...this.#scales }));
      for (const [index, { src }] of results.entries()) this.#stage.show(index, src, name(index));
      this.#finish(results, sameness(results[0], original) + note);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#end();
    }
  }

  /** Keeps what there is, made better by a few last steps. */
  async #finishEarly() {
    try {
      await finishEarly(this.#requestId);
      part("status").textContent = "Finishing it …";
    } catch (error) {
      if (error.code === "not_begun") part("status").textContent = "Nothing of it is there yet: it waits for its turn.";
      else if (error.code !== "request_not_found") this.complain(error); // that one has just ended
    }
  }

  async #finish(results, note) {
    const [{ facts, seed }] = results;
    const what = results.length > 1 ? `${plural(results.length, "picture")} from seed ${seed}` : `seed ${seed}`;
    const early = facts.finished_early ? ", finished early" : "";
    part("status").textContent = `Done: ${named(facts)}, ${what}${early}.${note}`;
    this.#stage.onChoice = (index) => this.#tell(results[index], index);
    this.#tell(results[0], 0);
    this.#foretell(); // the forecast is that of now
    await this.#history.add(results);
    this.#history.mark(results[0]);
  }

  /** What levels and qualities of this model are relative to, for `History.add`. */
  get #scales() {
    const { latents, quality } = this.#model;
    return { latents, fullPlan: quality?.full_plan ?? null };
  }

  /** Says what was done for a picture on the stage. */
  #tell(result, index) {
    this.#stage.choose(index);
    const again = () => this.#generate(repeated(result, result.latents), { original: result });
    part("facts").replaceChildren(...factsOf(result, result.latents, again));
    this.#share.offer(result, result.latents);
    part("outcome").hidden = false;
    this.#history.mark(result);
  }

  /** A picture of the history. */
  #reopen(result) {
    if (this.#work) return;
    const { src, seed, facts } = result;
    this.#error.clear();
    part("about").hidden = true;
    this.#stage.prepare(1);
    this.#stage.show(0, src, `${named(facts)}, seed ${seed}`);
    const isOther = facts.model_hash !== this.#model?.hash;
    part("status").textContent = `Made before: ${named(facts)}, seed ${seed}.${isOther ? " Another model made it." : ""}`;
    this.#tell(result, 0);
  }

  async #compare() {
    if (!this.#model || this.#work) return;
    this.#begin(null);
    part("status").textContent = "Making all budgets at once …";
    try {
      const results = await compare(this.#model, this.#controls.subject, this.#work.signal);
      part("status").textContent = "The comparison is complete.";
      await this.#history.add(results.map((result) => ({ ...result, ...this.#scales })));
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#end();
    }
  }

  #begin(expectedMs) {
    this.#work = new AbortController();
    this.#error.clear();
    part("about").hidden = true;
    this.#busy(true);
    part("status").textContent = "Making it …";
    const bar = part("course-bar");
    part("course").hidden = !expectedMs;
    const began = performance.now();
    this.#clock = setInterval(() => {
      const share = Math.min(1, (performance.now() - began) / (expectedMs || 1));
      bar.style.setProperty("--done", share);
    }, 100);
    bar.style.setProperty("--done", 0);
  }

  #end() {
    clearInterval(this.#clock);
    this.#work = null;
    part("course").hidden = true;
    if ([part("stop"), part("finish")].includes(document.activeElement)) part("generate").focus();
    part("finish").hidden = true;
    this.#busy(false);
  }

  #busy(isBusy) {
    part("generate").setAttribute("aria-disabled", String(isBusy));
    part("stop").hidden = !isBusy;
    this.#controls.isBusy = isBusy;
    part("frame").setAttribute("aria-busy", String(isBusy));
  }

  #fail(error) {
    part("status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") this.complain(error);
  }
}

function sameness(result, original) {
  if (!original) return "";
  return result.src === original.src
    ? " It is the same file, byte for byte."
    : " It was made anew at the same levels.";
}

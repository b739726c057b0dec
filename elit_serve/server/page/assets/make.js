// The view that makes pictures: what is wished, what that would mean, the picture, and what was done for it.

import { call } from "./api.js";
import { ClassPicker } from "./classes.js";
import { compare } from "./compare.js";
import { drawn, NUM_PREVIEWS } from "./drawing.js";
import { ErrorPanel } from "./errors.js";
import { factsOf } from "./facts.js";
import { Forecast } from "./forecast.js";
import { duration, percent } from "./words.js";

const MAX_SEED = 1e6; // of drawn seeds: short enough to be remembered
const SLIDER_TOP = 1000;
const part = (id) => document.getElementById(id);

export class MakeView {
  #picker = new ClassPicker();
  #forecast = new Forecast((latencyMs) => this.#setLatency(latencyMs));
  #error = new ErrorPanel(part("error"));
  #model = null;
  #range = { from: 100, to: 10_000 }; // of the slider, in milliseconds
  #latencyMs = 1000;
  #work = null; // an AbortController while something is made
  #clock = null;

  constructor() {
    part("seed").value = drawSeed();
    part("new-seed").addEventListener("click", () => (part("seed").value = drawSeed()));
    part("wishes").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#generate(this.#wishes());
    });
    part("compare").addEventListener("click", () => this.#compare());
    part("stop").addEventListener("click", () => this.#work?.abort());
    part("latency").addEventListener("input", () => this.#setLatency(this.#atSlider(), { moveSlider: false }));
    part("budget").addEventListener("input", () => this.#changed());
    for (const radio of document.querySelectorAll("[name=mode]")) {
      radio.addEventListener("change", () => this.#changed());
    }
  }

  /** Once it is known what is served. */
  async offer(model) {
    this.#model = model;
    this.#picker.offer(model.classes, Math.floor(Math.random() * model.classes.length));
    part("budget").max = model.levels.length - 1;
    part("budget").value = model.levels.findIndex(({ budget }) => budget >= 0.5);
    this.#error.clear();
    try {
      const plan = await call("v1/plan", { body: { label: this.#picker.id } });
      const needed = plan.alternatives.map((option) => option.min_latency_ms);
      this.#range = { from: 0.8 * Math.min(...needed), to: 2 * Math.max(...needed) };
      this.#setLatency(rounded(Math.sqrt(this.#range.from * this.#range.to)));
    } catch (error) {
      this.complain(error);
    }
  }

  complain(error) {
    part("about").hidden = true;
    this.#error.show(error, {
      setLatency: (ms) => this.#setLatency(ms),
      again: () => (this.#model ? part("wishes").requestSubmit() : location.reload()),
    });
  }

  get #mode() {
    return document.querySelector("[name=mode]:checked").value;
  }

  get #level() {
    return this.#model.levels[Number(part("budget").value)];
  }

  #cost() {
    if (this.#mode === "latency") return { latency_ms: this.#latencyMs };
    return this.#mode === "budget" ? { budget: this.#level.budget } : {};
  }

  #wishes() {
    return { prompt: String(this.#picker.id), seed: Number(part("seed").value), ...this.#cost() };
  }

  #atSlider() {
    const { from, to } = this.#range;
    return rounded(from * (to / from) ** (Number(part("latency").value) / SLIDER_TOP));
  }

  /** Choosing a target chooses to go by time. */
  #setLatency(latencyMs, { moveSlider = true } = {}) {
    const isNew = this.#latencyMs !== latencyMs;
    this.#latencyMs = latencyMs;
    const { from, to } = this.#range;
    if (moveSlider) part("latency").value = (SLIDER_TOP * Math.log(latencyMs / from)) / Math.log(to / from);
    if (isNew || this.#mode === "latency") this.#changed();
  }

  #changed() {
    part("latency-slide").hidden = this.#mode !== "latency";
    part("budget-slide").hidden = this.#mode !== "budget";
    part("auto-hint").hidden = this.#mode !== "auto";
    part("latency-value").textContent = duration(this.#latencyMs);
    part("latency").setAttribute("aria-valuetext", duration(this.#latencyMs));
    if (!this.#model) return;
    part("budget-value").textContent = percent(this.#level.budget);
    part("budget").setAttribute(
      "aria-valuetext",
      `${percent(this.#level.budget)}, level ${this.#level.level} of ${this.#model.latents}`,
    );
    this.#forecast.ask({ label: this.#picker.id, ...this.#cost() }, this.#model.latents);
  }

  async #generate(wishes, original = null) {
    if (!this.#model || this.#work) return;
    const label = this.#model.classes[Number(wishes.prompt)];
    this.#begin(this.#forecast.latencyMs);
    if (part("facts").contains(document.activeElement)) part("stop").focus(); // what has the focus goes away
    part("facts").hidden = true;
    delete part("frame").dataset.preview;
    part("frame").scrollIntoView({ block: "nearest" }); // on a phone it lies below the form
    const onPreview = (src, number) => {
      this.#show(src, `${label}, seed ${wishes.seed}, preview ${number}`);
      part("status").textContent = `Preview ${number} of ${NUM_PREVIEWS}`;
      part("frame").dataset.preview = number;
    };
    try {
      const result = await drawn(wishes, { signal: this.#work.signal, onPreview });
      this.#show(result.src, `${label}, seed ${result.seed}`);
      this.#tell(result, original);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#end();
    }
  }

  #tell(result, original) {
    const { facts } = result;
    part("status").textContent = `Done: ${facts.label}, seed ${result.seed}.${sameness(result, original)}`;
    const again = () => this.#generate(repeat(result), result);
    part("facts").replaceChildren(...factsOf(result, this.#model.latents, again));
    part("facts").hidden = false;
    part("frame").dataset.preview = "done";
    this.#changed(); // the forecast is that of now
  }

  async #compare() {
    if (!this.#model || this.#work) return;
    this.#begin(null);
    this.#clear();
    part("status").textContent = "Comparing budgets, one after the other.";
    const { prompt, seed } = this.#wishes();
    try {
      await compare(this.#model, { prompt, seed }, this.#work.signal);
      part("status").textContent = "The comparison is complete.";
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
    if (document.activeElement === part("stop")) part("generate").focus();
    this.#busy(false);
  }

  #busy(isBusy) {
    for (const id of ["generate", "compare"]) part(id).setAttribute("aria-disabled", String(isBusy));
    part("stop").hidden = !isBusy;
    part("frame").setAttribute("aria-busy", String(isBusy));
  }

  #fail(error) {
    part("status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") this.complain(error);
  }

  #show(src, alt) {
    Object.assign(part("picture"), { src, alt, hidden: false });
    part("empty").hidden = true;
  }

  /** Takes away the picture before and what was said of it. */
  #clear() {
    part("facts").hidden = true;
    part("picture").hidden = true;
    part("empty").hidden = false;
    delete part("frame").dataset.preview;
  }
}

const drawSeed = () => Math.floor(Math.random() * MAX_SEED);

/** Three digits are enough for a slider. */
const rounded = (ms) => Number(Math.max(1, ms).toPrecision(3));

/** The request that makes the same picture again. */
const repeat = ({ facts, seed, levels }) => ({
  prompt: String(facts.class_id),
  seed,
  levels,
  guidance: facts.guidance,
});

function sameness(result, original) {
  if (!original) return "";
  return result.file === original.file
    ? " It is the same file, byte for byte."
    : " It was made anew at the same levels.";
}

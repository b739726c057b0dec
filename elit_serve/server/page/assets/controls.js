// The form: what is wished of a picture, as the body of `/v1/generate`.

import { call } from "./api.js";
import { ClassPicker } from "./classes.js";
import { subjectOf } from "./requests.js";
import { duration, percent } from "./words.js";

const MAX_SEED = 1e6; // of drawn seeds: short enough to be remembered
const SLIDER_TOP = 1000;
const part = (id) => document.getElementById(id);

export class Controls {
  #picker = new ClassPicker();
  #model = null;
  #range = { from: 100, to: 10_000 }; // of the slider, in milliseconds
  #latencyMs = 1000;
  #changed;

  /** changed: called when something else is wished. */
  constructor(changed) {
    this.#changed = changed;
    part("seed").value = drawSeed();
    part("new-seed").addEventListener("click", () => (part("seed").value = drawSeed()));
    part("latency").addEventListener("input", () => this.setLatency(this.#atSlider(), { moveSlider: false }));
    for (const id of ["budget", "steps", "scale"]) part(id).addEventListener("input", () => this.show());
    for (const id of ["class", "size", "method", "prompt", "negative"]) part(id).addEventListener("change", () => this.show());
    part("more").addEventListener("invalid", () => (part("more").open = true), true); // or nobody sees what is wrong
    for (const radio of document.querySelectorAll("[name=mode], [name=count]")) {
      radio.addEventListener("change", () => this.show());
    }
  }

  /** Once it is known what is served. */
  offer(model) {
    this.#model = model;
    this.#offerSubject(model);
    part("budget").max = model.levels.length - 1;
    part("budget").value = model.levels.findIndex(({ budget }) => budget >= 0.5);
    const { steps, guidance } = model.sampling;
    part("steps").placeholder = `${steps}`;
    part("scale").placeholder = `${guidance.scale}`;
    part("method").options[0].textContent = `Recommended: ${METHODS[guidance.method]}`;
    const sizes = model.sizes ?? [];
    part("size-field").hidden = sizes.length < 2;
    part("size").replaceChildren(...sizes.map((size) => new Option(size.replace("x", " × "), size)));
  }

  /** Classes to choose from, or a prompt to write. */
  #offerSubject({ classes, prompts }) {
    part("class-field").hidden = part("class").disabled = Boolean(prompts);
    part("prompt-field").hidden = part("prompt").disabled = !prompts;
    part("negative-field").hidden = part("negative").disabled = !prompts?.negative;
    if (!prompts) return this.#picker.offer(this.#model, Math.floor(Math.random() * classes.length));
    part("prompt").value = prompts.examples[Math.floor(Math.random() * prompts.examples.length)];
  }

  /** Whether something is being made. */
  set isBusy(isBusy) {
    this.#picker.isBusy = isBusy;
  }

  /** Lets the slider range over all targets that make a difference. */
  async measure() {
    const plan = await call("v1/plan", { body: this.#of });
    const needed = plan.alternatives.map((option) => option.min_latency_ms);
    this.#range = { from: 0.8 * Math.min(...needed), to: 2 * Math.max(...needed) };
    this.setLatency(rounded(Math.sqrt(this.#range.from * this.#range.to)));
  }

  /** All that is wished. */
  get wishes() {
    const count = Number(checked("count"));
    return { ...this.subject, ...(count > 1 ? { n: count } : {}), ...this.#cost };
  }

  /** The same without what it may cost and how many there are. */
  get subject() {
    const size = part("size-field").hidden ? {} : { size: part("size").value };
    return { ...this.#of, seed: Number(part("seed").value), ...size, ...this.#plan };
  }

  /** Takes over what a link or a picture says, as far as the form can say it. */
  fill({ label, prompt, negative_prompt: negative = "", seed, n = 1, size, latency_ms: latencyMs, budget, steps, guidance = {} }) {
    if (this.#model.prompts) part("prompt").value = prompt;
    else this.#picker.choose(this.#model.classes.indexOf(label));
    part("negative").value = negative;
    if (seed !== undefined) part("seed").value = seed;
    check("count", String(n));
    if (size) part("size").value = size;
    part("steps").value = steps ?? "";
    part("method").value = guidance.method ?? "";
    part("scale").value = guidance.scale ?? "";
    part("more").open = Boolean(negative || (steps ?? guidance.method ?? guidance.scale));
    check("mode", latencyMs ? "latency" : budget ? "budget" : "auto");
    if (budget) part("budget").value = nearest(this.#model.levels, budget);
    if (latencyMs) this.setLatency(latencyMs);
    this.show();
  }

  /** Choosing a target chooses to go by time. */
  setLatency(latencyMs, { moveSlider = true } = {}) {
    const isNew = this.#latencyMs !== latencyMs;
    this.#latencyMs = latencyMs;
    const { from, to } = this.#range;
    if (moveSlider) part("latency").value = (SLIDER_TOP * Math.log(latencyMs / from)) / Math.log(to / from);
    if (isNew || checked("mode") === "latency") this.show();
  }

  /** Shows what its positions mean, and tells that they may have changed. */
  show() {
    const mode = checked("mode");
    part("latency-slide").hidden = mode !== "latency";
    part("budget-slide").hidden = mode !== "budget";
    part("auto-hint").hidden = mode !== "auto";
    part("latency-value").textContent = duration(this.#latencyMs);
    part("latency").setAttribute("aria-valuetext", duration(this.#latencyMs));
    if (!this.#model) return;
    const { level, budget } = this.#level;
    part("budget-value").textContent = percent(budget);
    part("budget").setAttribute("aria-valuetext", `${percent(budget)}, level ${level} of ${this.#model.latents}`);
    part("scale").disabled = part("method").value === "none";
    this.#changed();
  }

  /** What the pictures are of. */
  get #of() {
    if (!this.#model.prompts) return { label: this.#model.classes[this.#picker.id] };
    return subjectOf({ prompt: part("prompt").value, negative_prompt: part("negative").value });
  }

  get #level() {
    return this.#model.levels[Number(part("budget").value)];
  }

  get #cost() {
    const mode = checked("mode");
    if (mode === "latency") return { latency_ms: this.#latencyMs };
    return mode === "budget" ? { budget: this.#level.budget } : {};
  }

  /** Only what the model is not to decide by itself. */
  get #plan() {
    const { value: steps } = part("steps");
    const { value: method } = part("method");
    const { value: scale, disabled } = part("scale");
    const guidance = { ...(method && { method }), ...(scale && !disabled && { scale: Number(scale) }) };
    return { ...(steps && { steps: Number(steps) }), ...(Object.keys(guidance).length && { guidance }) };
  }

  #atSlider() {
    const { from, to } = this.#range;
    return rounded(from * (to / from) ** (Number(part("latency").value) / SLIDER_TOP));
  }
}

const METHODS = { none: "none", cfg: "CFG", ag: "autoguidance", ccfg: "CCFG" };

const drawSeed = () => Math.floor(Math.random() * MAX_SEED);

/** Three digits are enough for a slider. */
const rounded = (ms) => Number(Math.max(1, ms).toPrecision(3));

const checked = (name) => document.querySelector(`[name=${name}]:checked`).value;

function check(name, value) {
  const radio = document.querySelector(`[name=${name}][value="${value}"]`);
  if (radio) radio.checked = true;
}

function nearest(levels, budget) {
  const distances = levels.map((level) => Math.abs(level.budget - budget));
  return distances.indexOf(Math.min(...distances));
}

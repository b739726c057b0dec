// What a slider's position means: `/v1/plan`, asked a moment after the last change.

import { call } from "./api.js";
import { tradeoff } from "./charts.js";
import { comfortable, duration, explained, percent, quality, stepsText, total } from "./words.js";

const DEBOUNCE_MS = 150;
const part = (id) => document.getElementById(id);

export class Forecast {
  /** When the picture should be there, if it were asked for now; null is not known. */
  latencyMs = null;
  #timer = null;
  #asking = new AbortController();
  #setLatency;

  /** setLatency: what is to be done with a target that would work. */
  constructor(setLatency) {
    this.#setLatency = setLatency;
  }

  /** Only the last wishes are asked for, once they have stood for a moment; and again when a busy server said so. */
  ask(wishes, latents) {
    clearTimeout(this.#timer);
    this.#asking.abort();
    this.#asking = new AbortController();
    this.#askIn(DEBOUNCE_MS, wishes, latents, this.#asking.signal);
  }

  #askIn(ms, wishes, latents, signal) {
    this.#timer = setTimeout(() => this.#answer(wishes, latents, signal), ms);
  }

  async #answer(wishes, latents, signal) {
    try {
      const plan = await call("v1/plan", { body: wishes, signal });
      if (!signal.aborted) this.#show(plan, latents);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.latencyMs = null;
      const { title, text } = explained(error);
      part("forecast-text").replaceChildren(strong(`${title}. `), text);
      if (error.retryAfterS && !signal.aborted) this.#askIn(1000 * error.retryAfterS, wishes, latents, signal);
    }
  }

  #show(plan, latents) {
    this.latencyMs = plan.course?.latency_ms ?? null;
    if (plan.course) part("forecast-text").replaceChildren(...courseText(plan.course, latents));
    else this.#refuse(plan.refusal);
    const options = plan.alternatives.map((option) => pointOf(option, plan.latency_ms));
    const chosen = plan.course && { ms: plan.latency_ms ?? plan.course.latency_ms, quality: plan.course.quality };
    const isMeasured = options.length > 1 && [...options, ...(chosen ? [chosen] : [])].every((o) => o.quality !== null);
    part("tradeoff").hidden = !isMeasured;
    if (isMeasured) part("tradeoff").replaceChildren(tradeoff(options, chosen, plan.latency_ms), axes(plan.latency_ms));
  }

  #refuse(refusal) {
    const { min_latency_ms: minLatencyMs, retry_after_ms: retry } = refusal;
    const retryAfterS = retry && Math.ceil(retry / 1000);
    const { title, text } = explained({ code: refusal.reason, minLatencyMs, retryAfterS });
    const line = [strong(`${title}. `), text];
    if (minLatencyMs) {
      const ms = comfortable(minLatencyMs);
      const button = Object.assign(document.createElement("button"), {
        type: "button",
        textContent: `Use ${duration(ms)}`,
      });
      button.addEventListener("click", () => this.#setLatency(ms));
      line.push(" ", button);
    }
    part("forecast-text").replaceChildren(...line);
  }
}

/** With a target an option lies at the smallest one that it needs, as the target itself does; otherwise at its time. */
const pointOf = ({ latency_ms: ms, min_latency_ms: neededMs, quality: q, fits }, targetMs) => ({
  ms: targetMs ? neededMs : ms,
  quality: q,
  fits,
});

function courseText(course, latents) {
  const level = Number(course.level.toFixed(1));
  const run = Math.round(total(course.strides.map((of) => of.length)) / course.strides.length); // of each picture
  const steps = stepsText(run, course.steps, course.skips);
  const facts = [`${steps}${course.skips ? "," : ""} at level ${level} of ${latents} (${percent(course.budget)})`];
  if (course.quality !== null) facts.push(`expected quality ${quality(course.quality)}`);
  return ["Should take ", strong(duration(course.latency_ms)), ": ", facts.join(", "), "."];
}

function strong(text) {
  return Object.assign(document.createElement("strong"), { textContent: text });
}

function axes(targetMs) {
  const caption = document.createElement("figcaption");
  caption.textContent = targetMs
    ? "Quality over the target that it needs; the line is your target"
    : "Quality over time, of all that could be had";
  return caption;
}

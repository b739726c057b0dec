// What was done for a picture.

import { levelBars } from "./charts.js";
import { fileName, subjectOf } from "./requests.js";
import { duration, operations, percent, quality, stepsText, total } from "./words.js";

/** Nodes for a result of `History.add`. latents: the level at full budget. again: what makes the picture once more. */
export function factsOf(result, latents, again) {
  const { facts, levels, strides } = result;
  const level = mean(levels);
  const list = element("dl", { className: "facts" });
  list.append(
    fact("Time", duration(facts.total_ms), stages(facts)),
    fact("Budget", percent(level / latents), `mean level ${Number(level.toFixed(1))} of ${latents}`),
    fact("Quality", quality(facts.quality), qualityMeans(facts, result.fullPlan)),
    fact("Deadline", ...deadline(facts)),
    fact("Cost", duration(facts.device_ms), `of the device, ${operations(facts.gflops)}`),
  );
  const chart = element("figure", { className: "levels" });
  chart.append(
    levelBars({ levels, strides, steps: facts.steps, skips: facts.skips }, latents),
    element("figcaption", {
      textContent: `Level, of ${latents}, in ${stepsText(levels.length, facts.steps, facts.skips)}`,
    }),
  );
  const actions = element("div", { className: "actions" });
  actions.append(download(result), button("Make again", again));
  return [list, chart, actions];
}

export const mean = (values) => total(values) / values.length;

function qualityMeans({ quality: value }, fullPlan) {
  if (value === null) return "of these steps and this guidance";
  return fullPlan ? "1 is as good as the model's full plan" : "1 is as good as photographs";
}

function stages({ queue_ms: queue, compute_ms: compute, encode_ms: encode }) {
  return `${duration(queue)} waiting, ${duration(compute)} computing, ${duration(encode)} encoding`;
}

function deadline({ latency_ms: target, total_ms: total, deadline_met: met, promised }) {
  if (target === null) return ["None", "no target was asked for"];
  const rest = duration(Math.abs(target - total));
  const kind = promised ? `${duration(target)} promised` : `${duration(target)} wished`;
  return met ? ["Kept", `${kind}, ${rest} to spare`] : ["Missed", `${kind}, ${rest} late`];
}

function fact(name, value, detail) {
  const definition = element("dd", {});
  definition.append(element("strong", { textContent: value }), element("span", { textContent: detail }));
  const group = element("div", {});
  group.append(element("dt", { textContent: name }), definition);
  return group;
}

function download({ src, facts, seed }) {
  const name = fileName({ ...subjectOf(facts), seed }, facts.output_format);
  return element("a", { className: "button", href: src, download: name, textContent: "Download" });
}

function button(textContent, act) {
  const node = element("button", { type: "button", textContent });
  node.addEventListener("click", act);
  return node;
}

function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

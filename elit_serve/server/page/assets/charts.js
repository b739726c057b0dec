// Small drawings in SVG.

import { duration, quality, total } from "./words.js";

const NS = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, children = []) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/**
 * A bar for every step that has a level, as wide as its stride, in room for all `steps`; those that skip their cores are
 * pale. made: {levels, strides, steps, skips} of a picture.
 */
export function levelBars(made, latents) {
  const ground = svg("rect", { class: "ground", x: 0, y: 0, width: made.steps, height: latents });
  const frame = { class: "level-bars", viewBox: `0 0 ${made.steps} ${latents}`, preserveAspectRatio: "none", role: "img" };
  const chart = svg("svg", frame, [ground, svg("path", { class: "bars" }), svg("path", { class: "bars pale" })]);
  grow(chart, made, latents);
  return chart;
}

/** The same drawing with more steps done. */
export function grow(chart, made, latents) {
  const [computed, skipped] = barPaths(made, latents);
  chart.querySelector(".bars").setAttribute("d", computed);
  chart.querySelector(".pale").setAttribute("d", skipped);
  chart.setAttribute("aria-label", levelText(made));
}

function barPaths({ levels, strides, skips }, latents) {
  const paths = ["", ""];
  let at = 0;
  for (const [step, level] of levels.entries()) {
    const isSkipped = skips?.core.includes(step) ?? false;
    paths[Number(isSkipped)] += `M${at + 0.09} ${latents}V${latents - level}h${strides[step] - 0.18}V${latents}z`;
    at += strides[step];
  }
  return paths;
}

function levelText({ levels, strides, steps }) {
  if (!levels.length) return `no step of ${steps} yet`;
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const at = total(strides);
  const done = at < steps ? `${at} of ${steps} steps` : `${levels.length} steps`;
  return low === high ? `${done} at level ${low}` : `${done} at levels ${low} to ${high}`;
}

/** Values of the last minute as a line; null is a gap. */
export function sparkline(values, length, top) {
  const y = (value) => 20 - 18 * Math.min(1, value / (top || 1));
  let pen = "M";
  const points = values.map((value, index) => {
    if (value === null) {
      pen = "M";
      return "";
    }
    const point = `${pen}${length - values.length + index} ${y(value).toFixed(1)}`;
    pen = "L";
    return point;
  });
  return points.join("");
}

/** Quality over time or over the target, of what could be had and of what is chosen. options: [{ms, quality, fits}]. */
export function tradeoff(options, chosen, targetMs) {
  const all = chosen ? [...options, chosen] : options;
  const x = along(all.map(({ ms }) => ms).concat(targetMs ?? []), Math.log, 20, 300);
  const y = along(
    all.map(({ quality }) => quality),
    (value) => value,
    84,
    20,
  );
  const front = [...options].sort((a, b) => a.ms - b.ms);
  const points = front.map((option) => ({ ...option, x: x(option.ms), y: y(option.quality) }));
  const line = points.map((point, index) => `${index ? "L" : "M"}${point.x} ${point.y}`).join("");
  const marks = [svg("path", { class: "front", d: line })];
  if (targetMs) marks.unshift(svg("line", { class: "target", x1: x(targetMs), x2: x(targetMs), y1: 4, y2: 96 }));
  for (const point of points) {
    marks.push(svg("circle", { class: point.fits === false ? "late" : "option", cx: point.x, cy: point.y, r: 3 }));
  }
  if (chosen) marks.push(svg("circle", { class: "chosen", cx: x(chosen.ms), cy: y(chosen.quality), r: 6 }));
  marks.push(...labels(points[0], 14), ...labels(points.at(-1), -9));
  return svg("svg", { viewBox: "0 0 320 112", "aria-hidden": "true" }, marks);
}

/** Where a value lies between `from` and `to`, if the smallest lies at one end and the largest at the other. */
function along(values, scale, from, to) {
  const [low, high] = [scale(Math.min(...values)), scale(Math.max(...values))];
  return (value) => Number((from + ((to - from) * (scale(value) - low)) / (high - low || 1)).toFixed(1));
}

/** The quality of a plan, so far below it, and its time on the axis. */
function labels(point, below) {
  const at = { x: Math.min(point.x, 302), "text-anchor": "middle" };
  return [
    svg("text", { ...at, y: point.y + below }, [quality(point.quality)]),
    svg("text", { ...at, y: 110 }, [duration(point.ms)]),
  ];
}

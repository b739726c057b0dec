// Small drawings in SVG.

const NS = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, children = []) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A bar for every step that has a level, in room for all `steps`. */
export function levelBars(levels, steps, maxLevel) {
  const bars = svg("path", { class: "bars", d: barPath(levels, maxLevel) });
  const ground = svg("rect", { class: "ground", x: 0, y: 0, width: steps, height: maxLevel });
  const frame = { class: "level-bars", viewBox: `0 0 ${steps} ${maxLevel}`, preserveAspectRatio: "none" };
  return svg("svg", { ...frame, role: "img", "aria-label": levelText(levels, steps) }, [ground, bars]);
}

/** The same drawing with more steps done. */
export function grow(chart, levels, steps, maxLevel) {
  chart.querySelector(".bars").setAttribute("d", barPath(levels, maxLevel));
  chart.setAttribute("aria-label", levelText(levels, steps));
}

function barPath(levels, maxLevel) {
  return levels.map((level, step) => `M${step + 0.09} ${maxLevel}V${maxLevel - level}h.82V${maxLevel}z`).join("");
}

function levelText(levels, steps) {
  if (!levels.length) return `no step of ${steps} yet`;
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const done = levels.length < steps ? `${levels.length} of ${steps} steps` : `${steps} steps`;
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

/** Quality over time, both of what could be had and of what is chosen. options: [{ms, quality, fits}]. */
export function tradeoff(options, chosen, targetMs) {
  const all = chosen ? [...options, chosen] : options;
  const times = [...all.map((option) => option.ms), ...(targetMs ? [targetMs] : [])];
  const [from, to] = [Math.min(...times) / 1.12, Math.max(...times) * 1.12];
  const [low, high] = [Math.min(...all.map((o) => o.quality)), Math.max(...all.map((o) => o.quality))];
  const x = (ms) => 6 + (308 * Math.log(ms / from)) / Math.log(to / from);
  const y = (value) => 84 - (72 * (value - low)) / (high - low || 1);
  const front = [...options].sort((a, b) => a.ms - b.ms);
  const line = front.map((option, i) => `${i ? "L" : "M"}${x(option.ms).toFixed(1)} ${y(option.quality).toFixed(1)}`).join("");
  const dots = front.map((option) =>
    svg("circle", { class: option.fits === false ? "late" : "option", cx: x(option.ms), cy: y(option.quality), r: 3 }));
  const marks = [];
  if (targetMs) marks.push(svg("line", { class: "target", x1: x(targetMs), x2: x(targetMs), y1: 2, y2: 94 }));
  marks.push(svg("path", { class: "front", d: line }), ...dots);
  if (chosen) marks.push(svg("circle", { class: "chosen", cx: x(chosen.ms), cy: y(chosen.quality), r: 6 }));
  return svg("svg", { viewBox: "0 0 320 96", "aria-hidden": "true" }, marks);
}

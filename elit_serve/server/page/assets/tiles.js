// The figures of the live view: each with what it means, and a line of the last minute.

import { sparkline, svg } from "./charts.js";
import { operations, percent } from "./words.js";

export const HISTORY_S = 60;
export const WINDOW_S = 10; // over which rates are taken

/** The snapshot about `WINDOW_S` before another, to take rates from. */
function before(load, history) {
  return history.find(({ at_s: at }) => load.at_s - at <= WINDOW_S) ?? load;
}

/** How much a total rose in the window, over how much another did; null where that stood still. */
function ratio(load, history, above, below) {
  const past = before(load, history);
  const rose = below(load) - below(past);
  return rose > 0 ? (above(load) - above(past)) / rose : null;
}

const total = (name) => (load) => load.totals[name];
const at = (load) => load.at_s;
const refused = ({ totals }) => Object.values(totals.refusals).reduce((sum, count) => sum + count, 0);

const promises = ({ totals }) => totals.promises_kept + totals.promises_missed;

function over(history, value) {
  return history.map((load, index) => value(load, history.slice(0, index + 1)));
}

/** A tile reads (value, detail, history of values, their top) off a snapshot. */
export const TILES = [
  {
    name: "In flight",
    read: (load, history) => {
      const values = over(history, ({ server_load: count }) => count);
      return [load.server_load, `${load.running} running`, values, Math.max(4, ...values)];
    },
  },
  {
    name: "Waiting",
    read: (load, history) => {
      const values = over(history, ({ queue_length: count }) => count);
      return [load.queue_length, `room for ${load.queue_limit}`, values, Math.max(4, ...values)];
    },
  },
  {
    name: "Device busy",
    read: (load, history) => {
      const busy = (now, past) => Math.min(1, ratio(now, past, total("device_s"), at) ?? 0);
      const computed = `${operations(ratio(load, history, total("gflops"), at) ?? 0)}/s, in the last ten seconds`;
      return [percent(busy(load, history)), computed, over(history, busy), 1];
    },
  },
  {
    name: "Granted budget",
    read: (load, history) => {
      const granted = (now, past) => ratio(now, past, total("granted_budget"), total("granted_steps"));
      const value = granted(load, history);
      return [value === null ? "–" : percent(value), "mean of what the server chose", over(history, granted), 1];
    },
  },
  {
    name: "Pictures per second",
    read: (load, history) => {
      const rate = (now, past) => ratio(now, past, total("pictures"), at) ?? 0;
      const values = over(history, rate);
      return [rate(load, history).toFixed(2), `${load.totals.pictures} so far`, values, Math.max(1, ...values)];
    },
  },
  {
    name: "Deadlines kept",
    read: ({ totals: { promises_kept: kept, promises_missed: missed } }, history) => {
      const share = kept + missed ? percent(kept / (kept + missed)) : "–";
      const values = over(history, (now, past) => ratio(now, past, total("promises_kept"), promises));
      return [share, `${kept} kept, ${missed} missed`, values, 1];
    },
  },
  {
    name: "Step time",
    read: (load, history) => {
      const values = over(history, ({ correction }) => correction);
      return [`${load.correction.toFixed(2)} ×`, "of what was measured here", values, Math.max(2, ...values)];
    },
  },
  {
    name: "Refused",
    read: (load, history) => {
      const values = over(history, (now, past) => ratio(now, past, refused, at) ?? 0);
      return [refused(load), reasons(load.totals.refusals), values, Math.max(1, ...values)];
    },
  },
];

function reasons(refusals) {
  const words = {
    infeasible: "too soon",
    overloaded: "overloaded",
    queue_full: "queue full",
    share: "over their share",
    stopped: "stopping",
  };
  const some = Object.entries(refusals).filter(([, count]) => count > 0);
  return some.length ? some.map(([reason, count]) => `${count} ${words[reason] ?? reason}`).join(", ") : "none so far";
}

export class Tile {
  node = document.createElement("div");
  #value = document.createElement("strong");
  #detail = document.createElement("span");
  #line = svg("path", { class: "line", d: "" });

  constructor(name) {
    const term = Object.assign(document.createElement("dt"), { textContent: name });
    const definition = document.createElement("dd");
    const frame = {
      class: "spark",
      viewBox: `0 0 ${HISTORY_S} 20`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    };
    definition.append(this.#value, this.#detail, svg("svg", frame, [this.#line]));
    this.node.append(term, definition);
  }

  show(value, detail, values, top) {
    this.#value.textContent = value;
    this.#detail.textContent = detail;
    this.#line.setAttribute("d", sparkline(values.slice(-HISTORY_S), HISTORY_S, top));
  }
}

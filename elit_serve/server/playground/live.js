// The view of what the server is doing: `/v1/live`, read only while it is seen.

import { events } from "./api.js";
import { grow, levelBars, sparkline, svg } from "./charts.js";
import { duration, explained, percent, plural } from "./words.js";

const HISTORY_S = 60;
const WINDOW_S = 10; // over which rates are taken
const SAID_EVERY_MS = 20_000; // how often a screen reader is told the numbers
const RECONNECT_MS = 2000;
const part = (id) => document.getElementById(id);

export class LiveView {
  /** As `/v1/models` has it, once it is known. */
  model = null;
  #history = []; // one snapshot a second
  #watching = null;
  #flights = new Map();
  #tiles = new Map();
  #isPaused = false;
  #saidMs = -Infinity;

  constructor() {
    part("pause").addEventListener("click", () => {
      this.#isPaused = !this.#isPaused;
      part("pause").setAttribute("aria-pressed", String(this.#isPaused));
      this.#say(this.#isPaused ? "Paused" : "");
    });
  }

  start() {
    if (this.#watching) return;
    this.#watching = new AbortController();
    this.#watch(this.#watching.signal);
  }

  stop() {
    this.#watching?.abort();
    this.#watching = null;
  }

  /** Reads on until it is stopped; a server that went away may come back. */
  async #watch(signal) {
    while (!signal.aborted) {
      try {
        for await (const { data } of events("/v1/live", { signal })) this.#take(data);
      } catch (error) {
        if (signal.aborted) return;
        this.#say(explained(error).text);
        if ([401, 403].includes(error.status)) return this.stop();
      }
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    }
  }

  #take(load) {
    const last = this.#history.at(-1);
    if (last && load.at_s < last.at_s) this.#history = []; // another server has taken its place
    if (!last || load.at_s - last.at_s >= 1) this.#history.push(load);
    this.#history = this.#history.filter(({ at_s: at }) => load.at_s - at <= HISTORY_S + WINDOW_S);
    if (this.#isPaused) return;
    for (const tile of TILES) this.#tile(tile.name).show(...tile.read(load, this.#history));
    this.#showFlights(load);
    this.#sum(load);
  }

  #tile(name) {
    if (!this.#tiles.has(name)) {
      const tile = new Tile(name);
      this.#tiles.set(name, tile);
      part("tiles").append(tile.node);
    }
    return this.#tiles.get(name);
  }

  #showFlights(load) {
    const maxLevel = this.model?.levels.at(-1).level ?? Math.max(1, ...load.in_flight.flatMap(({ levels }) => levels));
    const ids = new Set(load.in_flight.map(({ id }) => id));
    for (const [id, flight] of this.#flights) {
      if (!ids.has(id)) {
        flight.node.remove();
        this.#flights.delete(id);
      }
    }
    for (const [place, picture] of load.in_flight.entries()) {
      if (!this.#flights.has(picture.id)) {
        this.#flights.set(picture.id, new Flight(picture, maxLevel));
      }
      const flight = this.#flights.get(picture.id);
      flight.show(picture);
      const there = part("flights").children[place] ?? null;
      if (there !== flight.node) part("flights").insertBefore(flight.node, there);
    }
    const more = load.server_load - load.in_flight.length;
    const hint = "A bar for every step; its height is the level.";
    part("flights-hint").textContent = !load.server_load ? "Nothing is being made." : more > 0 ? `${hint} ${more} more wait.` : hint;
  }

  #sum(load) {
    const words = { ok: "Running", draining: "Draining: it takes no more work", stopped: "Stopped" };
    part("live-status").dataset.state = load.status;
    this.#say(words[load.status]);
    if (performance.now() - this.#saidMs < SAID_EVERY_MS) return;
    part("live-said").textContent = `${plural(load.server_load, "picture")} in flight, ${load.queue_length} waiting`;
    this.#saidMs = performance.now();
  }

  #say(text) {
    if (part("live-status").textContent !== text) part("live-status").textContent = text;
  }
}

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
const TILES = [
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
      return [percent(busy(load, history)), "of the last ten seconds", over(history, busy), 1];
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
  const words = { infeasible: "too soon", overloaded: "overloaded", queue_full: "queue full", stopped: "stopping" };
  const some = Object.entries(refusals).filter(([, count]) => count > 0);
  return some.length ? some.map(([reason, count]) => `${count} ${words[reason] ?? reason}`).join(", ") : "none so far";
}

class Tile {
  node = document.createElement("div");
  #value = document.createElement("strong");
  #detail = document.createElement("span");
  #line = svg("path", { class: "line", d: "" });

  constructor(name) {
    const term = Object.assign(document.createElement("dt"), { textContent: name });
    const definition = document.createElement("dd");
    const frame = { class: "spark", viewBox: `0 0 ${HISTORY_S} 20`, preserveAspectRatio: "none", "aria-hidden": "true" };
    definition.append(this.#value, this.#detail, svg("svg", frame, [this.#line]));
    this.node.append(term, definition);
  }

  show(value, detail, values, top) {
    this.#value.textContent = value;
    this.#detail.textContent = detail;
    this.#line.setAttribute("d", sparkline(values.slice(-HISTORY_S), HISTORY_S, top));
  }
}

class Flight {
  node = document.createElement("li");
  #state = document.createElement("span");
  #due = document.createElement("span");
  #chart;
  #maxLevel;

  constructor({ label, steps }, maxLevel) {
    this.#maxLevel = maxLevel;
    this.#chart = levelBars([], steps, maxLevel);
    const name = Object.assign(document.createElement("strong"), { textContent: label });
    this.#due.className = "due";
    this.node.append(name, this.#state, this.#due, this.#chart);
  }

  show({ state, levels, steps, left_ms: left, promised }) {
    this.node.dataset.state = state;
    this.#state.textContent = { waiting: "waits", finishing: "being encoded" }[state] ?? `step ${levels.length} of ${steps}`;
    const kind = promised ? "promised" : "due";
    this.#due.textContent = left < 0 ? `${duration(-left)} late` : `${kind} in ${duration(left)}`;
    grow(this.#chart, levels, steps, this.#maxLevel);
  }
}

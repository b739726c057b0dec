// The view of what the server is doing: `/v1/live`, read only while it is seen.

import { events } from "./api.js";
import { grow, levelBars } from "./charts.js";
import { HISTORY_S, Tile, TILES, WINDOW_S } from "./tiles.js";
import { duration, explained, operations, percent, plural, total } from "./words.js";

const SAID_EVERY_MS = 20_000; // how often a screen reader is told the numbers
const RECONNECT_MS = 2000;
const NO_KEY = "(no key)"; // how the server calls nobody in particular
const part = (id) => document.getElementById(id);

export class LiveView {
  /** Of a group, at full budget: how high a bar can be. */
  latents = 1;
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

  complain(error) {
    this.#say(explained(error).text);
  }

  /** Reads on until it is stopped; a server that went away may come back. */
  async #watch(signal) {
    while (!signal.aborted) {
      try {
        for await (const { data } of events("v1/live", { signal })) this.#take(data);
      } catch (error) {
        if (signal.aborted) return;
        this.complain(error);
        if ([401, 403].includes(error.status)) return this.stop();
      }
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    }
  }

  #take(load) {
    if (load.at_s < (this.#history.at(-1)?.at_s ?? 0)) this.#forget(); // another server has taken its place
    const last = this.#history.at(-1);
    if (!last || load.at_s - last.at_s >= 1) this.#history.push(load);
    this.#history = this.#history.filter(({ at_s: at }) => load.at_s - at <= HISTORY_S + WINDOW_S);
    if (this.#isPaused) return;
    for (const tile of TILES) this.#tile(tile.name).show(...tile.read(load, this.#history));
    this.#showFlights(load);
    showSpent(load.totals.spent);
    this.#sum(load);
  }

  #forget() {
    this.#history = [];
    this.#flights.clear();
    part("flights").replaceChildren();
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
    const ids = new Set(load.in_flight.map(({ id }) => id));
    for (const [id, flight] of this.#flights) {
      if (!ids.has(id)) {
        flight.node.remove();
        this.#flights.delete(id);
      }
    }
    for (const [place, picture] of load.in_flight.entries()) {
      if (!this.#flights.has(picture.id)) {
        this.#flights.set(picture.id, new Flight(picture, this.latents));
      }
      const flight = this.#flights.get(picture.id);
      flight.show(picture);
      const there = part("flights").children[place] ?? null;
      if (there !== flight.node) part("flights").insertBefore(flight.node, there);
    }
    const more = load.server_load - load.in_flight.length;
    part("flights-hint").textContent = load.server_load ? hint(more) : "Nothing is being made.";
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

/** By key, the largest first; without keys the tiles say it all. */
function showSpent(spent) {
  const rows = Object.entries(spent).sort(([, a], [, b]) => b.device_s - a.device_s);
  const all = rows.reduce((sum, [, { device_s: seconds }]) => sum + seconds, 0);
  part("spent").hidden = !rows.some(([key]) => key !== NO_KEY);
  part("spent-rows").replaceChildren(
    ...rows.map(([key, { device_s: seconds, gflops }]) => {
      const row = document.createElement("tr");
      const name = Object.assign(document.createElement("th"), { scope: "row", textContent: key });
      const cells = [duration(1000 * seconds), percent(seconds / all), operations(gflops)];
      row.append(name, ...cells.map((textContent) => Object.assign(document.createElement("td"), { textContent })));
      return row;
    }),
  );
}

const hint = (more) => `A bar for every step; its height is the level.${more > 0 ? ` ${more} more wait.` : ""}`;

class Flight {
  node = document.createElement("li");
  #state = document.createElement("span");
  #due = document.createElement("span");
  #chart;
  #latents;

  constructor(picture, latents) {
    this.#latents = latents;
    this.#chart = levelBars(picture, latents);
    const name = Object.assign(document.createElement("strong"), { textContent: picture.label });
    this.#due.className = "due";
    this.node.append(name, this.#state, this.#due, this.#chart);
  }

  show(picture) {
    const { state, strides, steps, left_ms: left, promised } = picture;
    this.node.dataset.state = state;
    this.#state.textContent =
      { waiting: "waits", finishing: "being encoded" }[state] ?? `step ${total(strides)} of ${steps}`;
    const kind = promised ? "promised" : "due";
    this.#due.textContent = left < 0 ? `${duration(-left)} late` : `${kind} in ${duration(left)}`;
    grow(this.#chart, picture, this.#latents);
  }
}

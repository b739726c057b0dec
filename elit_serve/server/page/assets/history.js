// What was made in this browser: pictures with what was asked for and done, kept over reloads until they are cleared.

import { base } from "./api.js";
import { mean } from "./facts.js";
import { named, percent } from "./words.js";

const STORE = "pictures";
const FORM = 2; // of what is kept: what was kept in another one goes
const NAME = `elit-serve ${new URL(base()).pathname}`; // other servers may share this host
const MOST_PICTURES = 60;
const MOST_BYTES = 48e6; // of them together
const part = (id) => document.getElementById(id);

export class History {
  #kept = []; // the newest first
  #store = null; // null where the browser keeps nothing: the pictures then last as long as the tab
  #open;

  /** open: called with a picture that is to be shown again. */
  constructor(open) {
    this.#open = open;
    part("clear-history").addEventListener("click", () => this.#clear());
    part("clear-history").addEventListener("blur", () => this.#ask(false));
    this.#load();
  }

  /**
   * results: as `drawn` resolves to, each with `latents`, the level at full budget, and `fullPlan`, what its quality is
   * relative to; null are photographs.
   */
  async add(results) {
    for (const result of results) {
      const id = await this.#tryTo((store) => store.add(result), "readwrite");
      this.#kept.unshift({ ...result, id });
    }
    this.#bound();
    this.#show();
  }

  /** Marks the one that is shown, if it is there. */
  mark(result) {
    for (const button of part("film").querySelectorAll("button")) {
      button.toggleAttribute("aria-current", button.dataset.src === keyOf(result));
    }
  }

  async #load() {
    this.#store = await opened().catch(() => null);
    const known = (await this.#tryTo((store) => store.getAll(), "readonly")) ?? [];
    this.#kept.push(...known.reverse());
    this.#bound();
    this.#show();
  }

  /** The oldest go first. */
  #bound() {
    let bytes = 0;
    const isWithin = ({ src }, index) => (bytes += src.length) <= MOST_BYTES && index < MOST_PICTURES;
    const from = this.#kept.findIndex((result, index) => !isWithin(result, index));
    for (const { id } of from < 0 ? [] : this.#kept.splice(from)) this.#tryTo((store) => store.delete(id), "readwrite");
  }

  #clear() {
    if (part("clear-history").dataset.asked === undefined) return this.#ask(true);
    this.#tryTo((store) => store.clear(), "readwrite");
    this.#kept = [];
    this.#show();
    part("class").focus(); // the button goes away
  }

  /** What is gone does not come back, so it is asked for twice. */
  #ask(isAsked) {
    const button = part("clear-history");
    button.toggleAttribute("data-asked", isAsked);
    button.textContent = isAsked ? `Remove all ${this.#kept.length}?` : "Clear";
  }

  #show() {
    this.#ask(false);
    part("history").hidden = this.#kept.length === 0;
    part("history-hint").hidden = this.#store !== null;
    part("film").replaceChildren(...this.#kept.map((result) => this.#item(result)));
  }

  #item(result) {
    const { src, facts, seed, levels, latents } = result;
    const share = percent(mean(levels) / latents);
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const image = Object.assign(new Image(), { src, alt: `${named(facts)}, seed ${seed}, at ` });
    button.append(image, Object.assign(document.createElement("span"), { textContent: share }));
    button.dataset.src = keyOf(result);
    button.addEventListener("click", () => this.#open(result));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  /** The result of what is asked of the store; null if it cannot, as in a private window or on a full disk. */
  async #tryTo(ask, mode) {
    if (!this.#store) return null;
    try {
      return await settled(ask(this.#store.transaction(STORE, mode).objectStore(STORE)));
    } catch {
      return null;
    }
  }
}

/** The end of its file, and when it was made: no two pictures share both. */
const keyOf = ({ src, facts, seed }) => `${seed} ${facts.total_ms} ${src.slice(-24)}`;

function opened() {
  const request = indexedDB.open(NAME, FORM);
  request.addEventListener("upgradeneeded", () => {
    const database = request.result;
    if (database.objectStoreNames.contains(STORE)) database.deleteObjectStore(STORE);
    database.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  });
  return settled(request);
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}

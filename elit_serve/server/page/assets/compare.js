// The same seed at several budgets, one after the other, so that their times can be compared.

import { levelBars } from "./charts.js";
import { drawn } from "./drawing.js";
import { duration, percent, quality } from "./words.js";

const BUDGETS = [0, 0.25, 0.5, 1]; // the lowest level, and those nearest to the others
const part = (id) => document.getElementById(id);

/** wishes: class and seed. Throws what goes wrong; what is done then stays. */
export async function compare(model, wishes, signal) {
  const levels = comparedLevels(model.levels);
  const cells = levels.map(({ budget }) => new Cell(budget));
  part("strip").replaceChildren(...cells.map((cell) => cell.node));
  part("comparison-hint").textContent = `${model.classes[Number(wishes.prompt)]}, seed ${wishes.seed}`;
  part("comparison").hidden = false;
  part("comparison").scrollIntoView({ block: "nearest" });
  for (const [index, { budget }] of levels.entries()) {
    await cells[index].fill({ ...wishes, budget }, signal, model.latents);
  }
}

function comparedLevels(levels) {
  const nearest = BUDGETS.map((wanted) =>
    levels.reduce((best, level) => (Math.abs(level.budget - wanted) < Math.abs(best.budget - wanted) ? level : best)),
  );
  return [...new Set(nearest)];
}

class Cell {
  node = document.createElement("figure");
  #picture = document.createElement("img");
  #facts = document.createElement("p");

  constructor(budget) {
    this.budget = budget;
    const title = Object.assign(document.createElement("strong"), { textContent: percent(budget) });
    const caption = document.createElement("figcaption");
    const frame = Object.assign(document.createElement("div"), { className: "frame" });
    this.#picture.alt = "";
    this.#picture.hidden = true;
    frame.append(this.#picture);
    this.#facts.textContent = "waits";
    caption.append(title, this.#facts);
    this.node.append(frame, caption);
  }

  async fill(wishes, signal, latents) {
    this.#facts.textContent = "being made …";
    try {
      const result = await drawn(wishes, { signal, onPreview: (src, number) => this.#show(src, `preview ${number}`) });
      const { facts, levels, seed, src } = result;
      this.#show(src, `${facts.label}, seed ${seed}`);
      this.#facts.textContent = `${duration(facts.total_ms)}, quality ${quality(facts.quality)}`;
      this.node.append(levelBars(levels, levels.length, latents));
      this.node.dataset.done = "";
    } catch (error) {
      this.#facts.textContent = "not made";
      throw error;
    }
  }

  #show(src, what) {
    Object.assign(this.#picture, { src, alt: `${what} at ${percent(this.budget)} of the latents`, hidden: false });
  }
}

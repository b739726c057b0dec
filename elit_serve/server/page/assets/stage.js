// Where pictures appear: one, or several in a grid of which one is chosen.

const part = (id) => document.getElementById(id);

export class Stage {
  /** Called with the index of a picture that is chosen. */
  onChoice = () => {};
  #images = [];

  /** Makes room for so many pictures. What is shown stays until the first of them is, if it was as many. */
  prepare(count) {
    delete part("frame").dataset.preview;
    if (this.#images.length === count) {
      this.#mark(-1);
      return;
    }
    this.#images = Array.from({ length: count }, () => Object.assign(new Image(), { alt: "", hidden: true }));
    const grid = part("pictures");
    grid.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
    grid.replaceChildren(...(count === 1 ? this.#images : this.#images.map((image, index) => this.#tile(image, index))));
    part("empty").hidden = count > 1;
  }

  show(index, src, alt) {
    const image = this.#images[index];
    image.addEventListener("load", () => this.#fit(image), { once: true });
    Object.assign(image, { src, alt, hidden: false });
    image.closest(".tile")?.removeAttribute("aria-label");
    part("empty").hidden = true;
  }

  /** All of them are made: one is the chosen one. */
  choose(index) {
    part("frame").dataset.preview = "done";
    this.#mark(index);
  }

  #tile(image, index) {
    const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    tile.setAttribute("aria-pressed", "false");
    tile.setAttribute("aria-label", `Picture ${index + 1}, which is not there yet`);
    tile.append(image);
    tile.addEventListener("click", () => {
      if (part("frame").dataset.preview === "done") this.onChoice(index);
    });
    return tile;
  }

  #mark(chosen) {
    for (const [index, tile] of [...part("pictures").querySelectorAll(".tile")].entries()) {
      tile.setAttribute("aria-pressed", String(index === chosen));
    }
  }

  /** As wide and high as its pictures are. */
  #fit({ naturalWidth, naturalHeight }) {
    part("frame").style.aspectRatio = `${naturalWidth} / ${naturalHeight}`;
  }
}

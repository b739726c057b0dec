// Small pictures of classes, asked for one at a time, only while they are seen and nothing else is made.

import { picture } from "./api.js";

export class Thumbnails {
  #model;
  #urls = new Map(); // by class id; null where there is none
  #wanted = new Map(); // images that are seen and empty, by class id
  #isAsking = false;
  #isPaused = false;
  #seen = new IntersectionObserver((entries) => this.#look(entries));

  constructor(model) {
    this.#model = model;
  }

  /** An image that becomes that of a class once it is seen. */
  image(id) {
    const image = Object.assign(new Image(), { alt: "", className: "thumbnail" });
    image.dataset.id = id;
    if (this.#urls.get(id)) image.src = this.#urls.get(id);
    else this.#seen.observe(image);
    return image;
  }

  /** While a picture is made, the server and the connections to it are for that. */
  pause(isPaused) {
    this.#isPaused = isPaused;
    this.#ask();
  }

  #look(entries) {
    for (const { target, isIntersecting } of entries) {
      const id = Number(target.dataset.id);
      if (isIntersecting && !this.#urls.has(id)) this.#wanted.set(id, target);
      else if (this.#wanted.get(id) === target) this.#wanted.delete(id);
    }
    this.#ask();
  }

  async #ask() {
    const [id] = this.#wanted.keys();
    if (this.#isAsking || this.#isPaused || id === undefined) return;
    this.#isAsking = true;
    const { id: name, hash } = this.#model;
    try {
      this.#urls.set(id, await picture(`v1/models/${encodeURIComponent(name)}/classes/${id}/thumbnail?of=${hash}`));
    } catch {
      this.#urls.set(id, null); // a class can be chosen without
    }
    this.#wanted.delete(id);
    for (const image of document.querySelectorAll(`.thumbnail[data-id="${id}"]`)) {
      this.#seen.unobserve(image);
      if (this.#urls.get(id)) image.src = this.#urls.get(id);
    }
    this.#isAsking = false;
    this.#ask();
  }
}

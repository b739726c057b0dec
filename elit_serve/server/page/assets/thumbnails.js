// Small pictures of classes, asked for one at a time, only while they are seen and nothing else is made.

import { picture } from "./api.js";

export class Thumbnails {
  #model;
  #urls = new Map(); // by class id; null where there is none
  #wanted = new Map(); // places that are seen and empty, by class id
  #isAsking = false;
  #isPaused = false;
  #seen = new IntersectionObserver((entries) => this.#look(entries));

  constructor(model) {
    this.#model = model;
  }

  /** A place that gets the picture of a class once it is seen. */
  place(id) {
    const place = Object.assign(document.createElement("span"), { className: "thumbnail" });
    place.dataset.id = id;
    if (this.#urls.has(id)) this.#fill(place, id);
    else this.#seen.observe(place);
    return place;
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
    for (const place of document.querySelectorAll(`.thumbnail[data-id="${id}"]`)) this.#fill(place, id);
    this.#isAsking = false;
    this.#ask();
  }

  #fill(place, id) {
    this.#seen.unobserve(place);
    const src = this.#urls.get(id);
    if (src) place.replaceChildren(Object.assign(new Image(), { src, alt: "" }));
  }
}

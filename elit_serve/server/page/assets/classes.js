// A searchable list of classes: the combobox pattern of the ARIA authoring practices.

import { Thumbnails } from "./thumbnails.js";

const MOST_SHOWN = 50;

export class ClassPicker {
  #input = document.getElementById("class");
  #list = document.getElementById("class-list");
  #names = [];
  #thumbnails = null;
  #chosen = 0;
  #active = -1;

  /** chosen: a class id. */
  offer(model, chosen) {
    this.#names = model.classes;
    this.#thumbnails = new Thumbnails(model);
    this.choose(chosen);
  }

  /** Whether something else is being made, so that thumbnails have to wait. */
  set isBusy(isBusy) {
    this.#thumbnails?.pause(isBusy); // a model of prompts has none
  }

  constructor() {
    this.#input.addEventListener("input", () => this.#open(this.#input.value));
    this.#input.addEventListener("click", () => this.#open(""));
    this.#input.addEventListener("focus", () => this.#input.select());
    this.#input.addEventListener("blur", () => this.#settle());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // or the field would lose its focus, and the list close, before the click
      const option = event.target.closest("[role=option]");
      if (option) this.#take(option);
    });
  }

  get id() {
    return this.#chosen;
  }

  choose(id) {
    this.#chosen = id;
    this.#input.value = this.#names[id];
    this.#close();
  }

  #open(text) {
    const wanted = text.trim().toLowerCase();
    const found = this.#names.map((name, id) => ({ name, id, at: name.toLowerCase().indexOf(wanted) }));
    const matches = found.filter(({ at }) => at >= 0);
    if (wanted) matches.sort((a, b) => Math.sign(a.at) - Math.sign(b.at) || a.name.localeCompare(b.name));
    this.#list.replaceChildren(...matches.slice(0, MOST_SHOWN).map((match) => this.#option(match)));
    if (!matches.length) this.#list.replaceChildren(nothing());
    this.#list.hidden = false;
    this.#input.setAttribute("aria-expanded", "true");
    const current = matches.slice(0, MOST_SHOWN).findIndex(({ id }) => id === this.#chosen);
    this.#activate(wanted ? 0 : current);
  }

  #option({ name, id }) {
    const option = document.createElement("li");
    Object.assign(option, { id: `class-${id}`, role: "option" });
    option.append(this.#thumbnails.place(id), name);
    option.dataset.id = id;
    option.setAttribute("aria-selected", String(id === this.#chosen));
    return option;
  }

  #key(event) {
    const isOpen = !this.#list.hidden;
    const options = this.#list.querySelectorAll("[data-id]");
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) return this.#open("");
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (options.length) this.#activate((this.#active + step + options.length) % options.length);
    } else if (event.key === "Enter" && isOpen) {
      event.preventDefault();
      if (options[this.#active]) this.#take(options[this.#active]);
    } else if (event.key === "Escape" && isOpen) {
      event.preventDefault();
      this.choose(this.#chosen);
    }
  }

  #activate(index) {
    const options = this.#list.querySelectorAll("[data-id]");
    this.#active = index;
    options.forEach((option, i) => option.classList.toggle("active", i === index));
    if (!options[index]) return this.#input.removeAttribute("aria-activedescendant");
    this.#input.setAttribute("aria-activedescendant", options[index].id);
    options[index].scrollIntoView({ block: "nearest" });
  }

  #take(option) {
    this.choose(Number(option.dataset.id));
    this.#input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** What stands there when the field is left is a class: the one that was typed, or the last one. */
  #settle() {
    const typed = this.#names.findIndex((name) => name.toLowerCase() === this.#input.value.trim().toLowerCase());
    this.choose(this.#names[this.#chosen] === this.#input.value || typed < 0 ? this.#chosen : typed);
  }

  #close() {
    this.#list.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#input.removeAttribute("aria-activedescendant");
  }
}

function nothing() {
  const line = document.createElement("li");
  line.textContent = "No class has this in its name.";
  line.className = "none";
  line.setAttribute("role", "presentation");
  return line;
}

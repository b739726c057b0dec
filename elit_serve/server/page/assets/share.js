// What takes a picture elsewhere: a link, a command, a program.

import { asCurl, asLink, asPython, repeated } from "./requests.js";

const part = (id) => document.getElementById(id);

const FORMS = {
  link: { button: "Link", says: "The link", write: (wishes, facts) => asLink(wishes, { view: "make", modelHash: facts.model_hash }) },
  curl: { button: "curl", says: "The command", write: asCurl },
  python: { button: "Python", says: "The program", write: asPython },
};

export class SharePanel {
  #result = null;
  #latents = 1;

  constructor() {
    for (const [name, { button }] of Object.entries(FORMS)) {
      const node = Object.assign(document.createElement("button"), { type: "button", textContent: button });
      node.setAttribute("aria-label", `Copy ${name === "link" ? "the link" : `as ${button}`}`);
      node.addEventListener("click", () => this.#copy(name));
      part("share-forms").append(node);
    }
    for (const radio of document.querySelectorAll("[name=shared]")) {
      radio.addEventListener("change", () => this.#forget());
    }
  }

  /** What the buttons speak of from now on. latents: the level at full budget. */
  offer(result, latents) {
    this.#result = result;
    this.#latents = latents;
    this.#forget();
  }

  get #wishes() {
    const isSame = document.querySelector("[name=shared]:checked").value === "picture";
    return isSame ? repeated(this.#result, this.#latents) : this.#result.request;
  }

  async #copy(name) {
    const { says, write } = FORMS[name];
    const text = write(this.#wishes, this.#result.facts);
    part("share-text").value = text;
    part("share-text").hidden = false;
    const isCopied = await copied(text, part("share-text"));
    part("share-status").textContent = isCopied ? `${says} is copied.` : `${says} is below: copy it from there.`;
  }

  #forget() {
    part("share-text").hidden = true;
    part("share-status").textContent = "";
  }
}

/** Whether the browser took it; without HTTPS it only copies what is selected, and `field` is. */
export async function copied(text, field) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    field.select();
    return document.execCommand("copy");
  }
}

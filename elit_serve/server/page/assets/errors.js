// An error in plain words, with what can be done about it.

import { comfortable, duration, explained, plural } from "./words.js";

export class ErrorPanel {
  #panel;
  #timer = null;

  constructor(panel) {
    this.#panel = panel;
  }

  clear() {
    clearInterval(this.#timer);
    this.#panel.hidden = true;
    this.#panel.replaceChildren();
  }

  /** setLatency(ms): takes a target that would work. again(): asks once more. */
  show(error, { setLatency, again }) {
    this.clear();
    const { title, text } = explained(error);
    this.#panel.append(element("h2", title), element("p", text));
    if (error.minLatencyMs) {
      const ms = comfortable(error.minLatencyMs);
      this.#panel.append(button(`Use ${duration(ms)}`, () => this.#close(setLatency, ms)));
    } else if (![401, 403].includes(error.status)) {
      this.#panel.append(this.#againButton(error.retryAfterS, again));
    }
    this.#panel.hidden = false;
  }

  #againButton(retryAfterS, again) {
    const node = button("Try again", () => this.#close(again));
    let left = retryAfterS ?? 0;
    const count = () => {
      node.textContent = left > 0 ? `Try again (in ${plural(left, "second")})` : "Try again";
      if (left-- <= 0) clearInterval(this.#timer);
    };
    count();
    if (retryAfterS) this.#timer = setInterval(count, 1000);
    return node;
  }

  #close(act, ...values) {
    this.clear();
    act(...values);
    document.getElementById("generate").focus();
  }
}

function element(name, textContent) {
  return Object.assign(document.createElement(name), { textContent });
}

function button(text, act) {
  const node = Object.assign(element("button", text), { type: "button" });
  node.addEventListener("click", act);
  return node;
}

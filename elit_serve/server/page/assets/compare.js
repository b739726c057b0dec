// One seed at every budget, all at once and side by side.

import { call } from "./api.js";
import { drawn, NUM_PREVIEWS } from "./drawing.js";
import { asLink } from "./requests.js";
import { copied } from "./share.js";
import { saveSheet } from "./sheet.js";
import { duration, named, percent, quality } from "./words.js";

const MOST_BUDGETS = 5; // a browser keeps six connections to a server, and the page needs one of them
const part = (id) => document.getElementById(id);

/** subject: wishes without their cost. Resolves to what was made; throws what goes wrong, and what is done then stays. */
export async function compare(model, subject, signal) {
  const options = await comparedOptions(model, subject, signal);
  const slowestMs = Math.max(...options.map((option) => option.alone_ms));
  const cards = options.map((option) => new Card(option, model.latents, slowestMs));
  part("strip").replaceChildren(...cards.map((card) => card.node));
  part("strip").style.setProperty("--columns", cards.length);
  part("comparison-title").textContent = `${named(subject)}, seed ${subject.seed}`;
  for (const id of ["comparison-intro", "comparison-actions", "comparison-text", "stages"]) part(id).hidden = true;
  part("comparison-said").textContent = "";
  part("comparison").hidden = false;
  const made = await Promise.allSettled(cards.map((card) => card.fill(subject, signal)));
  const failed = made.find(({ status }) => status === "rejected");
  if (failed) throw failed.reason;
  offerActions(model, subject, cards);
  return made.flatMap(({ value }) => value);
}

/** The levels of a fixed number of steps, with what each takes alone and how good it is. */
async function comparedOptions(model, { seed, ...subject }, signal) {
  const body = { ...subject, steps: subject.steps ?? model.sampling.steps };
  const { alternatives } = await call("v1/plan", { body, signal });
  const options = alternatives.toSorted((a, b) => a.budget - b.budget);
  if (options.length <= MOST_BUDGETS) return options;
  const wanted = Array.from({ length: MOST_BUDGETS }, (_, index) => index / (MOST_BUDGETS - 1));
  const nearest = (share) =>
    options.reduce((best, option) => (Math.abs(option.budget - share) < Math.abs(best.budget - share) ? option : best));
  return [...new Set(wanted.map(nearest))];
}

/** What can be done with a complete comparison. */
function offerActions(model, subject, cards) {
  part("comparison-actions").hidden = false;
  part("comparison-link").onclick = () => copyLink(asLink(subject, { view: "compare", modelHash: model.hash }));
  part("comparison-save").onclick = () =>
    saveSheet(`${named(subject)}, seed ${subject.seed}`, part("served").textContent, cards);
  part("stages").hidden = false;
  part("stage").oninput = () => showStage(Number(part("stage").value), cards);
  part("stage").max = NUM_PREVIEWS + 1;
  part("stage").value = NUM_PREVIEWS + 1;
  showStage(NUM_PREVIEWS + 1, cards);
}

/** All of them as far as they were at one preview, or done. stage: from 1. */
function showStage(stage, cards) {
  const name = stage > NUM_PREVIEWS ? "their end" : `preview ${stage} of ${NUM_PREVIEWS}`;
  part("stage-value").textContent = name;
  part("stage").setAttribute("aria-valuetext", name);
  for (const card of cards) card.turnTo(stage);
}

async function copyLink(link) {
  part("comparison-text").value = link;
  part("comparison-text").hidden = false;
  const isCopied = await copied(link, part("comparison-text"));
  part("comparison-said").textContent = isCopied ? "The link is copied." : "The link is below: copy it from there.";
}

class Card {
  node = document.createElement("figure");
  image = Object.assign(new Image(), { alt: "", hidden: true });
  #shown = []; // {src, what} at each stage
  #frame = Object.assign(document.createElement("div"), { className: "frame" });
  #state = Object.assign(document.createElement("p"), { className: "hint", textContent: "waits" });

  /** option: an alternative of `/v1/plan`. slowestMs: of all that are compared. */
  constructor(option, latents, slowestMs) {
    this.option = option;
    const caption = document.createElement("figcaption");
    const course = Object.assign(document.createElement("div"), { className: "course" });
    course.append(document.createElement("span"));
    this.#frame.append(this.image, course);
    const head = element("p", "share", element("strong", "", percent(option.budget)));
    head.append(` level ${option.level} of ${latents}`);
    const meters = element("dl", "meters");
    meters.append(meter("Time alone", duration(option.alone_ms), option.alone_ms / slowestMs));
    if (option.quality !== null) meters.append(meter("Quality", quality(option.quality), option.quality));
    caption.append(meters, this.#state);
    this.node.append(head, this.#frame, caption);
  }

  async fill(subject, signal) {
    const { budget, steps } = this.option;
    const onPreview = (_, src, number) => {
      this.#show(number, src, `preview ${number}`);
      this.#state.textContent = `preview ${number} of ${NUM_PREVIEWS}`;
    };
    try {
      const results = await drawn({ ...subject, steps, budget }, { signal, onPreview });
      const [{ src, seed, facts }] = results;
      this.#show(NUM_PREVIEWS + 1, src, `${named(facts)}, seed ${seed}`);
      this.#state.textContent = `ready after ${duration(facts.total_ms)}, beside the others`;
      this.node.dataset.done = "";
      return results;
    } catch (error) {
      this.#state.textContent = "not made";
      throw error;
    }
  }

  /** Shows what it was like at a stage; with few steps there are fewer previews. */
  turnTo(stage) {
    const { src, what } = this.#shown[stage] ?? this.#shown.findLast(Boolean);
    const alt = `${what} at ${percent(this.option.budget)} of the latents`;
    Object.assign(this.image, { src, alt, hidden: false });
  }

  #show(stage, src, what) {
    this.#shown[stage] = { src, what };
    this.turnTo(stage);
    this.#frame.style.setProperty("--done", stage / (NUM_PREVIEWS + 1));
  }
}

function meter(name, value, share) {
  const group = document.createElement("div");
  const bar = element("span", "bar");
  bar.style.setProperty("--share", share);
  const definition = element("dd", "", element("strong", "", value));
  definition.append(bar);
  group.append(element("dt", "", name), definition);
  return group;
}

function element(name, className, ...content) {
  const node = Object.assign(document.createElement(name), { className });
  node.append(...content);
  return node;
}

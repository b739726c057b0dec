// The page: which view is shown, the key, and what the server serves.

import { call, hasKey, useKey } from "./api.js";
import { LiveView } from "./live.js";
import { MakeView } from "./make.js";

const part = (id) => document.getElementById(id);
const views = { make: part("make-view"), compare: part("make-view"), live: part("live-view") };
const titles = { make: "Make a picture", compare: "Compare budgets", live: "Live" };
const live = new LiveView();
const make = new MakeView();

let shown = "make";
let isLoaded = false;

/** A link is `#view?what`, and what it says is behind the question mark. */
const linked = () => location.hash.slice(1).split("?");

function show() {
  const [name] = linked();
  shown = Object.hasOwn(views, name) ? name : shown;
  for (const [other, view] of Object.entries(views)) {
    view.hidden = view !== views[shown];
    part(`to-${other}`).toggleAttribute("aria-current", false);
  }
  part(`to-${shown}`).setAttribute("aria-current", "page");
  make.choose(shown);
  document.title = `${titles[shown]} · elit-serve`;
  watchIfSeen();
}

function follow() {
  show();
  const [, query] = linked();
  if (query && isLoaded) make.open(query);
}

/** Nobody watches a view that cannot be seen. */
function watchIfSeen() {
  if (isLoaded && !views.live.hidden && !document.hidden) live.start();
  else live.stop();
}

async function load() {
  try {
    const [model] = (await call("v1/models")).data;
    part("served").textContent = `${model.id} on ${model.device === "cpu" ? "a CPU" : model.device}`;
    part("key-panel").hidden = true;
    part("docs").hidden = hasKey(); // a browser sends no key when it follows a link
    const { level, budget } = model.levels.at(-1);
    model.latents = Math.round(level / budget); // of a group, at full budget
    live.latents = model.latents;
    make.offer(model, linked()[1]);
    isLoaded = true;
    watchIfSeen();
  } catch (error) {
    if (error.status === 401) return; // the key's panel says it
    make.complain(error);
    live.complain(error);
  }
}

document.addEventListener("key-needed", () => {
  if (!part("key-panel").hidden) return;
  part("key-title").textContent = hasKey() ? "This server does not know that key" : "This server asks for a key";
  part("key-panel").hidden = false;
  part("key").focus();
});
part("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(part("key").value);
  part("key").value = "";
  part("key-panel").hidden = true;
  load();
});
window.addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", watchIfSeen);
show();
load();

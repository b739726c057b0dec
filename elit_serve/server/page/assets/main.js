// The page: which view is shown, the key, and what the server serves.

import { call, hasKey, useKey } from "./api.js";
import { LiveView } from "./live.js";
import { MakeView } from "./make.js";

const part = (id) => document.getElementById(id);
const views = { make: part("make-view"), live: part("live-view") };
const live = new LiveView();
const make = new MakeView();

let shown = "make";
let isLoaded = false;

function show() {
  shown = Object.keys(views).find((name) => location.hash === `#${name}`) ?? shown;
  for (const [other, view] of Object.entries(views)) {
    view.hidden = other !== shown;
    part(`to-${other}`).toggleAttribute("aria-current", false);
  }
  part(`to-${shown}`).setAttribute("aria-current", "page");
  document.title = `${shown === "live" ? "Live" : "Make a picture"} · elit-serve`;
  watchIfSeen();
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
    make.offer(model);
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
window.addEventListener("hashchange", show);
document.addEventListener("visibilitychange", watchIfSeen);
show();
load();

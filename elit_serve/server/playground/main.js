// The page: which view is shown, the key, and what the server serves.

import { call, useKey } from "./api.js";
import { LiveView } from "./live.js";
import { MakeView } from "./make.js";
import { explained } from "./words.js";

const part = (id) => document.getElementById(id);
const views = { make: part("make"), live: part("live") };
const live = new LiveView();
const make = new MakeView();

function show() {
  const name = location.hash === "#live" ? "live" : "make";
  for (const [other, view] of Object.entries(views)) {
    view.hidden = other !== name;
    part(`to-${other}`).toggleAttribute("aria-current", false);
  }
  part(`to-${name}`).setAttribute("aria-current", "page");
  document.title = `${name === "live" ? "Live" : "Make a picture"} · elit-serve`;
  watchIfSeen();
}

/** Nobody watches a view that cannot be seen. */
function watchIfSeen() {
  if (!views.live.hidden && !document.hidden) live.start();
  else live.stop();
}

async function load() {
  try {
    const [model] = (await call("/v1/models")).data;
    part("served").textContent = `${model.id} on ${model.device === "cpu" ? "a CPU" : model.device}`;
    part("key-panel").hidden = true;
    live.model = model;
    make.offer(model);
  } catch (error) {
    if (error.status !== 401) make.complain(error);
  }
}

document.addEventListener("key-needed", () => {
  if (!part("key-panel").hidden) return;
  part("key-panel").hidden = false;
  part("key").focus();
});
part("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(part("key").value);
  part("key").value = "";
  part("key-panel").hidden = true;
  load();
  watchIfSeen();
});
window.addEventListener("hashchange", show);
document.addEventListener("visibilitychange", watchIfSeen);
show();
load();

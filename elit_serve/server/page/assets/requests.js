// A request for pictures in the forms that it takes: a link to this page, a shell command, a Python program.
// Wishes are the body of `/v1/generate`; what is left out is the server's to choose.

import { ApiError, base, hasKey } from "./api.js";

const MOST_STEPS = 1000;

const number = { is: "a number", write: String, read: (text) => (text.trim() ? Number(text) : NaN) };
const text = { is: "a text", write: String, read: (value) => value || NaN };
const words = { is: "a text", write: String, read: (value) => value }; // it may be empty
const runs = { is: "numbers with how often each, as 4x8.16x12", write: inRuns, read: fromRuns };
const steps = {
  is: "numbers of steps, as 1.3.4",
  write: (numbers) => numbers.join("."),
  read: (value) => (/^\d{1,4}(\.\d{1,4})*$/.test(value) ? value.split(".").map(Number) : NaN),
};
const range = {
  is: "two numbers, as 0.2-1",
  write: (ends) => ends.join("-"),
  read: (value) => (/^[\d.]+-[\d.]+$/.test(value) ? value.split("-").map(Number) : NaN),
};

/** All that decides a picture, in the order in which a link says it. */
const FIELDS = {
  label: text,
  prompt: words,
  negative_prompt: words,
  seed: number,
  n: number,
  size: text,
  latency_ms: number,
  budget: number,
  levels: runs,
  strides: runs,
};
const PLAN_FIELDS = { steps: number, method: text, scale: number, weak_budget: number, interval: range };
const SKIP_FIELDS = { core: steps, weak: steps };
const LINK_FIELDS = { ...FIELDS, ...PLAN_FIELDS, ...SKIP_FIELDS };

/** The wishes that make a picture again which was made: its own steps, whatever was asked for then. */
export function repeated({ facts, seed, levels, strides, request }, latents) {
  const hasLong = strides.some((stride) => stride > 1);
  const isEven = !hasLong && levels.every((level) => level === levels[0]);
  const bySteps = { levels, ...(hasLong && { strides }) };
  const compute = isEven ? { budget: levels[0] / latents, steps: levels.length } : bySteps;
  const size = request.size ? { size: request.size } : {};
  const skips = facts.skips ? { skips: facts.skips } : {};
  return { ...subjectOf(facts), seed, ...size, ...compute, guidance: withoutNull(facts.guidance), ...skips };
}

/** What a picture is of, as a request says it. */
export function subjectOf({ label, prompt, negative_prompt: negative }) {
  if (label) return { label };
  return { prompt, ...(negative && { negative_prompt: negative }) };
}

/** view: `make` or `compare`. modelHash: of the weights that the link means. */
export function asLink(wishes, { view, modelHash }) {
  const { guidance = {}, skips = {}, ...fields } = wishes;
  const skipped = Object.entries(skips).filter(([, numbers]) => numbers.length);
  const said = { ...fields, ...guidance, ...Object.fromEntries(skipped) };
  const query = new URLSearchParams();
  for (const [name, field] of Object.entries(LINK_FIELDS)) {
    if (said[name] !== undefined) query.set(name, field.write(said[name]));
  }
  query.set("model", modelHash);
  return `${base()}#${view}?${query}`;
}

/** Of the part of a link behind `?`: {wishes, modelHash}. Throws `ApiError` for what no link says. */
export function fromLink(query, model) {
  const { model: modelHash = null, ...said } = Object.fromEntries(new URLSearchParams(query));
  const values = Object.entries(said).map(([name, value]) => [name, readField(name, value)]);
  const isPlan = ([name]) => name in PLAN_FIELDS && name !== "steps";
  const isSkip = ([name]) => name in SKIP_FIELDS;
  const wishes = Object.fromEntries(values.filter((field) => !isPlan(field) && !isSkip(field)));
  const parts = { guidance: values.filter(isPlan), skips: values.filter(isSkip) };
  for (const [name, part] of Object.entries(parts)) {
    if (part.length) wishes[name] = Object.fromEntries(part);
  }
  if (!model.prompts) wishes.label = classOf(wishes.label, model);
  else if (wishes.prompt === undefined) throw badLink(`It says no prompt, and ${model.id} makes pictures of these.`);
  return { wishes, modelHash };
}

function readField(name, value) {
  const field = Object.hasOwn(LINK_FIELDS, name) ? LINK_FIELDS[name] : null;
  if (!field) throw badLink(`It says ${name}, and may say ${Object.keys(LINK_FIELDS).join(", ")}.`);
  const read = field.read(value);
  if ([read].flat().some(Number.isNaN)) throw badLink(`Its ${name} is “${value}”, and should be ${field.is}.`);
  return read;
}

function classOf(label, model) {
  const found = model.classes.find((name) => name.toLowerCase() === label?.toLowerCase());
  if (found === undefined) throw badLink(`Its class is “${label ?? ""}”, which ${model.id} does not know.`);
  return found;
}

const badLink = (message) => new ApiError({ status: 0, code: "bad_link", message });

/** [4, 4, 16] is 4x2.16x1. */
function inRuns(levels) {
  const found = [];
  for (const level of levels) {
    if (found.at(-1)?.level === level) found.at(-1).count += 1;
    else found.push({ level, count: 1 });
  }
  return found.map(({ level, count }) => `${level}x${count}`).join(".");
}

function fromRuns(value) {
  const found = value.split(".").map((run) => /^(\d{1,4})x(\d{1,4})$/.exec(run)?.slice(1).map(Number));
  if (found.includes(undefined) || found.reduce((sum, [, count]) => sum + count, 0) > MOST_STEPS) return NaN;
  return found.flatMap(([level, count]) => Array(count).fill(level));
}

/** A command for a shell. Several pictures come as JSON, one as its file. */
export function asCurl(wishes) {
  const isOne = (wishes.n ?? 1) === 1;
  const key = hasKey() ? ` -H "Authorization: Bearer $ELIT_SERVE_API_KEY"` : "";
  const accept = isOne ? " -H 'Accept: image/png'" : "";
  const url = quoted(`${base()}v1/generate`);
  return `curl -fsS ${url}${key}${accept} --json ${quoted(json(wishes))} -o ${fileName(wishes, isOne ? "png" : "json")}`;
}

/** A program with the Python client that comes with the server. */
export function asPython(wishes) {
  const key = hasKey() ? ', api_key=os.environ["ELIT_SERVE_API_KEY"]' : "";
  const fields = Object.entries(wishes).map(([name, value]) => `${name}=${inPython(value)}`);
  return [
    ...(key ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from elit_serve.client import Client",
    "",
    `with Client(${inPython(base())}${key}) as client:`,
    `    made = client.generate(${fields.join(", ")})`,
    "for image in made.images:",
    `    Path(f"${stem(wishes)}-{image.seed}.png").write_bytes(image.data)`,
    "",
  ].join("\n");
}

/** What a file of these pictures is called: letters and digits, whatever the class is. */
export const fileName = (wishes, suffix) => `${stem(wishes)}-${wishes.seed}.${suffix}`;

const MOST_LETTERS = 60; // of a file's name

const stem = ({ label, prompt }) =>
  (label ?? prompt.slice(0, MOST_LETTERS)).replaceAll(/[^\p{L}\p{N}]+/gu, "-").replaceAll(/^-|-$/g, "") || "picture";

const quoted = (value) => `'${value.replaceAll("'", "'\\''")}'`;

/** As people write it: with a space behind each comma and colon. */
function json(value) {
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, held]) => `${JSON.stringify(name)}: ${json(held)}`).join(", ")}}`;
}

/** Wishes hold numbers, texts, lists and objects, which Python writes as JSON does. */
const inPython = json;

const withoutNull = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));

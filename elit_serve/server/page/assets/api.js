// Talks to the server that this page came from: JSON, server-sent events, errors in either of its two shapes.

/** The server's address as this page sees it, with a slash behind it. */
export const base = () => new URL(".", location.href).href;

const KEY = `elit-serve-key ${new URL(base()).pathname}`; // other servers may share this host

/** What the server refused or failed at. code: stable; retryAfterS, minLatencyMs: null if it does not say. */
export class ApiError extends Error {
  constructor({ status, code, message, minLatencyMs = null, retryAfterS = null }) {
    super(message);
    Object.assign(this, { status, code, minLatencyMs, retryAfterS });
  }
}

/** The key lives as long as the tab. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** The JSON of an answer; with a body it is posted. Paths are relative to the page, wherever a proxy shows it. */
export async function call(path, { body, signal } = {}) {
  return (await send(path, { body, signal })).json();
}

/** The address of a picture in this tab; the browser may have kept it. */
export async function picture(path) {
  return URL.createObjectURL(await (await send(path, { cache: "default" })).blob());
}

/** Has the pictures end early that a stream is waiting for; `requestId` is what `events` has told of it. */
export const finishEarly = (requestId) => send(`v1/requests/${requestId}/finish`, { body: {} });

/**
 * The events of a stream as {type, data}. Throws `ApiError` for a refusal, and for an `error` event.
 * `onTaken` is called with the id of the request before the first of them.
 */
export async function* events(path, { body, signal, onTaken } = {}) {
  const answer = await send(path, { body, signal });
  onTaken?.(answer.headers.get("X-Request-Id"));
  let pending = "";
  for await (const text of textOf(answer.body)) {
    const blocks = (pending + text).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event?.type === "error") throw errorOf(event.data, 0, null);
      if (event) yield event;
    }
  }
}

async function send(path, { body, signal, cache = "no-store" }) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const posted = body && { method: "POST", body: JSON.stringify(body) };
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { ...posted, headers, signal, cache });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ status: 0, code: "unreachable", message: "" });
  }
  if (answer.ok) return answer;
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
  const content = await answer.json().catch(() => ({}));
  throw errorOf(content, answer.status, Number(answer.headers.get("Retry-After")) || null);
}

/** From OpenAI's shape or RFC 9457's. */
function errorOf(content, status, retryAfterS) {
  const problem = content.error ?? content;
  return new ApiError({
    status,
    code: (problem.code ?? problem.reason ?? problem.type ?? "").replace("urn:elit-serve:", "").replaceAll("-", "_"),
    message: problem.message ?? problem.detail ?? `The server answered ${status}.`,
    minLatencyMs: problem.min_latency_ms ?? null,
    retryAfterS,
  });
}

function parsed(block) {
  const lines = block.split("\n");
  const type = lines.find((line) => line.startsWith("event: "))?.slice(7);
  const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
  return type && data ? { type, data: JSON.parse(data) } : null;
}

async function* textOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ status: 0, code: "unreachable", message: "" });
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Numbers and errors as people read them.

const NARROW = "\u202f"; // a space within a quantity, where no line breaks

export const percent = (share) => `${Math.round(100 * share)}${NARROW}%`;

export const quality = (value) => (value === null ? "not measured" : value.toFixed(2));

/** 840 ms, 6.63 s, 2 min 5 s */
export function duration(ms) {
  if (ms < 999.5) return `${Math.round(ms)}${NARROW}ms`;
  if (ms < 59_950) return `${(ms / 1000).toPrecision(3)}${NARROW}s`;
  return `${Math.floor(ms / 60_000)}${NARROW}min ${Math.round((ms % 60_000) / 1000)}${NARROW}s`;
}

/** 840 MFLOP, 6.63 GFLOP, 12.0 TFLOP */
export function operations(gflops) {
  const units = ["M", "G", "T", "P", "E"];
  const power = gflops > 0 ? Math.max(-1, Math.min(3, Math.floor(Math.log10(gflops) / 3))) : 0;
  return `${(gflops / 1000 ** power).toPrecision(3)}${NARROW}${units[power + 1]}FLOP`;
}

const MOST_SHOWN = 60; // letters of a prompt

/** What a picture is of, in a few words: its class, or the beginning of its prompt. */
export function named({ label, prompt }) {
  const words = (label ?? prompt).trim().replaceAll(/\s+/g, " ") || "an empty prompt";
  return words.length > MOST_SHOWN ? `${words.slice(0, MOST_SHOWN - 1)}…` : words;
}

export const total = (values) => values.reduce((sum, value) => sum + value, 0);

/** Of a plan of so many steps, how many are run, and what they use again: 15 of 20 steps, 6 cores skipped */
export function stepsText(run, steps, skips) {
  const count = run < steps ? `${run} of ${plural(steps, "step")}` : plural(steps, "step");
  const { core = [], weak = [] } = skips ?? {};
  const parts = [
    ...(core.length ? [plural(core.length, "core")] : []),
    ...(weak.length ? [plural(weak.length, "weak pass", "weak passes")] : []),
  ];
  return parts.length ? `${count}, ${parts.join(" and ")} skipped` : count;
}

/** A target to propose where `minLatencyMs` is the smallest: a little more, for what moments differ. */
export const comfortable = (minLatencyMs) => Math.ceil(1.02 * minLatencyMs + 5);

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

const soonest = ({ minLatencyMs }) => `The soonest that works is about ${duration(minLatencyMs)}.`;

/** What went wrong, and what would work: {title, text}. */
export function explained(error) {
  const wait = error.retryAfterS
    ? ` The same request should be taken in about ${plural(error.retryAfterS, "second")}.`
    : "";
  switch (error.code) {
    case "infeasible":
      return { title: "Too soon", text: `Nothing is that fast here. ${soonest(error)}` };
    case "overloaded":
      return {
        title: "Others come first",
        text: `Beside what is promised already, this target cannot be kept.${wait}`,
      };
    case "queue_full":
      return { title: "The queue is full", text: `More pictures are waiting than this server lets wait.${wait}` };
    case "too_many_requests":
      return { title: "The server is busy", text: `It answers as many requests as it may at a time.${wait}` };
    case "stopped":
    case "engine_stopped":
      return { title: "The server is stopping", text: `It takes no new pictures now.${wait}` };
    case "deadline_exceeded":
      return {
        title: "Time ran out",
        text: "The picture was begun, but the server was slower than it predicted. Try a later target.",
      };
    case "generation_failed":
      return { title: "This picture failed", text: "The engine could not make it. Another seed or budget may work." };
    case "bad_link":
      return { title: "This link does not fit", text: error.message };
    case "unreachable":
      return {
        title: "No connection",
        text: "The server does not answer. It may have stopped, or the network is down.",
      };
    default:
  }
  if (error.status === 401) return { title: "A key is needed", text: "Enter a key that this server knows." };
  if (error.status === 403) return { title: "Not allowed", text: `${capital(error.message)}.` };
  if (error.status === 429)
    return { title: "Too many requests", text: `This key has used up its share for now.${wait}` };
  return { title: "That did not work", text: `${error.message}${wait}` };
}

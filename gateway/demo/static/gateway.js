/**
 * A small client of the gateway: ask, follow, stop.
 *
 * A page needs none of it, `new EventSource(stream_url)` is enough. It adds what a bare EventSource
 * cannot do: say why a stream was closed, and go on where a proxy's error closed it for good.
 */

const ENDED = "done cancelled truncated stalled failed interrupted expired".split(" ");

/** A refusal of the gateway: `code` is stable, `message` is for people. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The gateway answered ${status}.`);
    this.status = status;
    this.code = problem.code || `http_${status}`;
  }
}

async function call(url, options, also = () => ({})) {
  const response = await fetch(url, { credentials: "include", ...options }); // Another origin too.
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, answer);
  return { ...answer, ...also(response) };
}

/** Read what is left where the gateway has limits: `{posts, tokens}`, or one of them, or none. */
function left({ headers }) {
  const told = (headers.get("RateLimit") ?? "").matchAll(/"(\w+)";r=(\d+)/g);
  return { left: Object.fromEntries(Array.from(told, ([, name, rest]) => [name, Number(rest)])) };
}

/** Cache a completion request; returns `{ticket, stream_url, expires_in, left}`. Costs nothing yet. */
export function ask(body, url = "/tickets") {
  const headers = { "Content-Type": "application/json" };
  return call(url, { method: "POST", headers, body: JSON.stringify(body) }, left);
}

/** Return what the user has spent today and has left: `{days, limits, remaining}`. */
export function usage(url = "/usage") {
  return call(url);
}

/** Cancel a stream; returns `{state}`. */
export function stop(streamUrl) {
  return call(streamUrl, { method: "DELETE" });
}

/** Return the answer so far: `{state, text, finish_reason, usage, last_event_id, attempts}`. */
export function completion(streamUrl) {
  const url = new URL(streamUrl, location.href);
  url.pathname = url.pathname.replace(/stream$/, "completion");
  return call(url);
}

/** Return what one upstream event adds to the text of the first choice. */
export function delta(data) {
  try {
    const choice = JSON.parse(data).choices?.find((each) => each.index === 0);
    return choice?.delta?.content ?? "";
  } catch {
    return ""; // "[DONE]", and whatever else is no JSON.
  }
}

/**
 * Follow a stream to its end; returns `{close()}`. `on` may hold
 *
 *   text(piece), discard(why)    the answer; on `reset` and `gap` what there is of it is void
 *   event(name, data, id)        every event, as it came
 *   open(id), lost(id)           connected (again), after that event; lost, and being retried
 *   failure({code, message, …})  something went wrong; `end` follows
 *   end({state, usage, …})       the last event
 *   closed(refusal)              closed for good without `end`, and why
 *
 * and `also` names the events of upstreams that name theirs. `text` is of chat completions; a stream
 * of any other protocol has it where its URL ends in `&format=text`.
 */
export function follow(streamUrl, on, also = []) {
  const plain = new URL(streamUrl, location.href).searchParams.get("format") === "text";
  const names = ["message", "failure", "reset", "gap", "end", ...also];
  let source, timer, lastId = "", over = false;

  function close() {
    over = true;
    clearTimeout(timer);
    source.close();
  }

  function receive({ type, data, lastEventId }) {
    lastId = lastEventId;
    on.event?.(type, data, lastId);
    if (type === "end") close();
    if (type === "end" || type === "failure") on[type]?.(JSON.parse(data));
    else if (type === "reset" || type === "gap") on.discard?.(type);
    else on.text?.(plain ? data : delta(data));
  }

  async function explain() {
    const answer = await completion(streamUrl).catch((error) => error);
    if (over) return;
    const refused = answer instanceof Refusal && answer.status < 500 && answer.status !== 429;
    const ended = ENDED.includes(answer.state) && answer.last_event_id === lastId;
    if (!refused && !ended) {
      timer = setTimeout(connect, 2000 + 2000 * Math.random());
      return;
    }
    close();
    if (ended) on.end?.(answer);
    else on.closed?.(answer);
  }

  function connect() {
    const url = new URL(streamUrl, location.href);
    if (lastId) url.searchParams.set("last_event_id", lastId);
    source = new EventSource(url, { withCredentials: true });
    source.onopen = () => on.open?.(lastId);
    source.onerror = () => {
      on.lost?.(lastId);
      if (source.readyState === EventSource.CLOSED) explain();
    };
    for (const name of names) source.addEventListener(name, receive);
  }

  connect();
  return { close };
}

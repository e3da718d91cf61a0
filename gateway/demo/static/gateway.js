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

/** Whether there is no use in asking again. */
function final(answer) {
  return answer instanceof Refusal && answer.status < 500 && answer.status !== 429;
}

async function sent(url, options) {
  const response = await fetch(url, { credentials: "include", ...options }); // Another origin too.
  if (response.ok) return response;
  throw new Refusal(response.status, await response.json().catch(() => ({})));
}

async function call(url, options, also = () => ({})) {
  const response = await sent(url, options);
  const answer = await response.json().catch(() => ({}));
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
 * Keep an EventSource open. Where it was closed for good, as by a proxy's error, it is opened again,
 * unless `settle` returns what else is to be done. Returns `{close(), lastId}`.
 */
function hold(address, names, on, receive, settle, after = "") {
  const line = { close, lastId: after };
  let source, timer, over = false;

  function close() {
    over = true;
    clearTimeout(timer);
    source.close();
  }

  async function failed() {
    on.lost?.(line.lastId);
    if (source.readyState !== EventSource.CLOSED) return;
    const settled = await settle(line.lastId);
    if (over) return;
    if (!settled) {
      timer = setTimeout(connect, 2000 + 2000 * Math.random());
      return;
    }
    close();
    settled();
  }

  function connect() {
    const url = new URL(address, location.href);
    if (line.lastId) url.searchParams.set("last_event_id", line.lastId);
    source = new EventSource(url, { withCredentials: true });
    source.onopen = () => on.open?.(line.lastId);
    source.onerror = failed;
    for (const name of names) {
      source.addEventListener(name, ({ type, data, lastEventId }) => {
        line.lastId = lastEventId;
        on.event?.(type, data, lastEventId);
        receive(type, data);
      });
    }
  }

  connect();
  return line;
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

  function receive(type, data) {
    if (type === "end") line.close();
    if (type === "end" || type === "failure") on[type]?.(JSON.parse(data));
    else if (type === "reset" || type === "gap") on.discard?.(type);
    else on.text?.(plain ? data : delta(data));
  }

  async function settle(lastId) {
    const answer = await completion(streamUrl).catch((error) => error);
    if (final(answer)) return () => on.closed?.(answer);
    const ended = ENDED.includes(answer.state) && answer.last_event_id === lastId;
    return ended ? () => on.end?.(answer) : null;
  }

  const names = ["message", "failure", "reset", "gap", "end", ...also];
  const line = hold(streamUrl, names, on, receive, settle);
  return line;
}

/**
 * Follow the streams of many tickets, and the user's channel, over one connection; returns
 * `{close(), lastId}`. `on` may hold what it may for `follow`, where `text`, `discard`, `failure` and
 * `end` have the place of the ticket in the list, from 0, before all else, and
 *
 *   snapshot(k, {text, …})  with `&snapshot=1`: what a stream begins with, if it has begun before
 *   message(data, name)     of the channel
 *   missed()                some of its messages are not kept any more
 *
 * `url` may say more (`/events?from=start`), `after` is a `lastId` to go on from, and `also` names
 * the named events of the channel. `text` is as for `follow`.
 */
export function followAll(tickets, on, { url = "/events", after = "", also = [] } = {}) {
  const address = new URL(url, location.href);
  const plain = address.searchParams.get("format") === "text";
  for (const ticket of tickets) address.searchParams.append("ticket", ticket);
  const each = ["", ".failure", ".reset", ".gap", ".end", ".snapshot"];
  const names = tickets.flatMap((_, k) => each.map((name) => `${k + 1}${name}`));

  function receive(type, data) {
    const [, number, name] = /^(\d+)\.?(.*)$/.exec(type) ?? [];
    if (!number) return type === "gap" ? on.missed?.() : on.message?.(data, type);
    if (!name) return on.text?.(number - 1, plain ? data : delta(data));
    if (name === "reset" || name === "gap") return on.discard?.(number - 1, name);
    return on[name]?.(number - 1, JSON.parse(data));
  }

  /** Ask what the EventSource was answered, which it does not tell. */
  async function settle() {
    const asked = sent(address, { headers: { Accept: "text/event-stream" } });
    const answer = await asked.then(({ body }) => body.cancel()).catch((error) => error);
    return final(answer) ? () => on.closed?.(answer) : null;
  }

  return hold(address, ["message", "gap", ...names, ...also], on, receive, settle, after);
}

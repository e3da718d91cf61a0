/** A client of the gateway; gateway.d.ts tells what all of it is for. */

export const settings = { gateway: "/", heartbeat: 15, user: "", events: [] };

const OURS = ["failure", "reset", "gap", "end", "snapshot"];

export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || `The gateway answered ${problem.status}.`);
    Object.assign(this, { code: `http_${problem.status}` }, problem);
  }
}

/** Whether there is no use in asking again. */
function final(answer) {
  return answer instanceof Refusal && answer.status < 500 && answer.status !== 429;
}

async function sent(url, options) {
  const answer = await fetch(url, { credentials: "include", ...options });
  if (answer.ok) return answer;
  const { status } = answer;
  throw new Refusal({ status, ...(await answer.json().catch(() => ({}))) });
}

async function call(url, options) {
  const answer = await sent(url, options);
  const left = {};
  const told = answer.headers.get("RateLimit") ?? "";
  for (const [, name, rest] of told.matchAll(/"(\w+)";r=(\d+)/g)) left[name] = Number(rest);
  return { left, ...(await answer.json().catch(() => ({}))) };
}

export function ask(body, url = "/tickets", { headers, signal } = {}) {
  const all = { "Content-Type": "application/json", ...headers };
  return call(url, { method: "POST", headers: all, body: JSON.stringify(body), signal });
}

export const usage = (url = "/usage") => call(url);
export const stop = (url) => call(url, { method: "DELETE" });
export const completion = (url) => call(url.replace("stream?", "completion?"));

export function delta(data) {
  try {
    return JSON.parse(data).choices.find((each) => each.index === 0).delta.content ?? "";
  } catch {
    return ""; // As "[DONE]".
  }
}

/** Call `silent` where nothing is `heard()`, as of a connection that died in a sleep. */
function guard(silent, online) {
  const life = new AbortController();
  const beat = 1000 * settings.heartbeat;
  const heard = () => (last = Date.now()); // Other clocks stand still in a sleep.
  const check = (beats) => Date.now() - last < beats * beat || silent(heard());
  const timer = setInterval(check, beat / 2, 2.5);
  let last;
  heard();
  addEventListener("online", () => check(online), life);
  addEventListener("visibilitychange", () => document.hidden || check(1.5), life);
  life.signal.onabort = () => clearInterval(timer);
  return { heard, close: () => life.abort() };
}

/** Keep an EventSource open: where it is closed for good, or silent, it is opened again. */
function hold(url, names, on, receive, after = "") {
  const line = { close, tell, lastId: after };
  const dog = guard(lost, 0);
  let source, timer;

  function close() {
    dog.close();
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function lost() {
    on.lost?.(line.lastId);
    connect();
  }

  async function failed({ target }) {
    on.lost?.(line.lastId);
    if (target.readyState < 2) return;
    // It does not tell what it was answered.
    const headers = { Accept: "text/event-stream" };
    const answer = await sent(url, { headers }).catch((error) => error);
    answer.body?.cancel();
    if (target !== source) return;
    if (!final(answer)) return (timer = setTimeout(connect, 2000 + 2000 * Math.random()));
    close();
    on.closed?.(answer);
  }

  function connect() {
    clearTimeout(timer);
    source?.close();
    const asked = new URL(url);
    asked.searchParams.set("heartbeat", "event");
    if (line.lastId) asked.searchParams.set("last_event_id", line.lastId);
    source = new EventSource(asked, { withCredentials: true });
    source.onopen = () => on.open?.(line.lastId);
    source.onerror = failed;
    for (const name of ["heartbeat", "message", ...names]) {
      source.addEventListener(name, ({ type, data, lastEventId }) => {
        dog.heard();
        line.lastId = lastEventId || line.lastId; // A new one has none at first.
        if (type !== "heartbeat") {
          on.event?.(type, data, lastEventId);
          receive(type, data, line);
        }
        on.alive?.(line.lastId);
      });
    }
  }

  function tell(name, data, ...k) {
    if (name === "reset" || name === "gap") on.discard?.(...k, name);
    else if (OURS.includes(name)) on[name]?.(...k, JSON.parse(data));
    else on.text?.(...k, url.searchParams.get("format") ? data : delta(data));
  }

  connect();
  return line;
}

export function follow(url, on, also = []) {
  return hold(new URL(url, location), [...OURS, ...also], on, (type, data, line) => {
    if (type === "end") line.close();
    line.tell(type, data);
  });
}

export function followAll(tickets, on, { url = "/events", after, also = [] } = {}) {
  const address = new URL(url, location);
  const names = [];
  tickets.forEach((ticket, k) => {
    address.searchParams.append("ticket", ticket);
    names.push(`${k + 1}`, ...OURS.map((name) => `${k + 1}.${name}`));
  });
  return hold(address, ["gap", ...names, ...also], on, (type, data, line) => {
    const [number, name] = type.split(".");
    if (number > 0) line.tell(name, data, number - 1);
    else if (type === "gap") on.missed?.();
    else on.message?.(data, type);
  }, after);
}

const hearers = new Set();
let list = []; // Who reads a stream of the one connection, in its order.
let at = [0, 0]; // In the channel.
let line, posted, soon, bus, dog, release;

const base = (path) => new URL(settings.gateway + path, location);
const idle = () => !release && list.every(({ over }) => over);

function open() {
  const after = line?.lastId || (at[0] ? at.join("-") : "");
  const mine = list;
  shut();
  if (idle()) return;
  const on = {
    message: (data, type) => pass(line.lastId, type, data),
    missed: () => pass(line.lastId, "gap"),
    alive(id) {
      if (idle()) shut();
      if (Date.now() - posted < 500 * settings.heartbeat) return;
      posted = Date.now();
      pass(id);
    },
    closed(refusal) {
      list = list.slice(mine.length);
      for (const each of mine.length ? mine : hearers) each.closed?.(refusal);
      if (mine.length) open();
      else leave();
    },
  };
  for (const name of [...OURS, "discard", "text"]) on[name] = (k, told) => mine[k][name](told);
  const url = base("events?format=text&snapshot=1");
  line = followAll(mine.map(({ ticket }) => ticket), on, { url, after, also: settings.events });
}

function shut() {
  line?.close();
  line = soon = null;
}

/** Tell a message once, whichever tab has it. */
function pass(id, type, data, other) {
  const [alone, composite] = id.split(".");
  const [epoch, seq] = (composite ?? alone).split("-").map((n) => parseInt(n, composite ? 36 : 10));
  const newer = epoch > at[0] || (epoch === at[0] && seq > at[1]);
  if (newer) at = [epoch, seq];
  for (const on of hearers) {
    if (type === "gap") on.missed?.();
    else if (type && newer) on.message?.(data, type);
  }
  if (release && !other) bus?.postMessage([id, type, data, true]);
}

/** Have the channel for all tabs, when the one with it dies, or is silent. */
async function lead(options) {
  let mine;
  const held = () => hearers.size && new Promise((resolve) => open((release = mine = resolve)));
  await navigator.locks.request(`gateway ${settings.user}`, options, held).catch(() => {});
  if (!mine || mine !== release) return;
  release = null; // Stolen.
  open();
  lead({});
}

function join() {
  at = [0, 0]; // It begins with what comes next.
  if (!navigator.locks) return open((release = () => {}));
  bus = new BroadcastChannel(`gateway ${settings.user}`);
  bus.onmessage = ({ data }) => {
    dog.heard();
    if (data.length) pass(...data);
    else if (release) bus.postMessage([at.join("-")]);
  };
  bus.postMessage([]);
  dog = guard(() => release || lead({ steal: true }), 2.5);
  lead({});
}

function leave() {
  hearers.clear();
  dog?.close();
  bus?.close();
  release?.();
  release = null;
  open();
}

export function listen(on) {
  hearers.add(on);
  if (hearers.size < 2) join();
  return { close: () => hearers.delete(on) && !hearers.size && leave() };
}

function attach(on, url) {
  on.ticket = new URL(url, location).searchParams.get("ticket");
  if (list.every(({ over }) => over)) {
    list = []; // Another list has no position of this one.
    shut();
  }
  if (list.length > 31 || list.some(({ ticket }) => ticket === on.ticket)) {
    return follow(`${url}&format=text`, on);
  }
  list = [...list, on];
  soon ??= setTimeout(open, 20); // For all asked at once.
}

export function read(url, { signal, discard, key } = {}) {
  const answer = { text: "", [Symbol.asyncIterator]: pieces };
  let fresh = "";
  let anew, failed, wake;
  const on = {
    text(piece) {
      fresh += piece;
      wake?.();
    },
    snapshot: ({ text }) => on.text(text),
    discard() {
      fresh = "";
      anew = answer.text;
    },
    failure: (told) => (failed = told),
    end(told) {
      const { state } = (answer.end = told);
      on.closed(state === "done" || new Refusal({ code: state, title: state, ...failed, state }));
    },
    closed(over) {
      on.over = over;
      wake?.();
    },
  };

  async function* pieces() {
    const stream = await (url.call ? url() : url);
    attach(on, stream);
    const drop = () => key && kept(key)?.stream === stream && forget(key); // No later one.
    signal?.addEventListener("abort", () => {
      on.over || drop(); // Before it is asked again.
      wake?.();
    });
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (anew) {
          if (!discard) throw new Refusal({ code: "begun_anew", title: "The text so far is void." });
          discard();
          anew = answer.text = "";
        }
        const piece = fresh;
        fresh = "";
        answer.text += piece;
        if (piece) yield piece;
        else if (on.over === true) return;
        else if (on.over) throw on.over;
        else await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      if (on.over !== true && !signal?.aborted) drop();
      if (!on.over) stop(stream).catch(() => {});
    }
  }

  return answer;
}

export const forget = (key) => key && sessionStorage.removeItem(`gateway ${key}`);
const kept = (key) => JSON.parse(sessionStorage.getItem(`gateway ${key}`));

export function complete(body, options = {}) {
  const { key, signal, url = base("tickets") } = options;
  const text = JSON.stringify(body);

  function keep(had) {
    if (key) sessionStorage.setItem(`gateway ${key}`, JSON.stringify(had));
    return had;
  }

  async function begin() {
    let had = key && kept(key);
    if (had?.text !== text) had = keep({ text, id: `${Math.random()}` });
    const { id, stream } = had;
    if (!stream) {
      const headers = { "Idempotency-Key": id };
      const { stream_url } = await ask(body, url, { headers, signal });
      return keep({ text, stream: stream_url }).stream;
    }
    const answer = await completion(stream).catch((error) => error);
    if (!final(answer)) return stream;
    forget(key);
    throw answer; // It would refuse all.
  }

  return read(begin, options);
}

export function resume(key, options) {
  const had = kept(key);
  return had && complete(JSON.parse(had.text), { ...options, key });
}

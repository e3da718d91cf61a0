/** The demo page: one answer, its raw events, and a second viewer. Text is only ever text here. */

import { completion, delta, follow, stop, usage } from "./gateway.js";
import { $, GATEWAY, ticketFor, words } from "./session.js";

const ROWS = 200;
const SHOWN = 400; // Characters of an event's data in its row.
const TIP = "While it writes, cut the connection or reload this page.";
const NAMED = ["chunk", "upstream-open", "upstream-end"]; // What the pretend upstream may name.
const VOID = {
  reset: "The replica died, the model is asked again",
  gap: "The log began anew",
}; // Events after which the text so far is void, and why.

let current = null; // The stream on the page: {url, follower, text, reconnects, lost, ended}.
let account = null; // What the user has spent today and has left, as it was told last.
let second = null; // The second viewer's EventSource.

function setState(state) {
  $("state").textContent = state;
  $("state").dataset.state = state;
  const running = Boolean(current) && !current.ended;
  $("answer").setAttribute("aria-busy", String(running));
  $("stop").disabled = $("cut").disabled = !running;
  $("second").disabled = !current;
}

function notice(text, kind = "") {
  $("notice").textContent = text;
  $("notice").dataset.kind = kind;
}

function showAccount() {
  $("account").hidden = !account;
  if (!account) return;
  const sum = (name) => account.days.reduce((all, day) => all + day[name], 0);
  const tokens = sum("prompt_tokens") + sum("completion_tokens");
  const { tokens_per_day, posts_per_minute } = account.remaining;
  const left = [];
  if (tokens_per_day !== undefined) left.push(`${tokens_per_day.toLocaleString("en")} tokens`);
  if (posts_per_minute !== undefined) left.push(`${posts_per_minute} requests this minute`);
  const spent = `Streams today: ${sum("streams")}, tokens: ${tokens.toLocaleString("en")}.`;
  $("account").textContent = left.length ? `${spent} Left: ${left.join(", ")}.` : spent;
}

/** Ask what is spent and left: what has ended is booked. */
async function balance() {
  account = await usage(`${GATEWAY}/usage`).catch(() => null);
  showAccount();
}

/** Show what the answer to a request has told of it. */
function spend({ posts, tokens }) {
  if (!account) return;
  if (posts !== undefined) account.remaining.posts_per_minute = posts;
  if (tokens !== undefined) account.remaining.tokens_per_day = tokens;
  showAccount();
}

function row(name, data, id) {
  const line = document.createElement("tr");
  const piece = delta(data);
  line.dataset.event = name;
  for (const text of piece ? [id, name, JSON.stringify(piece), data] : [id, name, data]) {
    const title = text.slice(0, SHOWN);
    // The epoch is the same in every row, and as wide as the text beside it.
    const textContent = text === id ? title.replace(/^\d+-/, "…-") : title;
    line.append(Object.assign(document.createElement("td"), { textContent, title }));
  }
  line.lastChild.colSpan = piece ? 1 : 2;
  const box = $("scroll");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  $("events").append(line);
  if ($("events").rows.length > ROWS) $("events").rows[0].remove();
  $("last-id").textContent = id;
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function facts({ finish_reason, usage, attempts }) {
  $("finish").textContent = finish_reason ?? "none";
  const guess = usage?.estimated ? "about " : "";
  $("usage").textContent = usage
    ? `${usage.prompt_tokens ?? "?"}, ${guess}${usage.completion_tokens ?? "?"}`
    : "unknown";
  $("attempts").textContent = attempts ?? "unknown";
  $("reconnects").textContent = current.reconnects;
  $("facts").hidden = false;
}

/** Show an answer's stream, from its start. */
function watch(url) {
  const mine = { url, text: "", reconnects: 0, lost: false, ended: false, failed: false };
  const late = () => current !== mine;
  current = mine;
  setState("cached");

  function write(piece) {
    mine.text += piece;
    $("answer").append(piece);
  }

  function reopened(id) {
    if (mine.lost) {
      mine.reconnects += 1;
      notice(id ? `Resumed from id ${id}.` : "Connected again, from the start.", "good");
    }
    mine.lost = false;
    if ($("state").textContent === "cached") setState("starting");
  }

  async function ended(end) {
    mine.ended = true;
    setState(end.state);
    facts(end);
    balance();
    const logged = await completion(url).catch(() => null);
    if (late() || mine.failed || !logged) return;
    const same = logged.text === mine.text;
    const size = `${mine.text.length} characters`;
    if (same) notice(`What you see is what the gateway logged: ${size}, none lost, none twice.`, "good");
    else notice(`The log says something else (${logged.text.length} of ${size}).`, "bad");
  }

  mine.follower = follow(url, {
    open: reopened,
    lost(id) {
      mine.lost = true;
      notice(`Connection lost, reconnecting… from id ${id || "none"}.`, "wait");
    },
    event(name, data, id) {
      row(name, data, id);
      if (name === "message" || NAMED.includes(name)) setState("streaming");
    },
    text: write,
    discard(why) {
      mine.text = $("answer").textContent = "";
      notice(`${VOID[why]}: the text so far is void.`, "wait");
    },
    failure({ code, message, status }) {
      mine.failed = true;
      const answered = status ? `, upstream status ${status}` : "";
      notice(`${message} (${code}${answered})`, "bad");
    },
    end: ended,
    closed(refusal) {
      mine.ended = true;
      forget();
      setState("closed");
      notice(words(refusal), "bad");
    },
  }, NAMED);
}

function forget() {
  for (const name of ["stream_url", "prompt"]) sessionStorage.removeItem(name);
}

/** Leave the stream on the page, cancelling it if it still runs, and clear the page. */
function leave() {
  if (current && !current.ended) stop(current.url).catch(() => {});
  current?.follower.close();
  closeSecond();
  current = null;
  forget();
  $("answer").textContent = $("events").textContent = "";
  $("last-id").textContent = "none";
  $("facts").hidden = true;
  notice("");
}

async function submit(event) {
  event.preventDefault();
  leave();
  setState("asking");
  const messages = [{ role: "user", content: $("prompt").value }];
  const body = { model: $("model").value, messages };
  if ($("fault").value) body.pretend = { fault: $("fault").value };
  $("ask").disabled = true;
  try {
    const { stream_url, left } = await ticketFor(body);
    spend(left);
    sessionStorage.setItem("stream_url", stream_url);
    sessionStorage.setItem("prompt", $("prompt").value);
    notice(TIP);
    watch(stream_url);
  } catch (error) {
    setState("refused");
    notice(words(error), "bad");
  } finally {
    $("ask").disabled = false;
  }
}

async function cancel() {
  $("stop").disabled = true;
  try {
    await stop(current.url); // The `end` event tells the rest, to every viewer.
  } catch (error) {
    notice(`Not stopped. ${words(error)}`, "bad");
    $("stop").disabled = false;
  }
}

async function cut() {
  const ticket = new URL(current.url, location.href).searchParams.get("ticket");
  const answer = await fetch(`/demo/cut?ticket=${encodeURIComponent(ticket)}`, { method: "POST" });
  const { closed } = await answer.json().catch(() => ({}));
  if (answer.status === 404) notice("This page cannot cut it. Stop or restart a replica instead.", "wait");
  else if (!closed) notice("There was no open connection to cut.", "wait");
}

function openSecond() {
  const label = $("state2");
  const es = new EventSource(current.url);
  $("answer2").textContent = "";
  es.onmessage = (event) => $("answer2").append(delta(event.data));
  for (const name of NAMED) es.addEventListener(name, es.onmessage);
  for (const name in VOID) es.addEventListener(name, () => ($("answer2").textContent = ""));
  es.onopen = () => (label.textContent = "following");
  es.onerror = () => {
    // After the end's id the gateway answers 204, which is how a browser is told to stop for good.
    const closed = es.readyState === EventSource.CLOSED;
    const same = $("answer2").textContent === $("answer").textContent;
    label.textContent = closed ? `closed, ${same ? "same text" : "other text"}` : "reconnecting…";
    label.dataset.state = closed && same ? "done" : "";
  };
  second = es;
  showSecond(true);
}

function closeSecond() {
  second?.close();
  second = null;
  showSecond(false);
}

function showSecond(open) {
  $("viewer2").hidden = !open;
  $("second").setAttribute("aria-expanded", String(open));
  $("second").textContent = open ? "Close the second viewer" : "Open a second viewer";
}

function restore() {
  const url = sessionStorage.getItem("stream_url");
  if (!url) return;
  $("prompt").value = sessionStorage.getItem("prompt") ?? "";
  notice("Picked up after a reload: the log replays, then follows live.", "good");
  watch(url);
}

$("form").addEventListener("submit", submit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("stop").addEventListener("click", cancel);
$("cut").addEventListener("click", cut);
$("second").addEventListener("click", () => (second ? closeSecond() : openSecond()));
document.addEventListener("spent", balance);
notice(TIP);
balance();
restore();

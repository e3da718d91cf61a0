/** The demo page's first part: one answer, two ways to fetch it. Text is only ever text here. */

import { completion, follow, stop, usage } from "./gateway.js";
import { askPlainly, cutPlain, stopPlain } from "./plain.js";
import { closeSecond, openSecond, secondIsOpen } from "./second.js";
import {
  $, enable, GATEWAY, KILLS, onPress, PRESET, show, store, stored, ticketFor, words, wordsOf,
} from "./session.js";
import { hear, hearWhole, hush } from "./spoken.js";
import { begin, count, replicas, tell } from "./story.js";

const ROWS = 200;
const SHOWN = 400; // Characters of an event's data in its row.
const TIP = "While it writes, cut the line, kill its server, or reload this page.";
const VOID = {
  reset: "The replica died, the model is asked again",
  gap: "The log began anew",
}; // Events after which the text so far is void, and why.

let current = null; // The stream on the page: {url, follower, text, reconnects, lost, ended}.
let account = null; // What the user has spent today and has left, as it was told last.

function setState(state) {
  show($("state"), state);
  const running = Boolean(current) && !current.ended;
  $("answer").setAttribute("aria-busy", String(running));
  for (const id of ["stop", "cut", "kill"]) enable(id, running);
  enable("second", Boolean(current));
}

/** Say something below the answer, and keep it among what happened. */
function notice(text, kind = "") {
  $("notice").textContent = text;
  $("notice").dataset.kind = kind;
  if (kind) tell(text);
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
  line.dataset.event = name;
  const shown = name === "message" ? JSON.stringify(data) : data;
  for (const text of [id, name, shown]) {
    const title = text.slice(0, SHOWN);
    // The epoch is the same in every row, and as wide as the text beside it.
    const textContent = text === id ? title.replace(/^\d+-/, "…-") : title;
    line.append(Object.assign(document.createElement("td"), { textContent, title }));
  }
  line.firstChild.className = "id";
  const box = $("scroll");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  $("events").append(line);
  if ($("events").rows.length > ROWS) $("events").rows[0].remove();
  $("last-id").textContent = id;
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function facts({ finish_reason, tokens, attempts }) {
  $("finish").textContent = finish_reason ?? "it was not whole";
  const { prompt, completion: told, estimated } = tokens ?? {};
  const about = estimated ? "about " : "";
  $("usage").textContent = told == null ? "unknown" : `${prompt ?? "?"} in, ${about}${told} tokens out`;
  $("attempts").textContent = attempts ?? "unknown";
  $("reconnects").textContent = current.reconnects;
  $("facts").hidden = false;
}

/** Compare what is shown with what the gateway has logged. */
function compared(shown, logged) {
  const one = logged.startsWith(shown) || shown.startsWith(logged); // Either may be ahead.
  return one ? "0 lost, 0 twice" : "the log says something else";
}

/** Show an answer's stream, from its start. */
function watch(url) {
  const mine = { url, text: "", reconnects: 0, lost: 0, ended: false, failed: false };
  const late = () => current !== mine;
  current = mine;
  setState("cached");

  function write(piece) {
    mine.text += piece;
    const box = $("answer");
    box.append(piece);
    box.scrollTop = box.scrollHeight;
    hear(piece);
    if ($("state").dataset.state !== "streaming") arrived();
  }

  function arrived() {
    setState("streaming");
    count();
  }

  async function reopened() {
    const since = mine.lost;
    if ($("state").dataset.state !== "streaming") setState("starting");
    if (!since) return;
    mine.lost = 0;
    mine.reconnects += 1;
    const logged = await completion(url).catch(() => null);
    if (late() || mine.lost || !logged) return;
    const seconds = ((Date.now() - since) / 1000).toFixed(1);
    const resumed = `Resumed after ${seconds} s: ${compared(mine.text, logged.text)}.`;
    if (mine.ended) tell(resumed); // What is said of the end stays below the answer.
    else notice(resumed, "good");
  }

  async function ended(end) {
    mine.ended = true;
    setState(end.state);
    facts(end);
    hearWhole(mine.text);
    balance();
    count();
    replicas();
    const logged = await completion(url).catch(() => null);
    if (late() || mine.failed || !logged) return;
    const same = logged.text === mine.text;
    const size = wordsOf(mine.text);
    const stopped = end.state === "cancelled" ? "Stopped by you. " : "";
    if (same) notice(`${stopped}${size}, as logged: 0 lost, 0 twice.`, "good");
    else notice(`The log says something else than these ${size}.`, "bad");
  }

  mine.follower = follow(url, {
    open: reopened,
    lost() {
      if (!mine.lost) notice(`Connection lost. ${wordsOf(mine.text)} are safe.`, "wait");
      mine.lost ||= Date.now();
      show($("state"), "lost");
    },
    event: row,
    text: write,
    discard(why) {
      mine.text = $("answer").textContent = "";
      hush();
      notice(`${VOID[why]}: the text so far is void.`, "wait");
    },
    failure({ code, message, status }) {
      mine.failed = true;
      const answered = status ? `, its status was ${status}` : "";
      notice(`${message} (${code}${answered})`, "bad");
    },
    end: ended,
    closed(refusal) {
      mine.ended = true;
      forget();
      setState("closed");
      notice(words(refusal), "bad");
    },
  });
}

function forget() {
  sessionStorage.removeItem("asked");
}

/** Leave the stream on the page, cancelling it if it still runs, and clear the page. */
function leave() {
  if (current && !current.ended) stop(current.url).catch(() => {});
  current?.follower.close();
  closeSecond();
  current = null;
  forget();
  begin();
  hush();
  $("answer").textContent = $("events").textContent = "";
  $("last-id").textContent = "none";
  $("facts").hidden = true;
  notice("");
}

async function submit(event) {
  event.preventDefault();
  if ($("ask").getAttribute("aria-disabled") === "true") return;
  leave();
  setState("asking");
  enable("ask", false);
  const [prompt, fault, ask] = [$("prompt").value, $("fault").value, crypto.randomUUID()];
  const preset = fault ? "" : PRESET;
  const asked = fault && fault !== "keeps-nothing" ? fault : "";
  const pretend = { ...(PRESET && { ask }), ...(asked && { fault: asked }) };
  store("ask", ask);
  try {
    const { stream_url, left } = await ticketFor(prompt, pretend, preset);
    spend(left);
    store("asked", { stream_url, prompt, fault });
    notice(TIP);
    watch(stream_url);
    askPlainly({ ask, prompt, fault: asked });
    $("stop").focus();
  } catch (error) {
    setState("refused");
    notice(words(error), "bad");
  } finally {
    enable("ask", true);
  }
}

async function cancel() {
  enable("stop", false);
  stopPlain();
  try {
    await stop(current.url); // The `end` event tells the rest, to every viewer.
  } catch (error) {
    notice(`Not stopped. ${words(error)}`, "bad");
    enable("stop", true);
  }
}

async function cut() {
  const ticket = new URL(current.url, location.href).searchParams.get("ticket");
  const both = fetch(`/demo/cut?ticket=${encodeURIComponent(ticket)}`, { method: "POST" });
  cutPlain();
  const answer = await both;
  const { closed } = await answer.json().catch(() => ({}));
  if (answer.status === 404) notice("This page cannot cut it. Stop or restart a replica instead.", "wait");
  else if (!closed) notice("There was no open connection to cut.", "wait");
}

async function kill() {
  const answer = await fetch("/demo/kill", { method: "POST" });
  const { killed } = await answer.json().catch(() => ({}));
  if (killed) tell(`Replica ${killed.number} (process ${killed.pid}) was killed: kill -9.`);
  else notice("The other replica is not up yet. Once it is, this one may die.", "wait");
  replicas();
}

function toggleSecond() {
  if (secondIsOpen()) closeSecond();
  else openSecond(current.url, Object.keys(VOID), () => $("answer").textContent);
}

function showIds() {
  document.body.classList.toggle("ids", $("ids").checked);
  store("ids", $("ids").checked);
}

function restore() {
  $("ids").checked = stored("ids", false);
  showIds();
  const asked = stored("asked", null);
  if (!asked) return;
  $("prompt").value = asked.prompt ?? "";
  $("fault").value = asked.fault ?? "";
  notice("Picked up after a reload: the log replays, then follows live.", "good");
  watch(asked.stream_url);
}

for (const each of document.querySelectorAll("[data-own]")) each.hidden = !PRESET;
for (const each of document.querySelectorAll("[data-kill-only]")) each.hidden = !KILLS;
$("form").addEventListener("submit", submit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("language").addEventListener("change", () => ($("prompt").value = $("language").value));
$("ids").addEventListener("change", showIds);
onPress("stop", cancel);
onPress("cut", cut);
onPress("kill", kill);
onPress("second", toggleSecond);
document.addEventListener("spent", balance);
notice(TIP);
balance();
restore();

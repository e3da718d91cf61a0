/** The second pane: a loop around fetch, as pages have it. Its answer lives in one connection. */

import { $, enable, onPress, PRESET, show, store, stored, wordsOf } from "./session.js";

let now = null; // What is in the pane: {ask, prompt, fault, text, state}.
let line = null; // Its AbortController while it runs.
let leaving = false; // What breaks then was broken by who leaves the page.

const AT_ONCE = /^(status|html|hang)/; // Faults before there is anything to lose.

/** Ask in the pane what is asked with the gateway; `ask` names it in the upstream's books. */
export function askPlainly({ ask, prompt, fault }) {
  if (!PRESET) return;
  line?.abort();
  line = null;
  if (AT_ONCE.test(fault)) {
    now = { text: "", state: "idle" };
    $("plain").textContent = "";
    become(now, "idle");
    return;
  }
  now = { ask: `${ask}-plain`, prompt, fault, text: "", state: "asking" };
  run();
}

export function stopPlain() {
  line?.abort();
}

/** Cut its connection; the page's server does it, as a network would. */
export function cutPlain() {
  return now && line ? fetch(`/demo/cut?ticket=${now.ask}`, { method: "POST" }) : null;
}

async function run() {
  const [mine, mineLine] = [now, new AbortController()];
  line = mineLine;
  $("plain").textContent = mine.text = "";
  become(mine, "asking");
  try {
    const whole = await read(mine, mineLine.signal);
    become(mine, whole ? "done" : "died");
  } catch {
    become(mine, mineLine.signal.aborted ? "cancelled" : "died");
  }
  if (now === mine) line = null;
}

/** The loop: read, split, append. Return whether the answer came to its end. */
async function read(mine, signal) {
  const { prompt, fault, ask } = mine;
  const pretend = fault ? { ask, fault } : { ask };
  const body = { model: $("model").value, messages: [{ role: "user", content: prompt }], stream: true, pretend };
  const options = { method: "POST", body: JSON.stringify(body), signal };
  const answer = await fetch(`/demo/plain?ask=${ask}`, options);
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  become(mine, "streaming");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return false;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const data of lines.filter((each) => each.startsWith("data: "))) {
      if (data === "data: [DONE]") return true;
      write(mine, JSON.parse(data.slice(6)).choices?.[0]?.delta?.content ?? "");
    }
  }
}

function write(mine, piece) {
  if (now !== mine) return;
  mine.text += piece;
  $("plain").append(piece);
  $("plain").scrollTop = $("plain").scrollHeight;
  store("plain", mine);
}

const SAID = {
  died: (text) => `Connection lost. ${wordsOf(text)} were paid for; the rest cannot be had.`,
  reloaded: (text) => `Reloaded: ${wordsOf(text)} are gone, and stay paid for.`,
  cancelled: (text) => `Stopped by you after ${wordsOf(text)}.`,
};

function become(mine, state) {
  if (now !== mine || leaving) return;
  mine.state = state;
  store("plain", mine);
  show($("plain-state"), state === "reloaded" ? "died" : state);
  $("without").dataset.state = state;
  $("plain-notice").textContent = SAID[state]?.(mine.text) ?? "";
  $("plain-notice").dataset.kind = state === "cancelled" ? "" : "bad";
  enable("again", ["died", "reloaded", "cancelled"].includes(state));
  document.dispatchEvent(new Event("asked"));
}

onPress("again", run);
for (const name of ["beforeunload", "pagehide"]) addEventListener(name, () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));

/** After a reload: its connection went with the page. */
now = PRESET ? stored("plain", null) : null;
if (now) {
  const running = ["asking", "streaming", "reloaded"].includes(now.state);
  $("plain").textContent = running ? "" : now.text;
  become(now, running ? "reloaded" : now.state);
}

/** What all parts of the page share: where the gateway is, tickets, and words for what happens. */

import { ask, Refusal } from "./gateway.js";

export const { gateway: GATEWAY, preset: PRESET } = document.documentElement.dataset;
export const KILLS = Boolean(document.documentElement.dataset.kill);

export const $ = (id) => document.getElementById(id);

/** A stream's state, as people say it. */
export const STATES = {
  idle: "ready", asking: "asking", cached: "waiting", starting: "waiting", streaming: "writing",
  lost: "reconnecting", done: "whole", cancelled: "stopped by you", truncated: "cut short",
  stalled: "fell silent", failed: "failed", interrupted: "its server died", expired: "too late",
  refused: "refused", closed: "closed", died: "dead", follows: "following",
};

/** Show a state in a badge. */
export function show(badge, state) {
  badge.textContent = STATES[state] ?? state;
  badge.dataset.state = state;
}

/** Enable or disable a button that keeps its focus either way. */
export function enable(id, on) {
  $(id).setAttribute("aria-disabled", String(!on));
}

/** Have a button do something while it is enabled. */
export function onPress(id, act) {
  $(id).addEventListener("click", (event) => {
    if ($(id).getAttribute("aria-disabled") !== "true") act(event);
  });
}

export function words(error) {
  if (!(error instanceof Refusal)) return "The gateway does not answer.";
  if (error.status === 401) return "That was an earlier session. Ask again.";
  return `${error.message} (${error.code})`;
}

export function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

const segmenter = globalThis.Intl?.Segmenter && new Intl.Segmenter("en", { granularity: "word" });

/** Say how many words a text has, in any script. */
export function wordsOf(text) {
  if (!segmenter) return count(text.split(/\s+/).filter(Boolean).length, "word");
  return count([...segmenter.segment(text)].filter((each) => each.isWordLike).length, "word");
}

export function stored(name, otherwise) {
  return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
}

export function store(name, value) {
  sessionStorage.setItem(name, JSON.stringify(value));
}

/** Become somebody new; the page hears of it by the event `renewed`. */
export async function renew() {
  await fetch("/", { method: "POST" });
  document.dispatchEvent(new Event("renewed"));
}

/**
 * Get a ticket for a prompt; its stream is of text, whatever the upstream speaks. A cookie that an
 * earlier demo signed is changed for a new one. Without `pretend` the preset is asked that keeps.
 */
export async function ticketFor(prompt, pretend = {}, preset = PRESET) {
  const said = preset ? { input: prompt } : { messages: [{ role: "user", content: prompt }] };
  const body = { model: $("model").value, ...said };
  if (Object.keys(pretend).length) body.pretend = pretend;
  const url = `${GATEWAY}/tickets${preset && `/${preset}`}`;
  const answer = await ask(body, url).catch(async (error) => {
    if (!(error instanceof Refusal) || error.status !== 401) throw error;
    await renew();
    return ask(body, url);
  });
  return { ...answer, stream_url: `${answer.stream_url}&format=text` };
}

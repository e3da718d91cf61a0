/** What happened, in a list that survives a reload; and what it cost, from the upstream's books. */

import { $, KILLS, PRESET, store, stored } from "./session.js";

const LINES = 40;

let story = stored("story", []);

function line({ at, text }) {
  const item = document.createElement("li");
  const time = Object.assign(document.createElement("time"), { textContent: at });
  item.append(time, ` ${text}`);
  $("story").append(item);
  if ($("story").children.length > LINES) $("story").firstChild.remove();
}

export function tell(text) {
  const told = { at: new Date().toLocaleTimeString(), text };
  story = [...story, told].slice(-LINES);
  store("story", story);
  line(told);
}

/** Begin another story. */
export function begin() {
  story = [];
  store("story", story);
  $("story").textContent = "";
}

async function callsOf(ask) {
  const answer = await fetch(`/pretend/calls?ask=${ask}`);
  const { calls } = await answer.json();
  return calls.filter(({ status }) => status === 200).length;
}

/** Show how often the upstream began an answer, as it says itself. */
export async function count() {
  const ask = stored("ask", null);
  if (!PRESET || !ask) return;
  const asked = [ask, `${ask}-plain`].map((each) => callsOf(each).catch(() => null));
  const [ours, plain] = await Promise.all(asked);
  if (ours === null || plain === null || ask !== stored("ask", null)) return;
  $("paid").textContent = ours;
  $("plain-paid").textContent = plain;
  $("verdict").textContent = plain > ours ? `Paid: ${plain} against ${ours}.` : "";
}

let looking = 0;

/** Show which replica has everything, and look again until another stands by. */
export async function replicas() {
  if (!KILLS) return;
  clearTimeout(looking);
  const answer = await fetch("/demo/replicas").catch(() => null);
  const [first, ...rest] = answer?.ok ? await answer.json() : [];
  if (!rest.some(({ listens }) => listens)) looking = setTimeout(replicas, 500);
  if (!first) return;
  const name = ({ number, pid }) => `replica ${number} (process ${pid})`;
  const others = rest.map((each) => `${name(each)} ${each.listens ? "stands by" : "is starting"}`);
  const waits = others.length ? others.join(", ") : "the other is being started";
  $("replicas").textContent = `All is served by ${name(first)}; ${waits}.`;
}

story.forEach(line);
document.addEventListener("asked", count);
count();
replicas();

/** What a screen reader hears of an answer: a sentence at a time, and at its end the whole. */

import { $ } from "./session.js";

const SENTENCE = /^[\s\S]*?[.!?;。！？؟…](?=\s|$)/;

let rest = "";

function say(text) {
  $("spoken").append(Object.assign(document.createElement("p"), { textContent: text, dir: "auto" }));
}

export function hear(piece) {
  rest += piece;
  // The last one may go on: only what follows shows that a sentence has ended.
  for (let found; (found = SENTENCE.exec(rest)) && found[0].length < rest.length; ) {
    say(found[0].trim());
    rest = rest.slice(found[0].length);
  }
}

export function hush() {
  rest = "";
  $("spoken").textContent = "";
}

export function hearWhole(text) {
  hush();
  if (text) say(`The whole answer: ${text}`);
}

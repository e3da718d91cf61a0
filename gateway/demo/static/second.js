/** The second viewer: a bare EventSource on the same URL. */

import { $, show } from "./session.js";

let source = null;

/** Open it; `voids` are the events after which its text is void, `shown` is what it is to have. */
export function openSecond(url, voids, shown) {
  const badge = $("state2");
  const es = new EventSource(url);
  $("answer2").textContent = "";
  es.onmessage = (event) => $("answer2").append(event.data);
  for (const name of voids) es.addEventListener(name, () => ($("answer2").textContent = ""));
  es.onopen = () => show(badge, "follows");
  es.onerror = () => {
    // After the end's id the gateway answers 204, which is how a browser is told to stop for good.
    const closed = es.readyState === EventSource.CLOSED;
    const same = $("answer2").textContent === shown();
    show(badge, closed ? (same ? "done" : "closed") : "lost");
    if (closed) badge.textContent = `closed, ${same ? "same text" : "other text"}`;
  };
  source = es;
  expand(true);
}

export function closeSecond() {
  source?.close();
  source = null;
  expand(false);
}

export function secondIsOpen() {
  return Boolean(source);
}

function expand(open) {
  $("viewer2").hidden = !open;
  $("second").setAttribute("aria-expanded", String(open));
  $("second").textContent = open ? "Close the second" : "Second viewer";
}

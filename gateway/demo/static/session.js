/** What both cards share: where the gateway is, tickets, and what went wrong in words. */

import { ask, Refusal } from "./gateway.js";

export const GATEWAY = document.documentElement.dataset.gateway; // It may be under a path.
const TICKETS = `${GATEWAY}/tickets`;

export const $ = (id) => document.getElementById(id);

export function words(error) {
  if (!(error instanceof Refusal)) return "The gateway does not answer.";
  if (error.status === 401) return "That was an earlier session. Ask again.";
  return `${error.message} (${error.code})`;
}

/** Become somebody new; the page hears of it by the event `renewed`. */
export async function renew() {
  await fetch("/", { method: "POST" });
  document.dispatchEvent(new Event("renewed"));
}

/** Get a ticket; a cookie that an earlier demo signed is changed for a new one. */
export async function ticketFor(body) {
  try {
    return await ask(body, TICKETS);
  } catch (error) {
    if (!(error instanceof Refusal) || error.status !== 401) throw error;
    await renew();
    return ask(body, TICKETS);
  }
}

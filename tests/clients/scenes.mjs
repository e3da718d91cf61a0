/**
 * The clients of Node, each in each of its scenes: the argument is JSON of their cases. A line of JSON
 * is printed for each that has begun, without a report, and for each that has ended, with it. One that
 * never does ends with this process.
 */

import Anthropic from "@anthropic-ai/sdk";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSource as EventSource4 } from "eventsource";
import EventSource2 from "eventsource2";
import { EventSource as EventSource3 } from "eventsource3";
import OpenAI from "openai";

globalThis.window = globalThis;
globalThis.document = { removeEventListener() {} };
const { cookie, token, cases } = JSON.parse(process.argv[2]);
const said = [{ role: "user", content: "Hello?" }];

/** What a client's own code got to know; `begun` is called with its first text. */
class Report {
  failure = "";
  error = "";
  #text = "";
  #begun;

  constructor(begun) {
    this.#begun = begun;
  }

  get text() {
    return this.#text;
  }

  set text(text) {
    if (text && !this.#text) this.#begun();
    this.#text = text;
  }
}

function note(report, type, data) {
  if (type === "failure") report.failure = JSON.parse(data).code;
  else if (type === "message" && data !== "[DONE]") {
    report.text += JSON.parse(data).choices?.[0]?.delta.content ?? "";
  }
}

/** Read with an EventSource until it is closed for good. */
function source(make) {
  return ({ url }, report) =>
    new Promise((closed) => {
      const es = make(url);
      for (const name of ["message", "failure"]) {
        es.addEventListener(name, ({ type, data }) => note(report, type, data));
      }
      es.onerror = () => setTimeout(() => es.readyState === 2 && closed()); // 2 closes after it.
    });
}

const withCookie = (url, init) => fetch(url, { ...init, headers: { ...init.headers, cookie } });

/** Read with an SDK; what it throws is an error. */
function sdk(stream, text) {
  return async ({ base, body }, report) => {
    const { pretend } = body;
    for await (const event of await stream(base, pretend && { pretend })) report.text += text(event);
  };
}

const clients = {
  "eventsource 2": source((url) => new EventSource2(url, { headers: { cookie } })),
  "eventsource 3": source((url) => new EventSource3(url, { fetch: withCookie })),
  "eventsource 4": source((url) => new EventSource4(url, { fetch: withCookie })),
  "fetch-event-source": ({ url }, report) =>
    fetchEventSource(url, {
      headers: { cookie },
      openWhenHidden: true,
      onmessage: ({ event, data }) => note(report, event || "message", data),
    }),
  "openai (JavaScript)": sdk(
    (base, more) =>
      new OpenAI({ apiKey: token, baseURL: `${base}/v1`, maxRetries: 0 }).chat.completions.create({
        ...more, model: "any", messages: said, stream: true,
      }),
    ({ choices }) => choices[0]?.delta.content ?? "",
  ),
  "anthropic (JavaScript)": sdk(
    (base, more) =>
      new Anthropic({ apiKey: token, baseURL: base, maxRetries: 0 }).messages.create({
        ...more, model: "claude", messages: said, max_tokens: 999, stream: true,
      }),
    ({ delta }) => delta?.text ?? "",
  ),
};

for (const each of cases) {
  const say = (told) => process.stdout.write(JSON.stringify([each.client, each.scene, told]) + "\n");
  const report = new Report(() => say(null));
  Promise.resolve(clients[each.client](each, report))
    .catch((error) => (report.error = error.constructor.name))
    .then(() => say({ text: report.text, failure: report.failure, error: report.error }));
}

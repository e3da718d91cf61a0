/** npm `openai` and `@anthropic-ai/sdk`: what they make of two servers that should be alike. */

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const said = [{ role: "user", content: "Hello?" }];
const APIS = {
  openai: {
    of: ({ openai }) => openai.chat.completions,
    body: { model: "any", messages: said },
  },
  responses: {
    of: ({ openai }) => openai.responses,
    body: { model: "resp", input: "Hello?" },
  },
  anthropic: {
    of: ({ anthropic }) => anthropic.messages,
    body: { model: "claude", messages: said, max_tokens: 999 },
  },
};

const at = (url, apiKey) => ({
  openai: new OpenAI({ apiKey, baseURL: `${url}/v1`, maxRetries: 1 }),
  anthropic: new Anthropic({ apiKey, baseURL: url, maxRetries: 1 }),
});

/** What came of a stream: its events, and the error that was thrown, if any. */
async function streamed(calls, body) {
  const events = [];
  try {
    for await (const event of await calls.create({ ...body, stream: true })) events.push(event);
    return { events };
  } catch (error) {
    return { events, ...thrown(error) };
  }
}

const whole = (calls, body) => calls.create(body).catch(thrown);

const thrown = (error) => ({ error: error.constructor.name, status: error.status });

const [direct, gateway, cutting] = process.argv.slice(2);
const clients = { direct: at(direct, "k"), gateway: at(gateway, process.env.TOKEN) };
const told = {};
for (const [name, { of, body }] of Object.entries(APIS)) {
  told[name] = {};
  for (const [side, client] of Object.entries(clients)) {
    told[name][side] = {
      events: (await streamed(of(client), body)).events,
      whole: await whole(of(client), body),
    };
  }
  const calls = of(clients.gateway);
  for (const fault of ["cut:3", "error:3", "status:429", "status:500"]) {
    told[name][fault] = await streamed(calls, { ...body, pretend: { fault } });
  }
  told[name].whole_cut = await whole(calls, { ...body, pretend: { fault: "cut:3" } });
}
const { openai } = clients.gateway;
const [begun] = told.responses.gateway.events;
const rest = await openai.responses.retrieve(begun.response.id, { stream: true, starting_after: 5 });
told.rest = [];
for await (const event of rest) told.rest.push(event);
told.again = await whole(APIS.openai.of(at(cutting, process.env.TOKEN)), APIS.openai.body);
process.stdout.write(JSON.stringify(told));

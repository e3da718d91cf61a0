/** The code that an answer needs, in some ways, to be copied. */

import { $ } from "./session.js";

const SNIPPETS = {
  "A bare EventSource": `const {stream_url} = await (await fetch("/tickets", {method: "POST", headers: {"Content-Type": "application/json"}, body})).json();
const es = new EventSource(stream_url + "&format=text");
es.onmessage = (event) => show(event.data);
es.addEventListener("end", () => es.close());`,
  "gateway.js": `import { complete } from "./gateway.js";

for await (const piece of complete({ model, messages })) show(piece); // Over reconnects and sleep.`,
  "useChat, of the AI SDK": `import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const transport = new DefaultChatTransport({ api: "/chat" }); // Only this is new.
const { messages, sendMessage } = useChat({ id, messages: saved, resume: true, transport });`,
  "The official SDK": `from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="https://app.example/v1", api_key=KEY)  # Only these two are new.
async for chunk in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
    show(chunk.choices[0].delta.content or "")`,
};

async function copy(text, button) {
  const copied = await navigator.clipboard.writeText(text).then(() => true, () => false);
  button.textContent = copied ? "Copied" : "Not copied";
}

for (const [title, text] of Object.entries(SNIPPETS)) {
  const box = $("snippet").content.firstElementChild.cloneNode(true);
  const [heading, button, code] = ["h3", "button", "code"].map((each) => box.querySelector(each));
  heading.textContent = title;
  code.textContent = text;
  code.parentElement.setAttribute("aria-label", `Code: ${title}`);
  heading.id = `snippet-${$("snippets").children.length}`;
  button.setAttribute("aria-describedby", heading.id);
  button.addEventListener("click", () => copy(text, button));
  $("snippets").append(box);
}

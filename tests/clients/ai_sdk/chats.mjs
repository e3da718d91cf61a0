/** What becomes of a chat in each situation that its user may come into. */

import { MAJORS, bare, page } from "./sdk.mjs";

const [url] = process.argv.slice(2);

async function played(sdk) {
  const id = `chat-${sdk.major}`;
  const ends = [];
  const onFinish = (end) => ends.push(end);
  const told = {};
  const note = (name, chat) => {
    const { finishReason, isError = false } = ends.at(-1) ?? {};
    const parts = bare(chat.lastMessage?.role === "assistant" ? chat.lastMessage.parts : []);
    const error = chat.error?.message;
    told[name] = { status: chat.status, error, parts, finishReason, isError };
    told[name].messages = chat.messages.length;
  };
  const chat = page(sdk, url, id, { onFinish });
  await chat.resumeStream();
  told.idle = { status: chat.status, error: chat.error?.message };
  await chat.sendMessage({ text: "rich" });
  note("rich", chat);
  const call = chat.lastMessage.parts.find((part) => part.type === "tool-weather");
  const output = { degrees: 7 };
  await chat.addToolResult({ tool: "weather", toolCallId: call.toolCallId, output });
  await chat.sendMessage();
  note("continued", chat);
  await chat.regenerate();
  note("regenerated", chat);
  for (const prompt of ["cut", "refuse"]) {
    await chat.sendMessage({ text: prompt });
    note(prompt, chat);
  }
  const stop = () => fetch(`${url}/${id}/stream`, { method: "DELETE", headers });
  const headers = { cookie: process.env.COOKIE };
  const stopped = page(sdk, url, id, { onFinish, seen: (text) => text === "Hel" && stop() });
  await stopped.sendMessage({ text: "hang" });
  note("stopped", stopped);
  await stopped.resumeStream();
  told.over = { status: stopped.status, messages: stopped.messages.length };
  const part = { type: "file", mediaType: "application/pdf", url: "https://a.example/1.pdf" };
  await stopped.sendMessage({ files: [part], text: "Read this" });
  told.file = { status: stopped.status, error: JSON.parse(stopped.error.message) };
  return told;
}

const told = {};
for (const sdk of MAJORS) told[sdk.major] = await played(sdk);
process.stdout.write(JSON.stringify(told));

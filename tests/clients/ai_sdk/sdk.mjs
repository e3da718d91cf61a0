/** The AI SDK of Vercel, its three majors: `Chat`, on which `useChat` is built, and its transport. */

import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

/** Return the `ai` that a version of `@ai-sdk/react` brings with it. */
const beside = (name) => import(createRequire(require.resolve(name)).resolve("ai"));

export const MAJORS = await Promise.all(
  [5, 6, 7].map(async (major) => {
    const { Chat } = await import(`react-${major}`);
    const { DefaultChatTransport } = await beside(`react-${major}`);
    return { major, Chat, DefaultChatTransport };
  }),
);

/** A page's chat; `seen` is called with what its last message says at each change. */
export function page({ Chat, DefaultChatTransport }, url, id, { messages = [], seen, ...more } = {}) {
  const headers = { cookie: process.env.COOKIE };
  const transport = new DefaultChatTransport({ api: url, headers, body: { model: "m" } });
  const chat = new Chat({ id, messages, transport, ...more });
  if (seen) chat["~registerMessagesCallback"](() => seen(said(chat), chat));
  return chat;
}

export const said = ({ lastMessage }) =>
  (lastMessage?.role === "assistant" ? lastMessage.parts : [])
    .map((part) => (part.type === "text" ? part.text : ""))
    .join("");

export const bare = (parts) => parts.map(({ id, ...part }) => part);

/** Chats whose page is reloaded again and again, while one of two replicas dies. */

import { createInterface } from "node:readline";
import { MAJORS, bare, page, said } from "./sdk.mjs";

const [dying, other, times, first, second] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

/** A page that is gone once it has read so much, and how often it was. */
class Reloads {
  constructor(sdk) {
    Object.assign(this, { sdk, id: `reloaded-${sdk.major}`, count: 0, asked: [] });
  }

  async begin(url) {
    const chat = this.until(url, 20);
    await chat.sendMessage({ text: "Hello?" });
    this.asked = chat.messages.slice(0, 1);
  }

  /** A page that is left as soon as it shows so many characters. */
  until(url, enough, messages = []) {
    return page(this.sdk, url, this.id, {
      messages,
      seen: (text, chat) => text.length >= enough && chat.stop(),
    });
  }

  async reload(urls, most) {
    for (let n = 0; n < times; n++) {
      const enough = 1 + Math.floor(Math.random() * most);
      const chat = this.until(urls[n % urls.length], enough, this.asked);
      await chat.resumeStream();
      if (chat.error || said(chat).length < enough) throw chat.error ?? new Error(said(chat));
      this.count += 1;
    }
  }

  async rest(url) {
    let enough;
    this.there = new Promise((resolve) => (enough = resolve));
    const seen = (text) => text.length >= second && enough();
    const chat = page(this.sdk, url, this.id, { messages: this.asked, seen });
    await chat.resumeStream();
    return { error: chat.error?.message, status: chat.status, parts: bare(chat.lastMessage.parts) };
  }

  async uncut(url) {
    const chat = page(this.sdk, url, `uncut-${this.sdk.major}`);
    await chat.sendMessage({ text: "Hello?" });
    return bare(chat.lastMessage.parts);
  }
}

const all = MAJORS.map((sdk) => new Reloads(sdk));
const each = (act) => Promise.all(all.map(act));
await each((one) => one.begin(dying));
await each((one) => one.reload([dying, other], first));
tell("kill it");
await lines.next();
await each((one) => one.reload([other], second));
const rests = all.map((one) => one.rest(other));
await each((one) => one.there);
tell("let it end");
const ended = await Promise.all(rests);
const uncut = await each((one) => one.uncut(other));
tell(all.map(({ count }, k) => ({ count, ...ended[k], uncut: uncut[k] })));
process.exit(0);

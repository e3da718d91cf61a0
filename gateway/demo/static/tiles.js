/** Tiles: the small boxes of the second card, one a stream. They are drawn once a frame. */

import { $, show } from "./session.js";

const dirty = new Set();

/** Draw a tile, or whatever has a `draw`, with the next frame: hundreds of events come a second. */
export function later(thing) {
  if (!dirty.size) requestAnimationFrame(draw);
  dirty.add(thing);
}

function draw() {
  const things = [...dirty];
  dirty.clear();
  for (const thing of things) thing.draw();
}

/** One stream: its text as far as it came, and what a late joiner has of it. */
export class Tile {
  constructor({ ticket, stream_url, title }, number) {
    Object.assign(this, { ticket, stream_url, state: "cached", text: "", trouble: "", late: null });
    this.box = $("tile").content.firstElementChild.cloneNode(true);
    [this.heading, this.badge, this.body, this.foot] = ["h3", ".badge", ".text", ".hint"].map(
      (each) => this.box.querySelector(each),
    );
    this.heading.id = `tile-${number}`;
    this.heading.textContent = `${number}. ${title}`;
    this.body.setAttribute("aria-labelledby", this.heading.id);
    this.drawn = 0; // Characters of the text.
    later(this);
  }

  get ended() {
    return !["cached", "streaming"].includes(this.state);
  }

  write(piece) {
    this.text += piece;
    this.become("streaming");
  }

  clear() {
    this.text = "";
    this.drawn = Infinity;
    later(this);
  }

  become(state) {
    this.state = state;
    later(this);
  }

  /** Say why it went wrong, where its text would be. */
  fail({ message, code }) {
    this.trouble = `${message} (${code})`;
    later(this);
  }

  /** Begin with a late joiner, who has the text of a snapshot first. */
  join() {
    this.late = { text: "", began: 0, ended: false };
    later(this);
  }

  /** Whether both have all of it, and the same. */
  get same() {
    return this.ended && this.late?.ended && this.late.text === this.text;
  }

  draw() {
    if (this.drawn > this.text.length) {
      this.body.textContent = "";
      this.drawn = 0;
    }
    this.body.append(this.text.slice(this.drawn));
    this.drawn = this.text.length;
    this.body.scrollTop = this.body.scrollHeight;
    this.box.dataset.state = this.state;
    show(this.badge, this.state);
    this.foot.textContent = [this.trouble, this.#told()].filter(Boolean).join(" ");
    this.foot.hidden = !this.foot.textContent;
  }

  #told() {
    if (!this.late) return "";
    const began = `Late: began with ${this.late.began} characters`;
    if (!this.ended || !this.late.ended) return `${began}.`;
    return `${began}, ${this.same ? "same text" : "other text"}.`;
  }
}

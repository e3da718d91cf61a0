/** The second card: messages for this browser and twelve streams, all over one connection. */

import { completion, followAll, stop } from "./gateway.js";
import { $, count, enable, GATEWAY, onPress, renew, store, stored, ticketFor, words } from "./session.js";
import { later, Tile } from "./tiles.js";

const TIP = "While they write, cut the line, push a message, or reload this page.";
const TITLES = [
  ...["A tunnel", "A lift", "A deploy", "A reload", "A second tab", "A full train"],
  ...["A closed lid", "A new phone", "A slow proxy", "A router", "A night bus", "A long flight"],
]; // Where connections are lost; each is asked for.
const ROWS = 8; // Messages on the page.
const SEEN = 200; // Messages that a reload is to know again.

let tiles = [];
let late = null; // The late joiner's connection.
const seen = new Set(stored("seen", []));
const came = Date.now();
const line = { follower: null, events: 0, reconnects: 0, state: "", draw };

function notice(text, kind = "") {
  $("many-notice").textContent = text;
  $("many-notice").dataset.kind = kind;
}

function draw() {
  const streams = tiles.length ? count(tiles.length, "stream") : "No stream yet";
  const connections = Number(line.state === "open") + Number(Boolean(late));
  const parts = [streams, count(connections, "connection"), count(line.events, "event")];
  if (line.reconnects) parts.push(count(line.reconnects, "reconnect"));
  $("many-line").textContent = parts.join(", ");
  $("position").textContent = $("position").title = line.follower?.lastId || "none";
  drawLate();
}

function drawLate() {
  const joined = tiles.filter((tile) => tile.late);
  $("late").hidden = !joined.length;
  if (!joined.length) return;
  const began = count(joined.reduce((all, tile) => all + tile.late.began, 0), "character");
  const snapshots = count(joined.filter((tile) => tile.late.began).length, "snapshot");
  const same = `, and has the same text in ${tiles.filter((tile) => tile.same).length} of ${tiles.length}`;
  $("late").textContent = `The late one began with ${began} in ${snapshots}${late ? "" : same}.`;
}

/** Follow the channel and the tiles' streams, after a position, else with all that is kept. */
function connect(after = "") {
  line.follower?.close();
  Object.assign(line, { events: 0, reconnects: 0, state: "opening" });
  const tickets = tiles.map(({ ticket }) => ticket);
  line.follower = followAll(tickets, {
    open: opened,
    lost() {
      if (line.state !== "lost") notice("Connection lost, reconnecting…", "wait");
      line.state = "lost";
      later(line);
    },
    event() {
      line.events += 1;
      later(line);
    },
    text: (k, piece) => tiles[k].write(piece),
    discard: (k) => tiles[k].clear(),
    failure: (k, failure) => tiles[k].fail(failure),
    end: (k, { state }) => ended(tiles[k], state),
    message: show,
    missed: () => notice("Some messages are not kept any more.", "wait"),
    closed,
  }, { url: `${GATEWAY}/events?from=start&format=text`, after });
  later(line);
}

function opened() {
  if (line.state === "lost") {
    line.reconnects += 1;
    notice(`Resumed from one position: your messages and ${count(tiles.length, "stream")}.`, "good");
  }
  line.state = "open";
  later(line);
}

function closed(refusal) {
  const stale = tiles.length && refusal.status === 404; // Its tickets are somebody else's.
  lay([]);
  if (stale) connect();
  else notice(words(refusal), "bad");
}

/** Put tiles on the page in the place of those that are there, and keep what a reload needs. */
function lay(streams) {
  leaveLate();
  tiles = streams.map((each, k) => new Tile(each, k + 1));
  $("tiles").replaceChildren(...tiles.map(({ box }) => box));
  enable("join", tiles.length > 0);
  store("streams", streams);
}

/** Look, once all have ended, whether what was shown is what the gateway has logged. */
async function ended(tile, state) {
  tile.become(state);
  settleLate();
  if (!tiles.every((each) => each.ended)) return;
  const mine = tiles;
  document.dispatchEvent(new Event("spent"));
  const asked = mine.map((each) => completion(each.stream_url).catch(() => null));
  const logged = await Promise.all(asked);
  if (mine !== tiles || logged.includes(null)) return;
  const wrong = logged.filter(({ text }, k) => text !== mine[k].text).length;
  const size = count(logged.reduce((all, { text }) => all + text.length, 0), "character");
  if (wrong) notice(`Of ${count(wrong, "stream")} the log says something else.`, "bad");
  else notice(`All ${mine.length} are what the gateway logged, ${size}: 0 lost, 0 twice.`, "good");
}

async function askAll() {
  enable("ask-all", false);
  try {
    const first = await streamOf(TITLES[0]); // Alone: it may be that the cookie has to be changed.
    const rest = await Promise.allSettled(TITLES.slice(1).map(streamOf));
    for (const tile of tiles) if (!tile.ended) stop(tile.stream_url).catch(() => {});
    lay([first, ...rest.map(({ value }) => value).filter(Boolean)]);
    connect(line.follower?.lastId);
    const refused = rest.filter(({ reason }) => reason);
    if (!refused.length) notice(TIP);
    else notice(`${refused.length} of ${TITLES.length} were refused: ${words(refused[0].reason)}`, "bad");
  } catch (error) {
    notice(`Nothing was asked. ${words(error)}`, "bad");
  } finally {
    document.dispatchEvent(new Event("spent"));
    enable("ask-all", true);
  }
}

async function streamOf(title) {
  const { ticket, stream_url } = await ticketFor(title);
  return { ticket, stream_url, title };
}

/** Follow the same streams once more, over a connection that begins with what there is of each. */
function join() {
  leaveLate();
  for (const tile of tiles) tile.join();
  late = followAll(tiles.map(({ ticket }) => ticket), {
    snapshot(k, { text }) {
      Object.assign(tiles[k].late, { text, began: text.length });
      later(line);
    },
    text: (k, piece) => (tiles[k].late.text += piece),
    discard: (k) => (tiles[k].late.text = ""),
    end(k) {
      tiles[k].late.ended = true;
      settleLate();
    },
    closed: leaveLate,
  }, { url: `${GATEWAY}/events?snapshot=1&format=text` });
}

function leaveLate() {
  late?.close();
  late = null;
  later(line);
}

/** Let the late joiner go once both have everything. */
function settleLate() {
  for (const tile of tiles) later(tile);
  if (late && tiles.every((tile) => tile.ended && tile.late.ended)) leaveLate();
}

/** Return what a message says; one that was pushed from a shell may be any text. */
function parsed(data) {
  try {
    const { id = "", text = data, at = Date.now() } = JSON.parse(data);
    return { id, text, at };
  } catch {
    return { id: "", text: data, at: Date.now() };
  }
}

function show(data) {
  const { id, text, at } = parsed(data);
  const row = $("message").content.firstElementChild.cloneNode(true);
  const [what, when, name, away] = row.children;
  what.textContent = text;
  when.textContent = new Date(at).toLocaleTimeString();
  name.textContent = id;
  away.hidden = seen.has(id) || at >= came;
  $("messages").prepend(row);
  $("messages").children[ROWS]?.remove();
  seen.add(id);
  store("seen", [...seen].slice(-SEEN));
}

/** Ask the page's own server; `elsewhere` says what to do where it has no gateway. */
async function ask(what, elsewhere) {
  const post = () => fetch(`/demo/${what}`, { method: "POST" });
  try {
    let answer = await post();
    if (answer.status === 401) {
      await renew();
      answer = await post();
    }
    const told = await answer.json();
    if (answer.ok) return told;
    notice(answer.status === 404 ? elsewhere(told) : `${told.title} (${told.code})`, "wait");
  } catch {
    notice("The page’s server does not answer.", "bad");
  }
  return null;
}

async function push() {
  const told = await ask(
    "push",
    ({ subject }) => `This page cannot push. At a replica: gateway push ${subject} --data hello`,
  );
  if (told) notice(`Stored as ${told.id}, whether anybody listens or not.`, "good");
}

async function cut() {
  const elsewhere = () => "This page cannot cut it. Stop or restart a replica instead.";
  const told = await ask("cut", elsewhere);
  if (told?.closed === 0) notice("There was no open connection to cut.", "wait");
}

onPress("ask-all", askAll);
onPress("push", push);
onPress("join", join);
onPress("cut-all", cut);
document.addEventListener("renewed", () => {
  lay([]); // Of who the browser was before.
  connect();
});
lay(stored("streams", []));
connect();

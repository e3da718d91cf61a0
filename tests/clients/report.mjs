/** What all the scripts share: the stream's URL, the cookie, and a line of JSON for each event. */

export const [url] = process.argv.slice(2);
export const headers = { Cookie: process.env.COOKIE };
export const NAMES = ["message", "failure", "reset", "gap", "end"];

export function report({ type, event, lastEventId, id, data }) {
  process.stdout.write(JSON.stringify([type || event || "message", lastEventId ?? id, data]) + "\n");
}

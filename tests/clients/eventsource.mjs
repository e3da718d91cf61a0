/** npm `eventsource`: as in a browser, but that the cookie needs a fetch of one's own. */

import { EventSource } from "eventsource";
import { headers, NAMES, report, url } from "./report.mjs";

const es = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
});
for (const name of NAMES) es.addEventListener(name, report);

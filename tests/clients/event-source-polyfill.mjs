/**
 * npm `event-source-polyfill`: sends its last id in the URL, as `lastEventId`. In a browser 204 stops
 * it, but the body of Node's 204 is null, which it does not expect: here it would ask again for ever,
 * so its user has to close it at the end.
 */

import polyfill from "event-source-polyfill";
import { headers, NAMES, report, url } from "./report.mjs";

console.error = () => {}; // It logs every lost connection.
const es = new polyfill.EventSourcePolyfill(url, { headers });
for (const name of NAMES) es.addEventListener(name, report);
es.addEventListener("end", () => es.close());

/**
 * npm `@microsoft/fetch-event-source` as its users know it: one POST that is answered with the stream,
 * sent again by the library itself, with the last id, whenever the connection breaks.
 */

import { fetchEventSource } from "@microsoft/fetch-event-source";
import { headers, report, url } from "./report.mjs";

globalThis.window = globalThis;
globalThis.document = { removeEventListener() {} };

await fetchEventSource(url, {
  method: "POST",
  headers: { ...headers, "Content-Type": "application/json" },
  body: process.env.BODY,
  openWhenHidden: true,
  onmessage: report,
});

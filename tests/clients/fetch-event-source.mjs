/**
 * npm `@microsoft/fetch-event-source`: comes back by itself after a broken connection, and takes an
 * orderly close for the end, so its caller has to ask again until there was `end`.
 */

import { fetchEventSource } from "@microsoft/fetch-event-source";
import { headers, report, url } from "./report.mjs";

globalThis.window = globalThis;
globalThis.document = { removeEventListener() {} };

let last = { id: "", event: "" };
while (last.event !== "end") {
  await fetchEventSource(url, {
    headers: { ...headers, ...(last.id && { "last-event-id": last.id }) },
    openWhenHidden: true,
    onmessage(event) {
      last = event;
      report(event);
    },
  });
}

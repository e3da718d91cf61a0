/** What is in every browser: fetch and getReader. It prints what came, and whether that is all. */

import { headers, url } from "./report.mjs";

const answer = await fetch(url, { headers });
const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
let text = "";
let end = "whole";
try {
  for (let part; !(part = await reader.read()).done; ) text += part.value;
} catch (error) {
  end = error.name;
}
process.stdout.write(JSON.stringify([String(answer.status), end, text]) + "\n");

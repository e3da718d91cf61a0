// Vercel's resumable-stream as its README shows it, in front of a fetch of the upstream.
// Arguments: the port to listen on, the Redis port, the upstream URL, the folder that holds node_modules.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { randomUUID } from "node:crypto";
import { pathToFileURL } from "node:url";

const [port, redisPort, upstream, modules] = process.argv.slice(2);
const require = createRequire(modules + "/package.json");
const load = async (name) => {
  const module = await import(pathToFileURL(require.resolve(name)));
  return module.default?.createClient || module.default?.createResumableStreamContext
    ? module.default
    : module;
};
const { createClient } = await load("redis");
const { createResumableStreamContext } = await load("resumable-stream");

const url = `redis://127.0.0.1:${redisPort}`;
const [publisher, subscriber] = [createClient({ url }), createClient({ url })];
await Promise.all([publisher.connect(), subscriber.connect()]);
const context = createResumableStreamContext({ waitUntil: null, publisher, subscriber });

const read = async (request) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts);
};

const server = createServer(async (request, response) => {
  try {
    const body = await read(request);
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(upstream, { method: "POST", body, headers });
    const stream = await context.createNewResumableStream(randomUUID(), () =>
      answer.body.pipeThrough(new TextDecoderStream()),
    );
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    for await (const text of stream) {
      if (!response.write(text)) await new Promise((go) => response.once("drain", go));
    }
  } catch (error) {
    if (!response.headersSent) response.writeHead(502);
  }
  response.end();
});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });

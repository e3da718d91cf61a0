"""Redis's memory for streams that have ended: `python -m benchmarks.memory`.

Runs streams of OpenAI-style chunks, each another piece of this repository's own texts, and counts
the bytes of all their keys as they end and once their logs are packed. Exits 1 unless a packed one
is within the promise and every stream reads the same bytes before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from benchmarks.peers import bench, start_gateway
from benchmarks.process import Absent
from gateway.eventlog.packs import packs_of
from gateway.eventlog.reader import read_all
from gateway.sse import encode, parse
from gateway.store.client import RedisClient

PROMISE = 20_000  # Bytes of a finished stream of 600 events.
GAP = 0.004  # Seconds between two chunks, so that most are an entry of their own.
PATIENCE = 60.0  # Seconds until all logs have to be packed.
CONFIG = """\
lease = 1
[presets.default]
url = "http://127.0.0.1:{port}/v1/chat/completions"
"""
KNOWN = {
    "object": "chat.completion.chunk",
    "created": 1_764_000_000,
    "model": "gpt-4o-mini-2024-07-18",
    "service_tier": "default",
    "system_fingerprint": "fp_0705bf87c0",
}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DOCS = Path(__file__).parent.parent / "docs"
TEXT = "".join(path.read_text("utf-8") for path in sorted(DOCS.glob("*.md")))
TOKENS = re.findall(r"\s?\w{1,8}|\W", TEXT)


def chunks(events: int, rng: random.Random) -> list[bytes]:
    """Return an answer as OpenAI sends it, with a piece of text of its own."""
    name = f"chatcmpl-{''.join(rng.choices('abcdefghijkmnpqrstuvwxyzABCDEF0123456789', k=29))}"
    start = rng.randrange(len(TOKENS) - events)
    frames = []
    for token in TOKENS[start : start + events]:
        noise = "".join(rng.choices("abcdefghijkmnpqrstuvwxyzABCDEF0123456789", k=8))
        choice = {"index": 0, "delta": {"content": token}, "logprobs": None, "finish_reason": None}
        chunk = {"id": name, **KNOWN, "choices": [choice], "obfuscation": noise}
        frames.append(b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode())
    stop = b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    return [*frames, stop, b"data: [DONE]\n\n"]


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def upstream(events: int, rng: random.Random) -> Answer:
    """Return what answers one request with a stream of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        for frame in chunks(events - 2, rng):
            writer.write(frame)
            await asyncio.sleep(GAP)
        writer.close()

    return answer


@dataclass
class Store:
    """The Redis of a run, asked from outside."""

    client: redis.Redis

    def used(self) -> int:
        """Return all bytes it takes."""
        return int(self.client.info("memory")["used_memory"])

    def streams(self) -> list[str]:
        """Return the ids of all streams."""
        keys = map(str, self.client.keys("gw:{*}:record"))
        return [key.split("{")[1].split("}")[0] for key in keys]

    def of_keys(self) -> int:
        """Return the bytes of all keys of all streams."""
        keys = [key for each in self.streams() for key in self.client.keys(f"gw:{{{each}}}:*")]
        return sum(self.client.memory_usage(key, samples=0) or 0 for key in keys)

    def packed(self) -> int:
        """Return how many logs are packed."""
        return len(self.client.keys("gw:{*}:packed"))


async def play(http: httpx.AsyncClient) -> tuple[str, bytes]:
    """Ask for a stream and read it; return its URL and all that came."""
    body = {"model": "pretend", "messages": [{"role": "user", "content": "Tell me."}]}
    made = await http.post("/tickets", json=body)
    url = made.raise_for_status().json()["stream_url"]
    return url, await whole(http, url)


async def whole(http: httpx.AsyncClient, url: str) -> bytes:
    """Return the events of a stream from its start, without comments and what else is no event."""
    events = parse((await http.get(url)).raise_for_status().content)
    return b"".join(encode(each.data, each.id, each.name) for each in events)


async def packing_cost(url: str, streams: list[str]) -> float:
    """Return the microseconds of CPU that it takes to pack a log, that are no system calls."""
    client = RedisClient(url)
    try:
        logs = [await read_all(client, each) for each in streams]
    finally:
        await client.close()
    began = time.process_time()
    for log in logs:
        list(packs_of(log))
    return 1e6 * (time.process_time() - began) / len(logs)


async def all_packed(store: Store, count: int) -> None:
    """Return when so many logs are packed, or it takes too long."""
    end = time.monotonic() + PATIENCE
    while store.packed() < count and time.monotonic() < end:  # noqa: ASYNC110 (Redis tells nobody)
        await asyncio.sleep(0.2)


async def measure(store: Store, http: httpx.AsyncClient, redis_url: str, streams: int) -> bool:
    """Run streams and print what they take; return whether that holds the promise."""
    warm = await play(http)
    await all_packed(store, 1)
    before, keys = store.used(), store.of_keys()
    got = await asyncio.gather(*(play(http) for _ in range(streams)))
    plain = [(store.of_keys() - keys) / streams, (store.used() - before) / streams]
    cost = await packing_cost(redis_url, store.streams())
    await all_packed(store, streams + 1)
    packed = [(store.of_keys() - keys) / streams, (store.used() - before) / streams]
    same = all([await whole(http, url) == seen for url, seen in [warm, *got]])
    for name, figures in (("as it ends", plain), ("packed", packed)):
        print(f"{name}: {figures[0]:,.0f} bytes of keys, {figures[1]:,.0f} of used_memory a stream")
    print(f"{cost:,.0f} us of CPU to pack one; {store.packed()} of {streams + 1} are packed")
    print("the same bytes before and after" if same else "OTHER BYTES after than before")
    return same and packed[0] <= PROMISE


async def on_own_gateway(streams: int, events: int, seed: int) -> bool:
    """Return whether the promise holds on a gateway, a Redis and an upstream of its own."""
    server = await asyncio.start_server(upstream(events, random.Random(seed)), "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as shared:
        config = Path(folder) / "gateway.toml"
        config.write_text(CONFIG.format(port=server.sockets[0].getsockname()[1]))
        running = start_gateway(shared, config=str(config))
        headers = dict(line.split(": ", 1) for line in running.target.headers)
        store = Store(redis.Redis(port=shared.redis.port))
        try:
            url = f"http://127.0.0.1:{running.target.port}"
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                base_url=url, headers=headers, timeout=120, limits=limits
            ) as http:
                where = f"redis://127.0.0.1:{shared.redis.port}/0"
                return await measure(store, http, where, streams)
        finally:
            running.stop()
            store.client.close()
            server.close()


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    cli.add_argument("--streams", type=int, default=40)
    cli.add_argument("--events", type=int, default=600)
    cli.add_argument("--seed", type=int, default=1)
    args = cli.parse_args()
    try:
        sound = asyncio.run(on_own_gateway(args.streams, args.events, args.seed))
    except Absent as reason:
        sys.exit(str(reason))
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()

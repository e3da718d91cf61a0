"""How fast a stop is: `python -m benchmarks.stops`.

Two replicas on one real Redis; a chat runs on one, and is stopped by `DELETE /chat/{id}/stream` on
the other. Tells the time from the request to its answer, and to the `abort` that the chat's viewer
gets. Exits 1 above the promise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.peers import Running, bench, start_gateway
from benchmarks.process import Absent

PROMISED = 0.3  # Seconds.
PATIENCE = 30.0
ABORT = b'"type":"abort"'
TEXT = b'"text-delta"'
PROMPT = "bench-5000-20"  # Events of the mock upstream, and milliseconds between two.


class Stop(NamedTuple):
    """Seconds from the request."""

    answered: float
    seen: float


class Replica:
    """One of them, and its user."""

    def __init__(self, running: Running) -> None:
        name, _, value = running.target.headers[0].partition(": ")
        url = f"http://127.0.0.1:{running.target.port}"
        self.http = httpx.AsyncClient(base_url=url, headers={name: value}, timeout=PATIENCE)


def asked(chat: str) -> bytes:
    """Return what the AI SDK's transport POSTs."""
    message = {"id": f"m-{chat}", "role": "user", "parts": [{"type": "text", "text": PROMPT}]}
    told = {"id": chat, "messages": [message], "trigger": "submit-message", "model": "bench"}
    return json.dumps(told).encode()


async def stopped(runs: Replica, other: Replica, chat: str) -> Stop:
    """Begin a chat on one, stop it on the other, and tell how long it took; raises ValueError."""
    begun, aborted = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        head = {"Content-Type": "application/json"}
        async with runs.http.stream("POST", "/chat", content=asked(chat), headers=head) as answer:
            came = b""
            async for part in answer.aiter_bytes():
                came += part
                if TEXT in came:
                    begun.set()
                if ABORT in came:
                    aborted.set()
                    return
        raise ValueError(f"no abort: {came[-300:]!r}")

    watching = asyncio.create_task(watch())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    at = time.perf_counter()
    answer = await other.http.delete(f"/chat/{chat}/stream")
    answered = time.perf_counter() - at
    if answer.json() != {"state": "cancelled"}:
        raise ValueError(answer.text)
    await asyncio.wait_for(aborted.wait(), PATIENCE)
    seen = time.perf_counter() - at
    await watching
    return Stop(answered, seen)


async def measure(one: Running, other: Running, count: int) -> list[Stop]:
    """Return so many stops, in turn on each of two replicas."""
    pair = Replica(one), Replica(other)
    try:
        return [
            await stopped(pair[number % 2], pair[1 - number % 2], f"chat-{number}")
            for number in range(count)
        ]
    finally:
        for each in pair:
            await each.http.aclose()


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.stops", description=__doc__)
    cli.add_argument("--stops", type=int, default=100)
    args = cli.parse_args()
    try:
        with tempfile.TemporaryDirectory() as work, bench(Path(work), install=False) as shared:
            one, other = start_gateway(shared), start_gateway(shared)
            try:
                stops = asyncio.run(measure(one, other, args.stops))
            finally:
                one.stop()
                other.stop()
    except Absent as absent:
        sys.exit(str(absent))
    for name, times in zip(Stop._fields, zip(*stops, strict=True), strict=True):
        median, worst = statistics.median(times) * 1e3, max(times) * 1e3
        print(f"{name}: median {median:.0f} ms, worst {worst:.0f} ms of {len(times)}")
    sys.exit(max(each.seen for each in stops) > PROMISED)


if __name__ == "__main__":
    main()

"""Idle channels on one gateway process with a real Redis: `python -m benchmarks.channels`.

Opens `GET /events` of so many users, waits until each has had a heartbeat, and tells what one costs
the gateway and Redis, and the connections to Redis; then pushes a message to every user. Exits 1
above the promise, or if a message did not come to its user alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import COOKIE_SECRET, bench, start_gateway
from benchmarks.process import Absent, Child
from gateway.auth.loading import signed_cookie
from gateway.config.settings import Settings

PROMISED = 20.0  # KB of the gateway's process for each.
CONNECTIONS = 30  # To Redis, of a replica, whatever watches there.
PORTS = 20_000  # Of one address of ours.
AT_ONCE = 200
PATIENCE = 60.0  # Seconds.
TOKEN = "a-service-token-of-the-benchmarks"
SUBJECTS = 1000  # Of one request.


class Page(asyncio.Protocol):
    """One user's EventSource, which keeps what came but for heartbeats."""

    def __init__(self, head: bytes) -> None:
        self.came = b""
        self.beats = 0
        self.lost = False
        self._head = head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the channel."""
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        if data == b"2\r\n:\n\r\n":
            self.beats += 1
        else:
            self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Note it: nobody of ours closes."""
        self.lost = True


class Sizes(NamedTuple):
    """What is used at one moment, in KB, and connections."""

    gateway: float
    redis: float
    connections: int


class Figures(NamedTuple):
    """What came of it."""

    opened: float  # Seconds.
    gateway: float  # KB a channel.
    redis: float
    connections: int
    told: float  # Seconds until all had their message.
    right: int


async def sizes(gateway: Child, redis: int) -> Sizes:
    """Measure now."""
    memory, clients = [await info(redis, each) for each in ("memory", "clients")]
    return Sizes(
        gateway.rss_kb(), int(memory["used_memory"]) / 1024, int(clients["connected_clients"]) - 1
    )


async def info(port: int, section: str) -> dict[str, str]:
    """Return what Redis tells of itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"INFO {section}\r\n".encode())
    size = int((await reader.readline())[1:])
    lines = (await reader.readexactly(size)).decode().splitlines()
    writer.close()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def opened(port: int, count: int) -> list[Page]:
    """Open channels, of a user each."""
    signer = signed_cookie(Settings(secrets=COOKIE_SECRET))
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Page:
        lines = ["GET /events HTTP/1.1", f"Host: 127.0.0.1:{port}", "Accept: text/event-stream"]
        lines += [f"Cookie: {signer.cookie}={signer.sign(f'user-{number}')}", "", ""]
        page = Page("\r\n".join(lines).encode())
        ours = (f"127.0.0.{2 + number // PORTS}", 0)
        async with gate:
            await loop.create_connection(lambda: page, "127.0.0.1", port, local_addr=ours)
            await until(lambda: page.lost or b"\nid: " in page.came)
        return page

    return await asyncio.gather(*map(one, range(count)))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something, at most for the patience."""
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def push(port: int, count: int) -> None:
    """Send every user a message of their own number's thousand."""
    for start in range(0, count, SUBJECTS):
        subjects = [f"user-{each}" for each in range(start, min(count, start + SUBJECTS))]
        body = json.dumps({"subjects": subjects, "data": f"to {start}."}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        assert b" 202 " in await reader.readline()
        writer.close()


async def measured(gateway: Child, redis: int, count: int) -> Figures:
    """Open, wait, measure, push."""
    await opened(gateway.port, 50)  # What is made once is made.
    before, began = await sizes(gateway, redis), time.monotonic()
    pages = await opened(gateway.port, count)
    seconds = time.monotonic() - began
    await until(lambda: all(each.beats or each.lost for each in pages))
    after, began = await sizes(gateway, redis), time.monotonic()
    await push(gateway.port, count)
    await until(lambda: all(b"data: " in each.came or each.lost for each in pages))
    told = time.monotonic() - began
    right = sum(is_right(each, number) for number, each in enumerate(pages))
    costs = [(each - was) / count for each, was in zip(after[:2], before[:2], strict=True)]
    return Figures(seconds, costs[0], costs[1], after.connections, told, right)


def is_right(page: Page, number: int) -> bool:
    """Whether a page has its user's one message, and is open."""
    mine = f"data: to {number // SUBJECTS * SUBJECTS}.\n".encode()
    return not page.lost and mine in page.came and page.came.count(b"data: ") == 1


def main() -> None:
    """Measure, and judge."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.channels", description=__doc__)
    cli.add_argument("--channels", type=int, default=10_000)
    args = cli.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < args.channels + 200:
        sys.exit(f"{args.channels} channels need {args.channels + 200} open files, not {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as shared:
            running = start_gateway(shared, service_tokens=TOKEN, heartbeat="10")
            try:
                got = asyncio.run(measured(running.child, shared.redis.port, args.channels))
            finally:
                running.stop()
    except Absent as reason:
        sys.exit(str(reason))
    print(
        f"{args.channels} channels, opened in {got.opened:.1f} s: {got.gateway:.1f} KB of the "
        f"gateway and {got.redis:.1f} KB of Redis each, {got.connections} connections to Redis; "
        f"{got.right} had their message, all of these within {got.told:.1f} s"
    )
    holds = got.gateway <= PROMISED and got.connections <= CONNECTIONS
    sys.exit(0 if holds and got.right == args.channels else 1)


if __name__ == "__main__":
    main()

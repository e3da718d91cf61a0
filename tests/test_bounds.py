"""What a real process holds in memory: what it must, whoever does not read, and not for ever."""

import asyncio
import gc
import socket
import time
import weakref
from contextlib import ExitStack
from pathlib import Path

from gateway.sse import Parser
from tests.support import (
    OK,
    WHOLE,
    Call,
    Process,
    RedisServer,
    ask,
    chunk,
    running,
    scripted,
    sse,
    until,
)
from tests.test_promises import (
    ALICE,
    Site,
    all_of,
    at_least,
    body_of,
    cut_off,
    reader_of_nothing,
    site,
)

EVENTS = 60_000
STUCK = 20
STREAMS = 100
MIB = 1 << 20


def memory(process: Process, kind: str = "VmRSS") -> int:
    """Return the resident bytes of a process, or the most it ever had (VmHWM)."""
    for line in Path(f"/proc/{process.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {kind}")


async def test_memory_stays_flat_with_twenty_stuck_viewers_beside_a_stream_of_60000_events(
    shared_redis: RedisServer,
) -> None:
    """Ten megabytes, of which each stuck viewer took two or three: buffered, it were 140 in all."""
    data = [b"%05d " % number + b"x" * 100 for number in range(EVENTS)]
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(data[0]))
        await go.wait()
        for start in range(1, EVENTS, 200):
            await call.send(sse(*data[start : start + 200]))
        await call.send(sse(b"[DONE]"))

    async with scripted(script) as upstream, site(shared_redis, upstream, write_timeout="5") as at:
        urls = [await at.ticket() for _ in at.processes]
        for where, url in enumerate(urls):
            await at.read(where, url, enough=at_least(1))
        before = [memory(each) for each in at.processes]
        with ExitStack() as closing:
            stuck = [
                closing.enter_context(reader_of_nothing(at.processes[0].url, urls[0]))
                for _ in range(STUCK)
            ]
            healthy = [asyncio.create_task(at.read(where, url)) for where, url in enumerate(urls)]
            await until(lambda: all(map(has_headers, stuck)), "all are served")
            go.set()
            whole = [await each for each in healthy]
            peaks = [memory(each, "VmHWM") for each in at.processes]
            for each in whole:
                assert each.data == [*data, b"[DONE]"]
                assert each.end["state"] == "done"
            with_stuck, without = (peak - base for peak, base in zip(peaks, before, strict=True))
            # Of each a chunk of 256 KiB and its copy on the way to the socket; four times that for
            # an allocator that keeps what it had.
            assert with_stuck - without < STUCK * 2 * MIB
            await until(lambda: all(map(cut_off, stuck)), "they are cut off", 20)
            for sock in (stuck[0], stuck[-1]):
                seen = Parser(1 << 26).feed(body_of(await all_of(sock)))
                assert 0 < len(seen) < EVENTS / 2
                rest = await at.read(1, urls[0], last_id=seen[-1].id.decode())
                assert [*seen, *rest.events] == whole[0].events


def has_headers(sock: socket.socket) -> bool:
    """Say whether an answer has begun, and leave it unread."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


async def test_memory_returns_when_streams_have_ended(shared_redis: RedisServer) -> None:
    """Logs that stayed behind would be 10 MB in every round; an allocator's leftovers, in one."""

    async def script(call: Call) -> None:
        await call.send(OK, sse(*[chunk("x" * 2500)] * 40, chunk("", finish="stop"), b"[DONE]"))

    async with scripted(script) as upstream, site(shared_redis, upstream, lease="1") as at:
        held: list[list[int]] = []
        while len(held) < 3 or (len(held) < 7 and growth_of(held) >= 5 * MIB):
            await many(at)
            kept_until = time.monotonic() + 3  # Two leases, and the sweep after them.
            await until(lambda end=kept_until: time.monotonic() > end)  # type: ignore[misc]
            held.append([memory(each) for each in at.processes])
        assert growth_of(held) < 5 * MIB, held
        assert len(upstream.calls) == len(held) * STREAMS


def growth_of(held: list[list[int]]) -> int:
    """Return by how much the replica that grew most did in the last of these rounds."""
    return max(last - before for before, last in zip(held[-2], held[-1], strict=True))


async def test_what_ended_is_freed_at_once_however_it_ended() -> None:
    """A collector counts objects: it has no haste with a few that hold sixteen megabytes each."""

    go = asyncio.Event()

    async def script(call: Call) -> None:
        how = call.json["messages"][0]["content"]
        await call.send(OK, sse(chunk("x")))
        await go.wait()
        if how == "cancelled":
            await call.left.wait()
        elif how == "truncated":
            await call.send(b"data: {")
            call.cut()
        else:
            await call.send(WHOLE)

    async with scripted(script) as upstream, running(upstream_url=upstream.url, lease=1) as served:
        ends = ["done", "cancelled", "truncated"]
        urls = [await served.ticket(ask(how)) for how in ends]
        reading = [asyncio.create_task(served.read(url)) for url in urls]
        await until(lambda: len(served.gateway.supervisor.active) == 3)
        logs = [weakref.ref(run.log) for run in served.gateway.supervisor.active]
        gc.disable()
        try:
            go.set()
            await served.http.delete(urls[1], headers=served.cookie())
            assert [(await each).end["state"] for each in reading] == ends
            await until(lambda: [each() for each in logs] == [None] * 3, "all are freed", 20)
        finally:
            gc.enable()


async def many(at: Site) -> None:
    """Run a round of streams, each seen on both replicas."""

    async def one(number: int) -> None:
        for _ in range(STREAMS // 20):
            url = await at.ticket(ask(f"{number}"))
            for answer in await asyncio.gather(*(http.get(url, headers=ALICE) for http in at.http)):
                assert b'"state":"done"' in answer.content[-300:]

    await asyncio.gather(*(one(number) for number in range(20)))

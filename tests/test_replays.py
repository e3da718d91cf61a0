"""What has to be read back from Redis costs the same memory however many look, and however."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from gateway.sse import Parser
from tests.support import (
    OK,
    Call,
    Process,
    RedisServer,
    ask,
    chunk,
    client,
    cookie,
    scripted,
    settings,
    sse,
    until,
)
from tests.test_bounds import has_headers, memory
from tests.test_promises import ALICE, Site, at_least, cut_off, reader_of_nothing, site

MIB = 1 << 20
READS = ("xrange", "xrevrange", "xread")
BIG = 8 * MIB
GAP = 4.5  # Half a second is the promise, see `tests.hostile`; other tests run on this machine too.
BOB = cookie(settings(), "bob")


async def story(call: Call) -> None:
    """Answer with what the prompt names."""
    kind = call.json["messages"][0]["content"]
    if kind == "steady":
        await call.send(OK)
        while not call.left.is_set():
            await call.send(sse(chunk("tick ")))
            await asyncio.sleep(0.05)
    else:
        size = {"large": 900_000, "small": 300}[kind]
        event = sse(chunk("x" * size))
        batch = max(1, MIB // len(event))
        await call.send(OK)
        for _ in range(BIG // (len(event) * batch)):
            await call.send(event * batch)
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


class Bystander:
    """Somebody else's steady stream on the replica that is attacked, and the longest gap in it."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.longest = 0.0
        self.events = 0
        self._busy = 0.0  # Seconds for which this process itself could not look.
        self._http = http
        self._url = url

    async def watch(self) -> None:
        """Read for ever."""
        headers = {**BOB, "Accept": "text/event-stream"}
        async with self._http.stream("GET", self._url, headers=headers) as response:
            last = time.monotonic(), self._busy
            async for _ in response.aiter_raw():
                now = time.monotonic(), self._busy
                self.longest = max(self.longest, now[0] - last[0] - (now[1] - last[1]))
                self.events += 1
                last = now

    async def look_at_us(self) -> None:
        """Find out for ever how long this process is busy."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self._busy += time.monotonic() - before - 0.01


class Watch:
    """The most that Redis used while something was done, and how much more a process did."""

    def __init__(self, redis: RedisServer, process: Process) -> None:
        self._redis = Redis.from_url(redis.url)
        self._process = process
        self.redis = self.process = 0
        self.over = False
        self._before = 0, 0

    async def look(self) -> tuple[int, int]:
        """Return what both use now."""
        info = await self._redis.info("memory")
        return int(info["used_memory"]), memory(self._process)

    async def begin(self) -> None:
        """Count from now on."""
        self._before = await self.look()
        self.redis = self.process = 0

    async def run(self) -> None:
        """Look until it is over."""
        while not self.over:
            now = await self.look()
            self.redis = max(self.redis, now[0] - self._before[0])
            self.process = max(self.process, now[1] - self._before[1])
            await asyncio.sleep(0.01)

    async def reads(self) -> int:
        """Return how many pages of logs were read since Redis began."""
        stats = await self._redis.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in READS)

    async def close(self) -> None:
        """End."""
        await self._redis.aclose()


@asynccontextmanager
async def attacked(redis: RedisServer, **more: str) -> AsyncIterator[tuple[Site, Bystander, Watch]]:
    """Run two replicas with a bystander on the first; fails if somebody attacks it with success."""
    # A machine full of tests must not make the one replica take the other for dead.
    given = {"lease": "20", **more}
    async with scripted(story) as upstream, site(redis, upstream, **given) as at:
        answer = await at.http[0].post("/tickets", json=ask("steady"), headers=BOB)
        async with client(at.processes[0].url) as own:
            bystander = Bystander(own, answer.json()["stream_url"])
            watch = Watch(redis, at.processes[0])
            watching = asyncio.create_task(bystander.watch())
            await until(lambda: bystander.events > 5, "the bystander's stream runs")
            await watch.begin()
            looking = asyncio.create_task(watch.run())
            busy = asyncio.create_task(bystander.look_at_us())
            try:
                yield at, bystander, watch
                assert not watching.done()
                assert bystander.longest < GAP
            finally:
                watch.over = True  # Cancelled in the midst of a question it would lose a socket.
                await looking
                for task in (watching, busy):
                    task.cancel()
                await asyncio.gather(watching, busy, return_exceptions=True)
                await watch.close()


def cpu(process: Process) -> float:
    """Return the seconds that a process has worked."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


async def told(at: Site, kind: str) -> str:
    """Return the URL of a stream of the second replica that has ended."""
    url = await at.ticket(ask(kind))
    await at.read(1, url)
    return url


async def count_events(http: httpx.AsyncClient, url: str, pause: float = 0) -> tuple[int, bool]:
    """Read a stream, slowly if so told; return how many events came, and whether `end` did."""
    parser, count, ended = Parser(limit=1 << 26), 0, False
    headers = {**ALICE, "Accept": "text/event-stream"}
    async with http.stream("GET", url, headers=headers) as response:
        async for piece in response.aiter_raw():
            for event in parser.feed(piece):
                count += 1
                ended = event.name == b"end"
            await asyncio.sleep(pause)
    return count, ended


@pytest.mark.parametrize("kind", ["large", "small"])
async def test_a_replay_for_sixty_viewers_is_read_once_and_held_by_nobody(
    own_redis: RedisServer, kind: str
) -> None:
    async with attacked(own_redis, replay_bytes=str(32 * MIB)) as (at, _, watch):
        url = await told(at, kind)
        await watch.begin()
        whole = await count_events(at.http[1], url)
        with ExitStack() as closing:
            stuck = [
                closing.enter_context(reader_of_nothing(at.processes[0].url, url))
                for _ in range(50)
            ]
            await until(lambda: all(map(has_headers, stuck)), "all are served")
            viewers = [count_events(at.http[0], url, 0.001 * (n % 2)) for n in range(10)]
            assert await asyncio.gather(*viewers) == [whole] * 10
        assert whole[1]
        assert watch.redis < 20 * MIB
        assert watch.process < 60 * MIB


async def test_many_large_streams_are_held_in_no_more_memory_than_is_set(
    own_redis: RedisServer,
) -> None:
    """Six of them, 48 MB in all, each for readers and for some who do not read."""
    async with attacked(own_redis, replay_bytes=str(8 * MIB)) as (at, _, watch):
        urls = [await told(at, "large") for _ in range(6)]
        await watch.begin()
        with ExitStack() as closing:
            stuck = [
                closing.enter_context(reader_of_nothing(at.processes[0].url, url))
                for url in urls * 4
            ]
            await until(lambda: all(map(has_headers, stuck)), "all are served")
            got = await asyncio.gather(*(count_events(at.http[0], url) for url in urls * 2))
        assert got == [(got[0][0], True)] * 12
        assert watch.redis < 20 * MIB
        assert watch.process < 40 * MIB


async def test_sixty_viewers_of_the_text_of_a_long_answer_leave_the_others_their_time(
    own_redis: RedisServer,
) -> None:
    async with attacked(own_redis) as (at, _, watch):
        url = await told(at, "small")
        await watch.begin()
        text = [count_events(at.http[0], f"{url}&format=text") for _ in range(60)]
        readers = [asyncio.create_task(each) for each in text]
        done, _ = await asyncio.wait(readers, timeout=4)
        for each in readers:
            each.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert all(each.result()[1] for each in done)
        assert watch.process < 60 * MIB


# /completion


@pytest.mark.parametrize("where", [0, 1])
async def test_the_completion_of_a_long_answer_is_worked_out_once_for_all_who_ask(
    own_redis: RedisServer, where: int
) -> None:
    async with attacked(own_redis) as (at, _, watch):
        url = (await told(at, "small")).replace("/stream", "/completion")
        await watch.begin()
        first = await at.http[where].get(url, headers=ALICE)
        used, commands = cpu(at.processes[where]), await watch.reads()
        many = [at.http[where].get(url, headers=ALICE) for _ in range(40)]
        for answer in await asyncio.gather(*many):
            assert answer.content == first.content
        assert cpu(at.processes[where]) - used < 2
        assert await watch.reads() == commands
        assert len(first.json()["text"]) > 5 * MIB
        assert watch.process < 60 * MIB
        assert watch.redis < 20 * MIB


async def test_who_asks_for_long_completions_and_does_not_read_them_holds_none(
    own_redis: RedisServer,
) -> None:
    async with attacked(own_redis, write_timeout="2") as (at, _, watch):
        urls = [await told(at, "large") for _ in range(2)]
        await watch.begin()
        with ExitStack() as closing:
            stuck = [
                closing.enter_context(
                    reader_of_nothing(at.processes[0].url, url.replace("/stream", "/completion"))
                )
                for url in urls * 15
            ]
            await until(lambda: all(map(has_headers, stuck)), "all are served")
            await until(lambda: all(map(cut_off, stuck)), "all are cut off", 20)
        assert watch.process < 80 * MIB


async def test_to_ask_for_the_completion_is_enough_to_have_a_dead_owners_stream_ended(
    own_redis: RedisServer,
) -> None:
    """Redis forgot whose it was, so nobody looks for its streams but who asks for one."""

    async def dies(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await call.left.wait()

    async with scripted(dies) as upstream, site(own_redis, upstream, lease="2") as at:
        url = await at.ticket()
        await at.read(0, url, enough=at_least(1))
        at.processes[0].signal(signal.SIGKILL)
        await until(lambda: at.processes[0].process.poll() is not None)
        async with Redis.from_url(own_redis.url) as redis:
            await redis.delete("gw:beats", *[key async for key in redis.scan_iter("gw:runs:*")])
        await at.ends(url, "interrupted")

"""What has to be read back from Redis costs the same memory however many look, and however."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

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
from tests.test_promises import ALICE, Site, reader_of_nothing, site

MIB = 1 << 20
BIG = 8 * MIB
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
        """Look for ever."""
        while True:
            now = await self.look()
            self.redis = max(self.redis, now[0] - self._before[0])
            self.process = max(self.process, now[1] - self._before[1])
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End."""
        await self._redis.aclose()


@asynccontextmanager
async def attacked(redis: RedisServer, **more: str) -> AsyncIterator[tuple[Site, Bystander, Watch]]:
    """Run two replicas with a bystander on the first; fails if somebody attacks it with success."""
    async with scripted(story) as upstream, site(redis, upstream, **more) as at:
        answer = await at.http[0].post("/tickets", json=ask("steady"), headers=BOB)
        async with client(at.processes[0].url) as own:
            bystander = Bystander(own, answer.json()["stream_url"])
            watch = Watch(redis, at.processes[0])
            watching = asyncio.create_task(bystander.watch())
            await until(lambda: bystander.events > 5, "the bystander's stream runs")
            await watch.begin()
            begun = [asyncio.create_task(each) for each in (watch.run(), bystander.look_at_us())]
            try:
                yield at, bystander, watch
                assert not watching.done()
                print(
                    f"redis +{watch.redis / MIB:.0f} MB, process +{watch.process / MIB:.0f} MB, "
                    f"gap {bystander.longest:.2f} s"
                )
                assert bystander.longest < 0.5
            finally:
                for task in (watching, *begun):
                    task.cancel()
                await asyncio.gather(watching, *begun, return_exceptions=True)
                await watch.close()


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
                for _ in range(40)
            ]
            await until(lambda: all(map(has_headers, stuck)), "all are served")
            viewers = [count_events(at.http[0], url, 0.001 * (n % 2)) for n in range(20)]
            assert await asyncio.gather(*viewers) == [whole] * 20
        assert whole[1]
        assert watch.redis < 20 * MIB
        assert watch.process < 60 * MIB

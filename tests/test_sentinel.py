"""A master that dies, hangs or is replaced costs no stream anything: real nodes, real Sentinels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.sentinels import Sentinels, ask, sentinels
from tests.support import Call, ScriptedUpstream, Transcript, chunk, follow, scripted, until, whole
from tests.test_promises import ALICE, Paced, Site, at_least, site

STREAMS = 6
EVENTS = 80
PAUSE = 0.05  # Seconds between two: four in all, in which a failover has its place.


class Watched:
    """Streams under way on two replicas, each with a viewer on both, who come back as pages do."""

    def __init__(self, at: Site, script: Paced) -> None:
        self.at = at
        self.urls: list[str] = []
        self._script = script
        self._viewers: list[list[asyncio.Task[Transcript]]] = []

    async def begin(self) -> None:
        """Redeem every other ticket on one replica, the rest on the other."""
        self.urls = [await self.at.ticket() for _ in range(STREAMS)]
        enough = at_least(3)
        await asyncio.gather(
            *(self.at.read(at % 2, url, enough=enough) for at, url in enumerate(self.urls))
        )
        for url in self.urls:
            ways = [self._follow(at, url) for at in (0, 1)]
            self._viewers.append([asyncio.create_task(way) for way in ways])

    async def _follow(self, at: int, url: str) -> Transcript:
        return await follow(self.at.http[at], lambda: url, ALICE, 45)

    async def all_whole(self) -> None:
        """Assert that every viewer had every event once and in order, and that a replay is that."""
        expected = [*self._script.data, chunk("", finish="stop"), b"[DONE]"]
        for url, viewers in zip(self.urls, self._viewers, strict=True):
            got = [await each for each in viewers]
            got += [await self.at.read(where, url) for where in (0, 1)]
            for each in got:
                assert each.data == expected
                assert each.end["state"] == "done"
                assert each.end["attempts"] == 1
            assert len({tuple(each.ids) for each in got}) == 1
            assert [int(name.partition("-")[2]) for name in got[0].ids] == [
                *range(1, EVENTS + 4),
            ]

    async def ready(self) -> None:
        """Wait until both replicas say that they can serve."""

        async def both() -> bool:
            return [(await each.get("/readyz")).status_code for each in self.at.http] == [200] * 2

        await until(both, "both are ready")


@asynccontextmanager
async def under_way(
    folder: Path, *options: str, down_after: float = 1
) -> AsyncIterator[tuple[Sentinels, ScriptedUpstream, Watched]]:
    """Run the nodes, two gateways and the streams."""
    paced = Paced(EVENTS, PAUSE)

    async def script(call: Call) -> None:
        await (paced if len(upstream.calls) <= STREAMS else whole)(call)

    async with (
        sentinels(folder, *options, down_after=down_after) as redis,
        scripted(script) as upstream,
        site(redis.nodes[0], upstream, redis_url=redis.url) as at,
    ):
        watched = Watched(at, paced)
        await watched.begin()
        yield redis, upstream, watched


async def test_a_machine_that_is_lost_costs_no_stream_an_event_or_a_call(tmp_path: Path) -> None:
    """The master was on it, and the Sentinel that gateways ask first, which hangs from now on."""
    async with under_way(tmp_path) as (redis, upstream, watched):
        old = await redis.master()
        redis.watchers[0].pause()
        old.kill()
        await redis.moved_from(old)
        await watched.ready()
        await watched.all_whole()
        assert len(upstream.calls) == STREAMS
        fresh = await watched.at.ticket()
        old.start()  # It believes to be the master, until it is told.
        await redis.demoted(old)
        assert (await watched.at.read(1, fresh)).end["state"] == "done"


async def test_what_a_master_took_that_was_none_any_more_is_written_again(tmp_path: Path) -> None:
    """It hangs, is replaced, wakes up and goes on answering those who are still connected."""
    async with under_way(tmp_path, down_after=0.3) as (redis, upstream, watched):
        old = await redis.master()
        old.pause()
        new = await redis.moved_from(old)
        old.resume()
        await ask(old.port, "SET", "witness", "taken", "PX", 60_000)
        await redis.demoted(old)
        await until(lambda: _gone(old.port, "witness"), "what it took is lost")
        assert await ask(new.port, "GET", "witness") is None
        await watched.all_whole()
        await watched.ready()
        assert len(upstream.calls) == STREAMS


async def _gone(port: int, key: str) -> bool:
    return await ask(port, "GET", key) is None


async def test_a_planned_failover_costs_no_stream_anything(tmp_path: Path) -> None:
    async with under_way(tmp_path) as (redis, upstream, watched):
        old = await redis.master()
        new = await redis.fail_over()
        await redis.demoted(old)
        await watched.ready()
        url = await watched.at.ticket()
        assert await ask(new.port, "DBSIZE") > 0
        await watched.all_whole()
        assert (await watched.at.read(0, url)).end["state"] == "done"
        assert len(upstream.calls) == STREAMS + 1

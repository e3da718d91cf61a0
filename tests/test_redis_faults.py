"""What a real Redis may do under open streams, and what it costs them: time, and nothing else."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import Unavailable
from gateway.eventlog.reader import read_all
from gateway.sse import parse
from gateway.store.client import RedisClient
from tests.eventlog.test_writer import proxied
from tests.sentinels import ask as ask_redis
from tests.support import (
    OK,
    Call,
    RedisServer,
    ScriptedUpstream,
    Transcript,
    ask,
    chunk,
    follow,
    redis_server,
    running,
    scripted,
    sse,
    until,
    whole,
)
from tests.test_promises import ALICE, Paced, Site, at_least, held, site, stream_id_of

STREAM = {**ALICE, "Accept": "text/event-stream"}


class Watched:
    """Streams under way on two replicas, with viewers on both, who come back as pages do."""

    def __init__(self, at: Site, script: Paced) -> None:
        self.at = at
        self.urls: list[str] = []
        self._expected = [*script.data, chunk("", finish="stop"), b"[DONE]"]
        self._viewers: list[tuple[str, asyncio.Task[Transcript]]] = []

    async def begin(self, count: int) -> None:
        """Redeem every other ticket on one replica, the rest on the other."""
        self.urls = [await self.at.ticket() for _ in range(count)]
        ways = (
            self.at.read(number % 2, url, enough=at_least(1))
            for number, url in enumerate(self.urls)
        )
        await asyncio.gather(*ways)
        self.join()

    def join(self) -> None:
        """Let a further viewer of each stream come to each replica."""
        for url in self.urls:
            for http in self.at.http:
                way = follow(http, lambda url=url: url, ALICE, 45)  # type: ignore[misc]
                self._viewers.append((url, asyncio.create_task(way)))

    async def all_whole(self) -> None:
        """Assert that every viewer had every event once and in order, and a replay has them."""
        seen: dict[str, set[tuple[str, ...]]] = {url: set() for url in self.urls}
        for url, viewer in self._viewers:
            self._check(got := await viewer)
            seen[url].add(tuple(got.ids))
        late = [self.at.read(where, url) for where in (0, 1) for url in self.urls]
        for url, got in zip(self.urls * 2, await asyncio.gather(*late), strict=True):
            self._check(got)
            seen[url].add(tuple(got.ids))
        assert {len(each) for each in seen.values()} == {1}

    def _check(self, got: Transcript) -> None:
        assert got.data == self._expected
        assert (got.end["state"], got.end["attempts"]) == ("done", 1)
        assert [int(each.partition("-")[2]) for each in got.ids] == [*range(1, len(got.ids) + 1)]

    async def ready(self) -> None:
        """Wait until both replicas say that they can serve."""

        async def both() -> bool:
            return {(await each.get("/readyz")).status_code for each in self.at.http} == {200}

        await until(both, "both are ready")


@asynccontextmanager
async def watched(
    redis: RedisServer, script: Paced, count: int, **more: str
) -> AsyncIterator[tuple[ScriptedUpstream, Watched]]:
    """Run two replicas and so many streams under way; each later call is short and whole."""

    async def first_ones(call: Call) -> None:
        await (script if len(upstream.calls) <= count else whole)(call)

    # Shorter than it is away; and a slow machine must make no replica take the other for dead.
    given = {"lease": "3", **more}
    async with scripted(first_ones) as upstream, site(redis, upstream, **given) as at:
        streams = Watched(at, script)
        await streams.begin(count)
        yield upstream, streams


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real server that keeps what it acknowledged, and that a test may kill."""
    with redis_server(tmp_path, "--appendonly", "yes") as server:
        yield server


class Seen:
    """What a viewer has so far, for a reader that is to go on."""

    def __init__(self) -> None:
        self.got = Transcript()

    def __call__(self, got: Transcript) -> bool:
        """Take note; it is never enough."""
        self.got = got
        return False

    @property
    def heartbeats(self) -> int:
        """How many came."""
        return self.got.raw.count(b"\n:\n")


async def heard(viewers: list[Seen]) -> None:
    """Wait until each has heard one more heartbeat than before."""
    before = [each.heartbeats for each in viewers]
    await until(
        lambda: all(each.heartbeats > old for each, old in zip(viewers, before, strict=True)),
        "a heartbeat for each",
    )


# Without channels


async def test_a_redis_user_without_channels_costs_viewers_elsewhere_a_second(
    own_redis: RedisServer,
) -> None:
    """Redis gives a new user none, since 7.0."""
    await ask_redis(own_redis.port, "ACL", "SETUSER", "gw", "on", ">pw", "+@all", "~*")
    script = held(3)
    async with scripted(script) as upstream, AsyncExitStack() as stack:
        url = own_redis.url.replace("//", "//gw:pw@")
        given = {"redis_url": url, "upstream_url": upstream.url}
        here, there = [await stack.enter_async_context(running(**given)) for _ in range(2)]
        stream = await here.ticket()
        await here.read(stream, enough=at_least(3))
        await there.read(stream, enough=at_least(3))
        watching = [asyncio.create_task(each.read(stream)) for each in (here, there)]
        await until(lambda: there.gateway.fanout.viewers, "it is watched there")
        begun = time.monotonic()
        answer = await there.http.delete(stream, headers=there.cookie())
        assert (answer.status_code, answer.json()) == (200, {"state": "cancelled"})
        for each in watching:
            assert (await each).end["state"] == "cancelled"
        assert time.monotonic() - begun < 10  # A look for cancels, and one at the log.


# Away


async def test_viewers_of_a_redis_that_is_down_hear_heartbeats_and_then_everything(
    durable_redis: RedisServer,
) -> None:
    script = held(30)
    async with watched(durable_redis, script, 2) as (upstream, streams):
        viewers = [Seen(), Seen()]
        waiting = [
            asyncio.create_task(streams.at.read(where, streams.urls[0], enough=viewer))
            for where, viewer in enumerate(viewers)
        ]
        await until(lambda: all(each.got.events for each in viewers), "both see it")
        durable_redis.kill()
        script.go.set()  # The upstreams end while there is no Redis to tell.
        await heard(viewers)
        for http in streams.at.http:
            assert (await http.post("/tickets", json=ask(), headers=ALICE)).status_code == 503
        await heard(viewers)
        durable_redis.start()
        for each in waiting:
            assert (await each).end["state"] == "done"
        await streams.all_whole()
        await streams.ready()
        assert len(upstream.calls) == 2


async def test_an_upstream_is_read_up_to_a_bound_while_redis_is_down_and_then_to_its_end(
    durable_redis: RedisServer,
) -> None:
    """The bound is a MiB; the sockets on the way hold some more."""
    events = [b"%d " % number + b"x" * 65_000 for number in range(300)]
    sent, down = 0, asyncio.Event()

    async def flood(call: Call) -> None:
        nonlocal sent
        await call.send(OK, sse(b"first"))
        await down.wait()
        for each in events:
            await call.send(sse(each))
            sent += len(each)
        await call.send(sse(b"[DONE]"))

    async with (
        scripted(flood) as upstream,
        site(durable_redis, upstream, max_log=str(64 << 20)) as at,
    ):
        url = await at.ticket()
        await at.read(0, url, enough=at_least(1))
        viewer = asyncio.create_task(follow(at.http[1], lambda: url, ALICE, 45))
        durable_redis.kill()
        down.set()
        await until(standing(lambda: sent), "the upstream has to wait", 20)
        assert 1 << 20 < sent < 16 << 20
        durable_redis.start()
        got = await viewer
        assert got.data == [b"first", *events, b"[DONE]"]
        assert got.end["state"] == "done"
        assert len(upstream.calls) == 1


def standing(value: Callable[[], int]) -> Callable[[], bool]:
    """Return a test of whether a number has stood still for a second."""
    last, since = value(), time.monotonic()

    def stands() -> bool:
        nonlocal last, since
        if value() != last:
            last, since = value(), time.monotonic()
        return time.monotonic() - since > 1

    return stands


# Slow


async def test_a_slow_redis_makes_streams_late_and_nobody_dead(own_redis: RedisServer) -> None:
    """Each reply takes its time, and a beat takes two: they come late."""
    chance = random.Random(7)
    script = Paced(60, 0.05)
    async with proxied(own_redis) as proxy:
        slow = {"redis_url": proxy.url, "lease": "8"}
        async with watched(own_redis, script, 6, **slow) as (upstream, streams):
            proxy.delay = lambda: chance.uniform(0.3, 1)
            streams.join()
            await streams.all_whole()
            assert len(upstream.calls) == 6


# Back again


async def test_a_redis_that_lost_its_last_seconds_is_told_them_before_anything_new(
    tmp_path: Path, durable_redis: RedisServer
) -> None:
    """What it kept ends in the middle, as a disk does that was not flushed."""
    script = Paced(60, 0.03, held=True)
    async with watched(durable_redis, script, 4) as (upstream, streams):
        store = RedisClient(durable_redis.url)
        await until(lambda: has(store, streams.urls, 30), "half of it is logged")
        durable_redis.kill()
        lose_half(tmp_path)
        durable_redis.start()
        script.go.set()
        await streams.all_whole()
        for url in streams.urls:
            logged = await read_all(store, stream_id_of(url))
            events = [event for entry in logged for event in parse(entry.frames)]
            assert [int(each.id.partition(b"-")[2]) for each in events] == [*range(1, 64)]
        await store.close()
        assert len(upstream.calls) == 4


def lose_half(folder: Path) -> None:
    """Cut what a server has written to its journal."""
    (journal,) = folder.rglob("*.incr.aof")
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])


async def has(store: RedisClient, urls: list[str], count: int) -> bool:
    """Say whether each log has so many events."""
    logs = [await read_all(store, stream_id_of(url)) for url in urls]
    return all(sum(entry.number for entry in log) >= count for log in logs)


async def test_a_redis_that_comes_back_empty_learns_all_that_runs_also_for_new_viewers(
    own_redis: RedisServer,
) -> None:
    script = Paced(40, 0.05, held=True)
    async with watched(own_redis, script, 4, lease="4") as (upstream, streams):
        at = streams.at
        unredeemed = await at.ticket()
        own_redis.kill()
        own_redis.start()
        back = time.monotonic()
        streams.join()
        for http in at.http:  # Not 410: a page that hears it gives up for good.
            page = await http.get(unredeemed, headers=STREAM)
            assert (page.status_code, page.content[:7]) == (200, b"retry: ")
            assert (await http.get(unredeemed, headers=ALICE)).status_code == 503
        assert time.monotonic() - back < 8
        script.go.set()
        await streams.all_whole()
        await until(lambda: gone(at, unredeemed), "two leases later it is gone for good")
        assert time.monotonic() - back > 8
        assert (await at.read(0, unredeemed, last_id="1-1")).status == 204
        assert len(upstream.calls) == 4


async def gone(at: Site, url: str) -> bool:
    """Say whether both replicas refuse a ticket for good."""
    return [(await at.read(where, url)).status for where in (0, 1)] == [410, 410]


# Full


async def test_a_redis_that_is_full_holds_streams_up_and_leaves_no_hole(
    own_redis: RedisServer,
) -> None:
    """Also where nobody watches on the owner: who watches elsewhere cannot say so meanwhile."""
    events = [b"%d " % number + b"x" * 20_000 for number in range(40)]
    full, room = asyncio.Event(), asyncio.Event()

    async def large(call: Call) -> None:
        await call.send(OK, sse(events[0]))
        await full.wait()
        for each in events[1:]:
            await call.send(sse(each))
            await asyncio.sleep(0.02)
        await room.wait()
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))

    store = RedisClient(own_redis.url)
    async with scripted(large) as upstream, site(own_redis, upstream, grace="3", lease="2") as at:
        urls = [await at.ticket() for _ in range(8)]
        await asyncio.gather(*(at.read(0, url, enough=at_least(1)) for url in urls))
        viewers = [Seen() for _ in urls]
        reading = [
            asyncio.create_task(at.read(1, url, enough=viewer))
            for url, viewer in zip(urls, viewers, strict=True)
        ]
        await until(lambda: all(each.got.events for each in viewers), "all are seen elsewhere")
        await leave_room(store, 1_500_000)
        full.set()
        await until(lambda: is_full(store), "it refuses some")
        await store.call("CONFIG", "SET", "maxmemory", 1_000_000)  # And all from now on.
        begun = time.monotonic()
        for http in at.http:
            answer = await http.post("/tickets", json=ask("x" * 9000), headers=ALICE)
            assert answer.status_code == 503
            assert answer.json()["code"] in {"store_unavailable", "store_full"}
            assert int(answer.headers["retry-after"]) >= 1
        await until(lambda: time.monotonic() - begun > 5, "longer than the grace")
        await heard(viewers)
        assert not any(call.left.is_set() for call in upstream.calls)
        await store.call("CONFIG", "SET", "maxmemory", 0)
        room.set()
        for url, way in zip(urls, reading, strict=True):
            got = await way
            assert got.end["state"] == "done"
            assert got.data == [*events, chunk("", finish="stop"), b"[DONE]"]
            assert (await at.read(0, url)).events == got.events

        async def taken() -> bool:
            answer = await at.http[1].post("/tickets", json=ask(), headers=ALICE)
            return answer.status_code == 201

        await until(taken, "the room that was made is seen: a replica looks once a second")
        assert len(upstream.calls) == 8
    await store.close()


async def leave_room(store: RedisClient, size: int) -> None:
    """Let Redis take so many bytes more and then refuse."""
    memory = bytes(await store.call("INFO", "memory")).splitlines()
    (used,) = [int(line[12:]) for line in memory if line.startswith(b"used_memory:")]
    await store.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await store.call("CONFIG", "SET", "maxmemory", used + size)


async def is_full(store: RedisClient) -> bool:
    """Say whether Redis refuses to take anything."""
    try:
        await store.call("SET", "witness", "x", "PX", 1000)
    except Unavailable:
        return True
    return False


# Zombies


async def test_an_owner_that_slept_past_its_lease_writes_nothing_more_and_serves_again(
    shared_redis: RedisServer,
) -> None:
    go = asyncio.Event()

    async def endless(call: Call) -> None:
        await call.send(OK, sse(chunk("before")))
        await go.wait()
        await call.send(sse(chunk("after")) * 10)
        await call.left.wait()

    async def script(call: Call) -> None:
        await (endless if len(upstream.calls) == 1 else whole)(call)

    async with scripted(script) as upstream, site(shared_redis, upstream, lease="2") as at:
        url = await at.ticket()
        on_owner = asyncio.create_task(at.read(0, url))
        await until(lambda: upstream.calls)
        elsewhere = await at.read(1, url, enough=at_least(1))
        zombie = at.processes[0]
        zombie.signal(signal.SIGSTOP)
        end = await at.read(1, url, last_id=elsewhere.last_id)
        assert end.end["state"] == "interrupted"
        go.set()  # It finds more of the answer as it wakes up.
        zombie.signal(signal.SIGCONT)
        whole_ = [*elsewhere.events, *end.events]
        assert (await asyncio.wait_for(on_owner, 20)).events == whole_
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        again = await at.ticket()
        assert (await at.read(0, again)).end["state"] == "done"
        assert (await at.read(0, url)).events == (await at.read(1, url)).events == whole_
        assert len(upstream.calls) == 2

"""Channels over replicas that die and Redises that fail over: in order, once, or told of."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from gateway.eventlog.entries import EventId
from gateway.store.keys import channel_id, log_key, new_id
from tests.clusters import redis_cluster
from tests.sentinels import sentinels
from tests.support import (
    SECRET,
    Process,
    RedisServer,
    client,
    cookie,
    process,
    settings,
    until,
)
from tests.web.test_events import TOKEN, Gate, Watcher, push, replica

PATIENT = {"lease": 10, "grace": 9}


class Dying:
    """A replica that is a process of its own, so that it can be killed."""

    def __init__(self, started: Process, http: httpx.AsyncClient) -> None:
        self.http = http
        self._started = started

    def cookie(self, subject: str) -> dict[str, str]:
        """Return the headers of a subject's request."""
        return cookie(settings(), subject)

    def kill(self) -> None:
        """Send it a SIGKILL."""
        self._started.signal(signal.SIGKILL)


@asynccontextmanager
async def dying(redis_url: str) -> AsyncIterator[Dying]:
    """Run a replica that a test may kill."""
    given = {"redis_url": redis_url, "secrets": SECRET, "service_tokens": TOKEN}
    given |= {"upstream_url": "http://127.0.0.1:9/v1", "heartbeat": "1"}
    with process("serve", "--port", "0", **given) as started:
        async with client(started.url) as http:
            yield Dying(started, http)


async def push_surely(gates: Sequence[Gate], user: str, text: str) -> str:
    """Push as an app's server does that had no answer: again, to the next replica."""
    for _ in range(100):
        for gate in gates:
            with suppress(httpx.TransportError, AssertionError):
                return await push(gate, user, text, message_id=text)
        await asyncio.sleep(0.1)
    raise AssertionError(f"nobody takes {text}")


async def test_sixty_messages_pushed_twice_each_come_once_in_order_through_cuts_and_a_kill(
    shared_redis: RedisServer,
) -> None:
    user, url = new_id(), shared_redis.url
    page, stranger, ids = Watcher(user), Watcher(new_id()), list[str]()
    async with replica(url, **PATIENT) as b, replica(url, **PATIENT) as c, dying(url) as a:

        async def write(first: int, end: int, *gates: Gate) -> None:
            for number in range(first, end):
                order = [*gates[number % len(gates) :], *gates[: number % len(gates)]]
                ids.append(await push_surely(order, user, f"m{number}"))
                assert await push_surely(order[::-1], user, f"m{number}") == ids[-1]

        async def seen(count: int) -> None:
            await until(lambda: len(page.events) >= count, f"{count} messages", 20)

        async with stranger.on(b):
            async with page.on(a):
                pass  # It has a position, and leaves.
            await write(0, 10, a, b)
            async with page.on(a):
                await seen(10)
                await write(10, 20, a, b)
                await seen(20)
            async with page.on(b):
                await write(20, 25, a, b)
                await seen(25)
            async with page.on(a):
                writing = asyncio.create_task(write(25, 45, a, b))
                await seen(30)
                a.kill()
                await writing
            async with page.on(c):
                await seen(45)
            await write(45, 50, c, b)
            async with page.on(b):
                await write(50, 60, c, b)
                await seen(60)
    assert page.data == [f"m{number}" for number in range(60)]
    assert [each.id.decode() for each in page.events] == ids
    assert page.gaps == []
    assert stranger.events == []


# A failover: what was acknowledged last may be lost, as replicas lag; no order and no id is

Store = tuple[str, Callable[[str], Awaitable[None]]]
_LAG = 1.0  # Seconds before a master's death of which its successor may know nothing.


@asynccontextmanager
async def sentinel_store(folder: Path) -> AsyncIterator[Store]:
    """Run a Redis behind Sentinels; yields its URL and what lets its master die."""
    async with sentinels(folder, down_after=0.5) as redis:

        async def fail_over(user: str) -> None:
            old = await redis.master()
            old.kill()
            await redis.moved_from(old)

        yield redis.url, fail_over


@asynccontextmanager
async def cluster_store(folder: Path) -> AsyncIterator[Store]:
    """Run a Cluster; yields its URL and what lets the master die that has a user's channel."""
    with redis_cluster(folder, masters=3, replicas=1) as cluster:

        async def fail_over(user: str) -> None:
            shard = cluster.shard_of(log_key(channel_id(user)))
            successor = cluster.replicas[shard]
            cluster.masters[shard].kill()
            await until(lambda: successor.info("replication")["role"] == "master", "a master", 30)

        yield cluster.url, fail_over


@pytest.mark.parametrize("store", [sentinel_store, cluster_store], ids=["sentinel", "cluster"])
async def test_a_master_that_dies_gives_no_id_and_no_message_twice_and_tells_what_it_took_along(
    store: Callable[[Path], AbstractAsyncContextManager[Store]], tmp_path: Path
) -> None:
    user, ids, stored = new_id(), dict[str, str](), dict[str, float]()
    async with store(tmp_path) as (url, fail_over), AsyncExitStack() as stack:
        gates = [await stack.enter_async_context(replica(url, **PATIENT)) for _ in range(2)]
        pages = [Watcher(user), Watcher(user), Watcher(user, "?from=start")]
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                text = f"m{number}"
                ids[text] = await push_surely(gates[number % 2 :] + gates[:1], user, text)
                stored[text] = time.monotonic()
                number += 1
                await asyncio.sleep(0.01)

        async def follow(page: Watcher, gate: Gate) -> None:
            while True:
                with suppress(httpx.TransportError, AssertionError):
                    await page.look(gate)
                await asyncio.sleep(0.05)

        following = [
            asyncio.create_task(follow(page, gate))
            for page, gate in zip(pages, [*gates, gates[0]], strict=True)
        ]
        await until(lambda: all(page.connects for page in pages), "all are open", 20)
        writing = asyncio.create_task(write())
        await until(lambda: len(ids) > 20, "some are stored", 20)
        before = time.monotonic() - _LAG
        await fail_over(user)
        may_be_lost, count = {text for text in ids if stored[text] > before}, len(ids)
        await until(lambda: len(ids) > count + 20, "others are stored", 30)
        stop.set()
        await writing
        last = ids[f"m{len(ids) - 1}"]
        await until(lambda: all(page.last_id == last for page in pages), "all have it", 30)
        for task in following:
            task.cancel()
        await asyncio.wait(following)
    for page in pages:
        judge(page, ids, may_be_lost)
    assert len({*ids.values()}) == len(ids)


def judge(page: Watcher, ids: dict[str, str], may_be_lost: set[str]) -> None:
    """Check that a page has each message once, in order, since a gap all that is kept again."""
    seen: list[tuple[EventId, str]] = []
    for event in page.events:
        if event.name == b"gap":
            seen = []
            continue
        at, text = EventId.parse(event.id.decode()), event.data.decode()
        assert at is not None
        seen.append((at, text))
    assert all(str(at) == ids[text] for at, text in seen)
    assert all(one[0] < two[0] for one, two in pairwise(seen))
    texts = [text for _, text in seen]
    assert texts == [text for text in ids if text in texts]
    assert ids.keys() - texts <= may_be_lost

"""A late joiner's snapshot: it and the rest are the whole, wherever he comes in."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.sse import Event
from tests.support import (
    OK,
    Call,
    RedisServer,
    Served,
    Transcript,
    chunk,
    read,
    running,
    scripted,
    sse,
    until,
)
from tests.test_promises import at_least

TEXTS = ["Ä ", '"q"', "\n", "😀", "", "end"]


class Steps:
    """An upstream's script that sends an event whenever it is let go on."""

    def __init__(self) -> None:
        self.steps = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        await call.send(OK)
        for text in TEXTS:
            await self.steps.acquire()
            await call.send(sse(chunk(text)))
        await self.steps.acquire()
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


def text_of(events: list[Event]) -> str:
    """Return the text of what a page got, as it would put it together."""
    text = ""
    for event in events:
        if event.name == b"snapshot":
            text = json.loads(event.data)["text"]
        elif not event.name and event.data != b"[DONE]":
            text += json.loads(event.data)["choices"][0]["delta"].get("content") or ""
    return text


@pytest.mark.parametrize("where", [0, 1])
async def test_snapshot_and_rest_are_the_whole_at_every_position(
    shared_redis: RedisServer, where: int
) -> None:
    script = Steps()
    async with scripted(script) as upstream:
        given = {"redis_url": shared_redis.url, "upstream_url": upstream.url}
        async with running(**given) as a, running(**given) as b:
            url = await a.ticket()
            whole = asyncio.create_task(a.read(url))
            late: list[asyncio.Task[Transcript]] = []
            for number in range(len(TEXTS) + 1):
                served = (a, b)[where]
                late.append(asyncio.create_task(ended(served, url)))
                script.steps.release()
                await until(logged(a, url, number + 1))
            first = await whole
            for got in [*await asyncio.gather(*late), await ended(b, url)]:
                assert text_of(got.events) == "".join(TEXTS)
                assert got.end == first.end
                assert [event.name for event in got.events].count(b"snapshot") <= 1
            # Who comes when all is over has one event and the end, and goes on like any other.
            snapshot, end = (await ended(b, url)).events
            assert (snapshot.name, end.name) == (b"snapshot", b"end")
            assert json.loads(snapshot.data)["finish_reason"] == "stop"
            assert json.loads(snapshot.data)["state"] == "done"
            rest = await read(b.http, url, headers=b.cookie(), last_id=snapshot.id.decode())
            assert rest.events == [end]
            assert len(upstream.calls) == 1


async def ended(served: Served, url: str) -> Transcript:
    """Read a stream with its snapshot."""
    return await read(served.http, f"{url}&snapshot=1", headers=served.cookie())


def logged(served: Served, url: str, number: int) -> Callable[[], Any]:
    """Return whether so many events are logged."""

    async def holds() -> bool:
        last = (await served.completion(url))["last_event_id"]
        return last is not None and int(last.partition("-")[2]) >= number

    return holds


async def test_with_a_position_no_snapshot_is_sent(shared_redis: RedisServer) -> None:
    script = Steps()
    for _ in range(len(TEXTS) + 1):
        script.steps.release()
    async with (
        scripted(script) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        first = await read(
            served.http, f"{url}&snapshot=1", headers=served.cookie(), enough=at_least(2)
        )
        rest = await read(
            served.http, f"{url}&snapshot=1", headers=served.cookie(), last_id=first.last_id
        )
        assert text_of([*first.events, *rest.events]) == "".join(TEXTS)
        assert b"snapshot" not in {event.name for event in [*first.events, *rest.events]}


async def test_a_text_that_is_too_large_for_an_event_is_replayed(
    shared_redis: RedisServer,
) -> None:
    async def large(call: Call) -> None:
        await call.send(OK, sse(*[chunk("x" * 600)] * 4, chunk("", finish="stop"), b"[DONE]"))

    async with (
        scripted(large) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url, max_event=2048) as served,
    ):
        url = await served.ticket()
        await served.read(url)
        assert b"snapshot" not in {each.name for each in (await ended(served, url)).events}


async def test_an_upstreams_own_snapshot_is_not_taken_for_ours(shared_redis: RedisServer) -> None:
    async def named(call: Call) -> None:
        own = b'event: snapshot\ndata: {"choices":[]}\n\n'
        await call.send(OK, own, sse(chunk("x", finish="stop"), b"[DONE]"))

    async with (
        scripted(named) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        got = await served.read(await served.ticket())
        assert got.events[0].name == b"upstream-snapshot"

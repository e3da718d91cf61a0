"""What a user's streams took, booked once for each, whatever became of it."""

import asyncio
import json
from typing import Any

from gateway.limits.ledger import Row
from gateway.store.keys import subject_keys
from tests.support import (
    OK,
    Call,
    RedisServer,
    Served,
    ask,
    chunk,
    running,
    scripted,
    sse,
    until,
)

USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
TOLD = sse(
    chunk("Hel"), chunk("lo", finish="stop"), json.dumps({"choices": [], "usage": USAGE}).encode()
)
PRICED = {"default": {"price": {"prompt": 2.0, "completion": 4.0}}}


async def tells(call: Call) -> None:
    """Answer, and tell the usage."""
    await call.send(OK, TOLD + sse(b"[DONE]"))


async def rows(served: Served, subject: str = "alice") -> list[Row]:
    """Return all that is booked for a subject about today."""
    store = served.gateway.store
    ((seconds, _),) = await store.calls([["TIME"]])
    today = int(seconds) // 86400
    return await served.gateway.records.limits.ledger.rows(subject, [today - 1, today, today + 1])


async def test_an_end_is_booked_as_the_upstream_told_it_once_it_is_seen(
    shared_redis: RedisServer,
) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url, presets=PRICED) as served,
    ):
        for _ in range(3):
            url = await served.ticket(ask(model="small"), subject="bob")
            got = await served.http.get(url, headers=served.cookie("bob"))
            assert b'"state":"done"' in got.content
        (row,) = await rows(served, "bob")
        assert row[1:] == ("default", "small", 3, 33, 15, 0, 0, 3 * (22_000 + 20_000))


async def test_an_end_that_redis_forgot_and_is_written_again_is_booked_once(
    own_redis: RedisServer,
) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        await served.read(url)
        (run,) = served.gateway.supervisor._registry.values()
        run.log.doubt()
        await asyncio.wait_for(until_sound(run), 10)
        assert [row.streams for row in await rows(served)] == [1]
        await served.gateway.store.call("FLUSHALL")
        run.log.doubt()
        await asyncio.wait_for(until_sound(run), 10)
        assert [row.streams for row in await rows(served)] == [1]


async def until_sound(run: Any) -> None:
    """Wait until Redis is known to have all of a run."""
    await until(lambda: not run.log.unsure)


async def test_the_days_of_a_user_expire(shared_redis: RedisServer) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        await served.read(await served.ticket(subject="alice"))
        (row,) = await rows(served)
        keys = subject_keys("alice")
        for key in (keys.usage(row.day), keys.today, keys.booked):
            assert 0 < await served.gateway.store.call("PTTL", key) <= 36 * 86_400_000

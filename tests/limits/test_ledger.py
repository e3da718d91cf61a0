"""What a user's streams took, booked once for each, whatever became of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.limits.ledger import Ledger, Row, Spent, as_bill, booking
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import log_key, new_id, record_key, subject_keys
from tests.clusters import redis_cluster
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
        user = new_id()
        for _ in range(3):
            url = await served.ticket(ask(model="small"), subject=user)
            got = await served.http.get(url, headers=served.cookie(user))
            assert b'"state":"done"' in got.content
        (row,) = await rows(served, user)
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
        await asyncio.wait_for(until_sound(run), 20)
        assert [row.streams for row in await rows(served)] == [1]
        await served.gateway.store.call("FLUSHALL")
        run.log.doubt()
        await asyncio.wait_for(until_sound(run), 20)
        assert [row.streams for row in await rows(served)] == [1]


async def until_sound(run: Any) -> None:
    """Wait until Redis is known to have all of a run."""
    await until(lambda: not run.log.unsure)


async def test_what_a_full_redis_refuses_to_book_is_not_taken_for_booked(
    own_redis: RedisServer,
) -> None:
    store = RedisClient(own_redis.url)
    ledger, booked = Ledger(store, 10), booking("s", Spent("bob", 0, "p", "m", prompt=7), 90_000)
    await store.call("CONFIG", "SET", "maxmemory", "100kb")
    await ledger.book("s", [booked])
    assert ledger.owes
    await store.call("CONFIG", "SET", "maxmemory", 0)
    await ledger.settle()
    assert not ledger.owes
    assert await store.call("HGET", subject_keys("bob").today, "tokens") == b"7"
    await store.close()


async def test_keys_of_another_kind_lose_no_booking(own_redis: RedisServer) -> None:
    store, keys = RedisClient(own_redis.url), subject_keys("bob")
    for name in (keys.booked, keys.today, keys.usage(0), keys.usage(2)):
        await store.call("SET", name, "of whoever")
    script = booking("s", Spent("bob", 0, "p", "m", prompt=7), 90_000)
    assert [await store.script(*script) for _ in range(2)] == [[1], [0]]
    assert await store.call("HGET", keys.today, "tokens") == b"7"
    await store.close()


async def test_the_days_of_a_user_expire(shared_redis: RedisServer) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        user = new_id()
        url = await served.ticket(subject=user)
        await served.http.get(url, headers=served.cookie(user))
        (row,) = await rows(served, user)
        keys = subject_keys(user)
        for key in (keys.usage(row.day), keys.today, keys.booked):
            assert 0 < await served.gateway.store.call("PTTL", key) <= 36 * 86_400_000


# In a Cluster, where a subject is on another server than its streams


@pytest.fixture
async def cluster_url(tmp_path: Path) -> AsyncIterator[str]:
    """A Cluster of three masters, to be reached as one."""
    with redis_cluster(tmp_path) as cluster:
        yield cluster.url


async def test_ends_are_booked_in_a_cluster_too(cluster_url: str) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=cluster_url, upstream_url=upstream.url) as served,
    ):
        for _ in range(6):  # Of which some have the subject's server, and some have not.
            await served.read(await served.ticket())

        async def are_booked() -> bool:
            return [row[3:6] for row in await rows(served)] == [(6, 66, 30)]

        await until(are_booked, "each is booked on its subject's server")


async def test_what_a_dead_owner_sealed_and_did_not_book_is_booked_by_who_finds_it(
    cluster_url: str,
) -> None:
    async with running(redis_url=cluster_url, lease=1) as served:
        await sealed_and_not_booked(served, [new_id() for _ in range(3)])

        async def are_booked() -> bool:
            found = {row.model: row[3:5] for row in await rows(served)}
            return found == {"m": (2, 14), "": (1, 1)}  # And a prompt that may have been read.

        await until(are_booked, "another replica books them", 20)


async def sealed_and_not_booked(served: Served, ids: list[str], without_end: int = 1) -> None:
    """Do what a replica does up to the seals of these streams, and no more: as if it died then.

    The last ones are left without an end.
    """
    store, times = served.gateway.store, {"start_by": 60.0, "log_ttl": 60.0, "lease": 1.0}
    dead = Records(store, new_id(), **times, max_run=lambda: 60.0)  # type: ignore[arg-type]
    for stream_id in ids:
        await dead.create(stream_id, "alice", "default", b"{}", "digest")
    heartbeat = Heartbeat(store, dead.replica, 1)
    for number, stream_id in enumerate(ids):
        if number % 5 == 0:
            await heartbeat.renew(ids)  # However slow this is, it lives until it is through.
        claim, record = await dead.claim(stream_id, "nonce"), await dead.read(stream_id)
        assert record is not None
        if stream_id in ids[-without_end:]:
            continue
        spent = Spent("alice", record.issued, "default", "m", prompt=7)
        bill = as_bill(booking(stream_id, spent, dead.longest))
        end = ["done", f"{claim.epoch}-1", 1, b"data: x\n\n"]
        args = [dead.replica, claim.epoch, f"{claim.epoch}-0", 60_000, b"{}", *end, *end, bill]
        keys = [record_key(stream_id), log_key(stream_id)]
        assert (await store.script("seal", keys, args))[1] == b"sealed"


async def test_a_booking_that_a_failover_loses_is_made_again(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, replicas=1) as cluster:
        async with (
            scripted(tells) as upstream,
            running(redis_url=cluster.url, upstream_url=upstream.url, lease=5) as served,
        ):
            await served.read(await served.ticket())

            async def is_booked() -> bool:
                return [row.streams for row in await rows(served)] == [1]

            await until(is_booked, "it is booked")
            keys = subject_keys("alice")
            # What was not copied yet when its master died.
            (day,) = {row.day for row in await rows(served)}
            await served.gateway.store.calls(
                [["DEL", keys.booked], ["DEL", keys.usage(day)], ["DEL", keys.today]]
            )
            shard = cluster.shard_of(keys.booked)
            cluster.replicas[shard].run("CLUSTER", "FAILOVER")
            await until(is_booked, "it is booked again", 20)


async def test_a_subjects_server_that_is_away_holds_up_no_takeover(tmp_path: Path) -> None:
    """What a dead replica ran on other servers ends, and all is booked when it is there again."""
    with redis_cluster(tmp_path) as cluster:
        async with (
            scripted(tells) as upstream,
            running(redis_url=cluster.url, upstream_url=upstream.url, lease=1) as served,
        ):
            shard = cluster.shard_of(subject_keys("alice").booked)
            ids = [new_id() for _ in range(400)]
            away = [each for each in ids if cluster.shard_of(record_key(each)) != shard][:150]
            await sealed_and_not_booked(served, away, 20)
            cluster.masters[shard].pause()
            try:

                async def have_ended() -> bool:
                    states = await served.gateway.records.states(away[-20:])
                    return {state for state, _ in states} == {"interrupted"}

                await until(have_ended, "the others end", 20)
            finally:
                cluster.masters[shard].resume()

            async def are_booked() -> bool:
                return sum(row.streams for row in await rows(served)) == 150

            await until(are_booked, "all are booked", 20)


async def test_what_cannot_be_booked_keeps_no_stream_from_its_end(
    shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        scripted(tells) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        user, store = new_id(), served.gateway.store
        ((seconds, _),) = await store.calls([["TIME"]])
        odd = {"day": int(seconds) // 86400, "tokens": "no number"}
        pairs = [part for pair in odd.items() for part in pair]
        await store.call("HSET", subject_keys(user).today, *pairs)
        url = await served.ticket(subject=user)
        got = await served.http.get(url, headers=served.cookie(user))
        assert b'"state":"done"' in got.content
        told = "cannot be booked: ERR hash value is not an integer"
        await until(lambda: told in caplog.text, "it is said")

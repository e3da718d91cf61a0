"""Repeats: a POST sent again for the rest of its stream gets that, wherever and however it ran, and
is never paid for again."""

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.eventlog.entries import EventId
from gateway.runs.repeats import KEPT, Repeats, asked
from gateway.store.keys import DATASET_ID, asked_key, log_key, record_key
from tests.runs.test_takeover import (
    ALICE,
    LOST,
    asked_again,
    crashing,
    dies,
    says,
)
from tests.sentinels import sentinels
from tests.support import (
    RedisServer,
    Served,
    Transcript,
    ask,
    client,
    cookie,
    gateway,
    read,
    running,
    settings,
    until,
    whole,
)
from tests.test_promises import Paced, at_least, held

STREAM = {"Accept": "text/event-stream"}
KEY = {"headers": {"Idempotency-Key": "one"}}


async def posted(
    http: httpx.AsyncClient,
    last_id: str = "",
    enough: Callable[[Transcript], bool] = lambda _: False,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Transcript:
    """POST for a stream, as a client that fetches does, after the last id it has."""
    given = {"url": "/tickets", "body": ask(), "last_id": last_id, "enough": enough, **more}
    return await read(http, headers={**ALICE, **(headers or {})}, **given)


async def refused(gate: Served, last_id: str, **more: Any) -> tuple[int, str]:
    """Return the status and code that a repeat is refused with."""
    got = await posted(gate.http, last_id, **more)
    return got.status, json.loads(got.raw)["code"]


# What a repeat gets


async def test_a_repeat_goes_on_with_the_stream_on_any_replica_and_is_not_paid_for(
    any_redis_url: str,
) -> None:
    script = held(5)
    async with (
        gateway(script, redis_url=any_redis_url) as (gate, upstream),
        AsyncExitStack() as more,
    ):
        other = gate
        if any_redis_url:
            given = {"upstream_url": upstream.url, "redis_url": any_redis_url}
            other = await more.enter_async_context(running(**given))
        first = await posted(gate.http, enough=at_least(5))
        second = await posted(other.http, first.ids[2], at_least(2))
        assert second.events == first.events[3:]
        url = first.headers["content-location"]
        assert second.headers["content-location"] == url
        third = asyncio.create_task(posted(other.http, second.last_id))
        script.go.set()
        first.extend(await third)
        assert first.events == (await gate.read(url)).events
        assert first.end["state"] == "done"
        assert len(upstream.calls) == 1


async def test_a_repeat_that_has_the_end_is_told_that_there_is_no_more(redis_url: str) -> None:
    async with gateway(whole, redis_url=redis_url) as (gate, upstream):
        got = await posted(gate.http)
        assert (await posted(gate.http, got.last_id)).status == 204
        late = await posted(gate.http, got.ids[1])  # Long after: it has ended.
        assert late.events == got.events[2:]
        assert len(upstream.calls) == 1


async def test_a_request_that_is_made_again_on_purpose_is_a_new_one(redis_url: str) -> None:
    async with gateway(whole, redis_url=redis_url) as (gate, upstream):
        got = [await posted(gate.http) for _ in range(2)]
        assert got[0].headers["content-location"] != got[1].headers["content-location"]
        odd = await posted(gate.http, "not-ours")
        assert odd.status == 200
        assert odd.data == got[0].data
        assert len(upstream.calls) == 3


async def test_of_requests_that_were_made_in_one_moment_each_repeat_gets_its_own_stream(
    any_redis_url: str,
) -> None:
    """They are claimed in the same millisecond, and an id is all that a repeat tells."""
    count = 12

    async def script(call: Any) -> None:
        await says(b"%d" % len(upstream.calls))(call)

    async with gateway(script, redis_url=any_redis_url) as (gate, upstream):
        one = at_least(1)
        got = await asyncio.gather(*(posted(gate.http, enough=one) for _ in range(count)))
        assert len({each.ids[0].partition("-")[0] for each in got}) == count
        for each in got:
            url = each.headers["content-location"]
            again = asyncio.create_task(posted(gate.http, each.last_id))
            await gate.http.delete(url, headers=ALICE)
            assert (await again).headers["content-location"] == url
        assert len(upstream.calls) == count


async def test_a_repeat_with_a_key_goes_on_too_and_is_not_paid_for(redis_url: str) -> None:
    async with gateway(whole, redis_url=redis_url) as (gate, upstream):
        key: Any = {"headers": {"Idempotency-Key": gate.gateway.name}}
        got = await posted(gate.http, **key)
        rest = await posted(gate.http, got.ids[0], **key)
        assert rest.events == got.events[1:]
        assert (await posted(gate.http, got.last_id, **key)).status == 204
        other = ask("Another.")
        assert await refused(gate, got.ids[0], body=other, **key) == (422, "idempotency_mismatch")
        assert len(upstream.calls) == 1


# What is gone


@pytest.mark.parametrize("key", [{}, KEY], ids=["without a key", "with a key"])
async def test_a_repeat_whose_stream_is_not_kept_any_more_is_refused_and_starts_nothing(
    key: dict[str, Any],
) -> None:
    async with gateway(whole, log_ttl=0.3, start_by=0.3) as (gate, upstream):
        await remembers(gate)
        got = await posted(gate.http, **key)
        stream = stream_of(gate, got)
        kept = [record_key(stream), log_key(stream)]
        await until(lambda: gone(gate, *kept))
        for last_id in (got.ids[0], got.last_id):
            assert await refused(gate, last_id, **key) == (410, "log_expired")
        assert len(upstream.calls) == 1
        assert await gate.gateway.store.call("EXISTS", *kept) == 0


async def gone(gate: Served, *keys: str) -> bool:
    """Say whether none of these is there."""
    return not await gate.gateway.store.call("EXISTS", *keys)


async def remembers(gate: Served) -> None:
    """Make a store one that has not come back lately, to the replica as well."""
    await gate.gateway.store.call("SET", DATASET_ID, 1, "PX", 60_000)
    heartbeat = gate.gateway.supervisor._heartbeat
    seen = {heartbeat.renewed}
    while len(seen) < 3:  # The first may have looked before.
        await until(lambda: heartbeat.renewed not in seen, "the heartbeat is renewed")
        seen.add(heartbeat.renewed)


def stream_of(gate: Served, got: Transcript) -> str:
    """Return the id of the stream that a POST was answered with."""
    ticket = got.headers["content-location"].partition("ticket=")[2]
    return gate.gateway.tickets.verify(ticket).stream_id


async def test_nobody_goes_on_with_what_was_another_ones_or_another_request() -> None:
    presets: Any = {"fast": {}}
    async with gateway(whole, presets=presets) as (gate, upstream):
        await remembers(gate)
        got = await posted(gate.http)
        bob: Any = {"headers": cookie(settings(), "bob")}
        for more in ({"url": "/tickets/fast"}, {"body": ask("Another.")}, bob):
            assert await refused(gate, got.ids[0], **more) == (410, "log_expired")
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("key", [{}, KEY], ids=["without a key", "with a key"])
async def test_after_redis_forgot_a_repeat_is_to_come_back_and_then_gone_but_never_paid_for(
    own_redis: RedisServer, key: dict[str, Any]
) -> None:
    async with gateway(whole, redis_url=own_redis.url) as (gate, upstream):
        got = await posted(gate.http, **key)
    own_redis.kill()
    own_redis.start()
    async with running(redis_url=own_redis.url, upstream_url=upstream.url, lease=3) as other:
        assert await refused(other, got.ids[0], **key) == (503, "not_yet")

        async def is_gone() -> bool:
            return await refused(other, got.ids[0], **key) == (410, "log_expired")

        await until(is_gone, "twice the lease later it is gone")
    assert len(upstream.calls) == 1


async def test_a_repeat_finds_what_still_runs_after_redis_forgot_it(
    own_redis: RedisServer,
) -> None:
    script = held(3)
    async with gateway(script, redis_url=own_redis.url, lease=1) as (gate, upstream):
        got = await posted(gate.http, enough=at_least(3))
        own_redis.kill()
        own_redis.start()
        records = gate.gateway.records

        async def is_old() -> bool:
            """Whether a Redis that has just come back is no excuse any more."""
            return not await records.may_be_forgotten("nobody", 0)

        await until(is_old, seconds=20)
        again = await posted(gate.http, got.ids[0], at_least(2))
        assert again.events == got.events[1:]
        assert len(upstream.calls) == 1


async def test_while_the_store_is_away_a_repeat_is_to_come_back(own_redis: RedisServer) -> None:
    async with gateway(held(2), redis_url=own_redis.url, lease=5) as (gate, upstream):
        got = await posted(gate.http, enough=at_least(2))
        own_redis.pause()
        assert await refused(gate, got.ids[0]) == (503, "store_unavailable")
        own_redis.resume()
        again = await posted(gate.http, got.ids[0], at_least(1))
        assert again.events == got.events[1:]
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("what", ["a claim", "a takeover"])
async def test_what_a_failover_lost_and_is_done_again_draws_another_epoch(
    any_redis_url: str, what: str
) -> None:
    """Else an id of the lost log would be one of the new log, whose text is another."""
    async with running(redis_url=any_redis_url) as gate:
        records, store = gate.gateway.records, gate.gateway.store
        stream = records.new_stream()
        name, me = asked("alice", "default", stream), records.replica
        repeats = Repeats(records)
        await repeats.remember(name, records.new_stream())
        more = await repeats.remember(name, stream)
        assert more["ahead"] > 0
        await records.create(stream, "alice", "default", b"{}", "digest", more)
        epochs = [(await records.claim(stream, "first")).epoch]
        if what == "a takeover":
            epochs.append(await records.takeover(stream, me, "one") or 0)
            await lose(gate, stream, state="starting", epoch=epochs[0], nonce="")
            await passes(gate)
            epochs.append(await records.takeover(stream, me, "another") or 0)
        else:
            await lose(gate, stream, state="cached", epoch=0, nonce="", owner="")
            await passes(gate)
            epochs.append((await records.claim(stream, "second")).epoch)
        assert epochs == sorted(set(epochs))
        seconds, _ = await store.call("TIME")
        assert min(epochs) > int(seconds) * 1000 + more["ahead"] - 60_000


async def lose(gate: Served, stream: str, **fields: Any) -> None:
    """Give a stream the record that it had, and no log."""
    flat = [part for item in fields.items() for part in item]
    await gate.gateway.store.calls([["HSET", record_key(stream), *flat], ["DEL", log_key(stream)]])


async def passes(gate: Served) -> None:
    """Return when the store's clock is another."""
    before = await gate.gateway.store.call("TIME")

    async def later() -> bool:
        now = await gate.gateway.store.call("TIME")
        return int(now[0]) > int(before[0]) or int(now[1]) > int(before[1]) + 2000

    await until(later)


# Who runs it


async def test_a_repeat_finds_a_stream_that_was_taken_over_by_its_old_and_by_its_new_epoch(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies) as (upstream, b, a):
        async with client(a.url) as http:
            before = await posted(http, enough=at_least(len(LOST)))
        a.signal(signal.SIGKILL)
        after = await posted(b.http, before.last_id)
        epochs = {position.epoch for each in after.ids if (position := EventId.parse(each))}
        assert len(epochs) == 1
        again = await posted(b.http, after.ids[1])
        assert again.events == after.events[2:]
        before.extend(after)
        asked_again(before)
        assert (await posted(b.http, before.last_id)).status == 204
    assert len(upstream.calls) == 2  # The crash's, which the preset wants, and none of a repeat.


async def test_a_repeat_goes_on_through_a_failover(tmp_path: Path) -> None:
    script = Paced(30, 0.1)
    async with sentinels(tmp_path) as redis, gateway(script, redis_url=redis.url) as (gate, up):
        got = await posted(gate.http, enough=at_least(5))
        old = await redis.master()
        old.kill()
        await redis.moved_from(old)

        async def more() -> bool:
            """Come back as the client does, which takes a 503 for a broken connection."""
            again = await posted(gate.http, got.last_id)
            if again.status == 200:
                got.extend(again)
            return "end" in got.names

        await until(more, seconds=20)
        assert got.data[:30] == script.data
        assert got.end["state"] == "done"
        assert len(up.calls) == 1


# What it costs


async def test_only_as_many_streams_of_a_request_are_remembered_as_anybody_goes_back_to(
    any_redis_url: str,
) -> None:
    async with running(redis_url=any_redis_url) as gate:
        records, store = gate.gateway.records, gate.gateway.store
        name = asked("alice", "default", records.new_stream())
        repeats = Repeats(records)
        kept = [await repeats.remember(name, f"stream {n}") for n in range(KEPT + 5)]
        clocks = [each["ahead"] for each in kept]
        assert clocks[0] == 0
        steps = [after - before for before, after in pairwise(clocks)]
        assert all(0.99 * records.longest < step <= records.longest for step in steps)
        again = await repeats.remember(name, f"stream {KEPT}")  # Sent twice.
        assert clocks[KEPT] - 0.01 * records.longest < again["ahead"] <= clocks[KEPT]
        found = await store.call("ZRANGE", asked_key(name), 0, -1)
        assert found == [b"stream %d" % number for number in range(5, KEPT + 5)]
        assert 0 < await store.call("PTTL", asked_key(name)) <= records.longest


async def test_a_plain_post_and_one_with_a_key_remember_nothing(shared_redis: RedisServer) -> None:
    async with gateway(whole, redis_url=shared_redis.url) as (gate, _):
        store, body = gate.gateway.store, ask("Remember nothing.")
        before = set(await store.call("KEYS", "gw:*:asked"))
        await gate.post(body)
        await gate.post(body, **{"Last-Event-ID": "1-1"})
        await posted(gate.http, body=body, headers={"Idempotency-Key": gate.gateway.name})
        assert set(await store.call("KEYS", "gw:*:asked")) <= before
        await posted(gate.http, body=body)
        assert len(set(await store.call("KEYS", "gw:*:asked")) - before) == 1


async def test_what_is_refused_or_left_before_it_begins_is_not_remembered(
    own_redis: RedisServer,
) -> None:
    """Refused without end, it would fill the store although each is told that it has too much."""
    async with gateway(whole, redis_url=own_redis.url, subject_bytes=2048) as (gate, upstream):
        await gate.post()
        for number in range(3):
            assert (await posted(gate.http, body=ask(f"Number {number}."))).status == 429
        assert await gate.gateway.store.call("KEYS", "gw:*:asked") == []
    assert upstream.calls == []

"""What one subject may hold, and what new tickets leave to the streams that run."""

import asyncio
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from gateway.errors import Unavailable
from gateway.limits.subjects import RECORD, Most
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import DATASET_ID, new_id, record_key, subject_keys
from tests import support
from tests.clusters import redis_cluster
from tests.support import (
    OK,
    SECRET,
    Call,
    RedisServer,
    Script,
    ScriptedUpstream,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    process,
    redis_server,
    running,
    settings,
    sse,
    until,
    whole,
)
from tests.test_bounds import memory

STREAM = {"Accept": "text/event-stream"}
KIB = 1024
MIB = 1024 * KIB


@pytest.fixture(params=["embedded", "redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """Both stores, but none that knows alice from another test."""
    if request.param == "embedded":
        return ""
    server: RedisServer = request.getfixturevalue("own_redis")
    return server.url


def replica(store: RedisClient, size: int = 10 * KIB, **times: float) -> Records:
    """Return the records as one replica sees them, with a bound for each subject."""
    given: dict[str, Any] = {"start_by": 60.0, "log_ttl": 600.0, "lease": 1.0, **times}
    return Records(store, new_id(), **given, max_run=lambda: 600, most=Most(size=size))


async def kept(records: Records, subject: str, size: int, stream_id: str = "") -> str:
    """Store a request that counts for as many bytes."""
    stream_id = stream_id or new_id()
    request = b"x" * (size - RECORD)
    await records.create(stream_id, subject, "default", request, "digest")
    return stream_id


async def refused(records: Records, subject: str, size: int, stream_id: str = "") -> Unavailable:
    """Store a request that does not fit; return what its caller is told."""
    with pytest.raises(Unavailable) as caught:
        await kept(records, subject, size, stream_id)
    assert (caught.value.code, caught.value.status) == ("too_many_bytes", 429)
    return caught.value


async def counted(store: RedisClient, subject: str) -> int:
    """Return the bytes that a subject has, and make sure that they are the sum of its streams."""
    fields = await store.call("HGETALL", subject_keys(subject)[0])
    numbers: dict[bytes, int] = dict(zip(fields[::2], map(int, fields[1::2]), strict=True))
    total = numbers.pop(b"", 0)
    assert total == sum(numbers.values())
    assert await store.call("ZCARD", subject_keys(subject)[1]) == len(numbers)
    return total


def somebody() -> str:
    """Return a subject that no other test has: they share a Redis."""
    return f"user {new_id()}"


# Bytes


@pytest.mark.parametrize("size", [2 * KIB, 40 * KIB])
async def test_the_requests_of_a_subject_fit_or_are_refused(store: RedisClient, size: int) -> None:
    """Small and large ones take another way."""
    records, alice = replica(store, 3 * size), somebody()
    for _ in range(3):
        await kept(records, alice, size)
    told = await refused(records, alice, size)
    assert 1 <= int(told.headers["Retry-After"]) <= 60
    await kept(records, somebody(), size)
    assert await counted(store, alice) == 3 * size


async def test_a_request_that_is_refused_is_not_stored(store: RedisClient) -> None:
    records, stream_id = replica(store), new_id()
    await refused(records, somebody(), 11 * KIB, stream_id)
    await refused(records, somebody(), 20 * KIB, stream_id)
    assert await records.read(stream_id) is None


async def test_the_smallest_requests_count_for_what_a_record_costs(store: RedisClient) -> None:
    records, alice = replica(store), somebody()
    for _ in range(10):
        await kept(records, alice, RECORD)
    await refused(records, alice, RECORD)


async def test_bytes_are_counted_over_all_replicas(store: RedisClient) -> None:
    alice = somebody()
    racers = [replica(store) for _ in range(20)]
    tries = [kept(racer, alice, 2 * KIB) for racer in racers]
    made = await asyncio.gather(*tries, return_exceptions=True)
    assert len([each for each in made if isinstance(each, str)]) == 5
    assert await counted(store, alice) == 10 * KIB


async def test_the_same_request_again_is_counted_once(store: RedisClient) -> None:
    records, alice = replica(store), somebody()
    stream_id = await kept(records, alice, 6 * KIB)
    await kept(records, alice, 6 * KIB, stream_id)
    assert await counted(store, alice) == 6 * KIB


async def test_a_small_repeat_of_a_large_request_takes_nothing_back(store: RedisClient) -> None:
    """Its digest is another, so it is refused later; the large one is still there."""
    records, alice = replica(store), somebody()
    stream_id = await kept(records, alice, 6 * KIB)
    await kept(records, alice, RECORD, stream_id)
    assert await counted(store, alice) == 6 * KIB


async def test_a_large_repeat_of_a_small_request_has_to_fit(store: RedisClient) -> None:
    """Ten thousand keys used for nothing must be no ten thousand places for a megabyte."""
    records, alice = replica(store), somebody()
    stream_id = await kept(records, alice, RECORD)
    await refused(records, alice, 11 * KIB, stream_id)
    assert await counted(store, alice) == RECORD


async def test_what_its_replica_did_not_live_to_free_is_free_by_itself(store: RedisClient) -> None:
    records, alice = replica(store), somebody()
    first = await kept(records, alice, 6 * KIB)
    await store.call("ZADD", subject_keys(alice)[1], 1, first)
    await kept(records, alice, 8 * KIB)
    assert await counted(store, alice) == 8 * KIB


async def test_what_was_counted_by_a_clock_that_was_set_back_is_free_when_a_record_would_be(
    store: RedisClient,
) -> None:
    records, alice = replica(store), somebody()
    old = await kept(records, alice, 6 * KIB)
    await store.call("ZADD", subject_keys(alice)[1], 1 << 43, old)
    await refused(records, alice, 6 * KIB)
    seconds, _ = await store.call("TIME")
    until_when = float(await store.call("ZSCORE", subject_keys(alice)[1], old))
    assert until_when <= (int(seconds) + 601) * 1000


async def test_a_thousand_that_ran_out_make_room_for_one_that_is_refused_at_first(
    store: RedisClient,
) -> None:
    """What is free is noted also by a call that is refused."""
    records, alice = replica(store, 4 * KIB), somebody()
    old = [await kept(records, alice, RECORD) for _ in range(2)]
    for each in old:
        await store.call("ZADD", subject_keys(alice)[1], 1, each)
    await refused(records, alice, 5 * KIB)
    assert await counted(store, alice) == 0
    await kept(records, alice, 4 * KIB)


async def test_everything_that_counts_expires(store: RedisClient) -> None:
    alice = somebody()
    await kept(replica(store, log_ttl=5, lease=30), alice, RECORD)
    for key in subject_keys(alice)[:2]:
        assert 100_000 < await store.call("PTTL", key) <= 120_000


async def test_what_nobody_redeems_is_kept_for_two_leases_after_its_time(
    store: RedisClient,
) -> None:
    """By then an owner has written again what a failover lost, if there is one."""
    records = replica(store, lease=30)
    stream_id = await kept(records, somebody(), RECORD)
    assert 100_000 < await store.call("PTTL", record_key(stream_id)) <= 120_000
    await records.claim(stream_id, "nonce")
    assert await store.call("PTTL", record_key(stream_id)) > 1_800_000


async def test_without_a_bound_nothing_is_counted(store: RedisClient) -> None:
    records, alice = replica(store, 0), somebody()
    await kept(records, alice, 20 * KIB)
    assert await counted(store, alice) == 0


async def test_a_full_redis_still_learns_what_is_free(own_redis: RedisServer) -> None:
    store, running = RedisClient(own_redis.url), list[Any]()
    records = replica(store)
    stream_id = await kept(records, "alice", 6 * KIB)
    other = await kept(records, "alice", RECORD)
    await store.call("CONFIG", "SET", "maxmemory", 1)
    records.limits.ended("alice", stream_id, "default")
    task = asyncio.create_task(records.limits.run(lambda: running))

    async def freed() -> bool:
        return await counted(store, "alice") == RECORD

    await until(freed)
    task.cancel()
    assert await store.call("HEXISTS", subject_keys("alice")[0], other)
    await store.close()


async def test_what_ran_out_lets_no_request_into_a_full_redis(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    records = replica(store)
    first = await kept(records, "alice", 6 * KIB)
    await store.call("ZADD", subject_keys("alice").until, 1, first)
    await store.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Unavailable, match="OOM"):
        await kept(records, "alice", 2 * KIB)
    await store.close()


@pytest.mark.parametrize("kind", ["sizes", "until"])
async def test_bytes_of_another_kind_keep_nobody_out(store: RedisClient, kind: str) -> None:
    records, alice = replica(store), somebody()
    await kept(records, alice, 2 * KIB)
    await store.call("SET", getattr(subject_keys(alice), kind), "of whoever")
    await kept(records, alice, 3 * KIB)
    assert await counted(store, alice) == 3 * KIB


@pytest.mark.parametrize("megabyte", [b"x" * (MIB - 200), "😀".encode() * 262_000])
async def test_a_megabyte_takes_no_more_than_a_third_more_of_redis(
    own_redis: RedisServer, megabyte: bytes
) -> None:
    body = b'{"messages":[{"role":"user","content":"' + megabyte + b'"}]}'
    with Redis(port=own_redis.port) as client:
        async with running(redis_url=own_redis.url) as gate:
            assert (await post(gate, body)).status_code == 201
            before = int(client.info("memory")["used_memory"])
            for _ in range(20):
                assert (await post(gate, body)).status_code == 201
            grown = int(client.info("memory")["used_memory"]) - before
    assert grown < 20 * 1.3 * len(body)


async def post(gate: Served, body: bytes, subject: str = "alice", **headers: str) -> httpx.Response:
    """POST bytes to /tickets."""
    sent = {**gate.cookie(subject), "Content-Type": "application/json", **headers}
    return await gate.http.post("/tickets", content=body, headers=sent)


# Over HTTP


class Held:
    """A script that answers at once, and ends when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Send an event, wait, send the end."""
        await call.send(OK, sse(chunk("x")))
        waits = [asyncio.create_task(each.wait()) for each in (self.go, call.left)]
        _, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


@asynccontextmanager
async def gateway(
    script: Script = whole, **changes: Any
) -> AsyncIterator[tuple[Served, ScriptedUpstream]]:
    """Run a gateway before a scripted upstream; at the end nobody is counted any more."""
    async with support.gateway(script, **changes) as (gate, upstream):
        yield gate, upstream
        limits = gate.gateway.records.limits
        await until(lambda: not limits.viewers.counts, "nobody is counted as a viewer")


def too_many(answer: httpx.Response, what: str) -> None:
    """Assert a refusal that will pass when its caller has less."""
    assert (answer.status_code, answer.json()["code"]) == (429, f"too_many_{what}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1


BODY = json.dumps(ask("x" * (KIB - 200))).encode()


async def filled(gate: Served, **headers: str) -> list[str]:
    """Ask for tickets until no more is given; return their URLs."""
    urls: list[str] = []
    while (answer := await post(gate, BODY)).status_code == 201:
        urls.append(answer.json()["stream_url"])
    too_many(answer, "bytes")
    assert urls
    return urls


async def test_who_has_too_much_waiting_is_told_to_come_back(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, upstream):
        await filled(gate)
        assert (await post(gate, BODY, "bob")).status_code == 201
        too_many(await post(gate, BODY, **STREAM), "bytes")
    assert upstream.calls == []


async def test_who_cancels_what_waits_may_ask_again(redis_url: str) -> None:
    """Its record is kept, and counts: making and cancelling them costs nothing."""
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, _):
        urls = await filled(gate)
        await gate.http.delete(urls[0], headers=gate.cookie())
        await gate.http.delete(urls[1], headers=gate.cookie())
        await until(lambda: takes_another(gate))
        await filled_up(gate)
        for url in urls:
            await gate.http.delete(url, headers=gate.cookie())
        again = 0
        while again < 100 and (await post(gate, BODY)).status_code == 201:
            again += 1
        assert again < 100


async def test_what_is_cancelled_here_is_free_at_once(redis_url: str) -> None:
    """A page that cancels to make room asks again in the same moment, and not in a second."""
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, _):
        for url in await filled(gate):
            await gate.http.delete(url, headers=gate.cookie())
        assert await takes_another(gate)


async def test_what_is_cancelled_here_is_free_for_all_who_ask_at_once(redis_url: str) -> None:
    """Not only for the first of them, who tells Redis of it while the others are refused."""
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, _):
        urls = await filled(gate)
        for url in urls:
            await gate.http.delete(url, headers=gate.cookie())
        answers = await asyncio.gather(*(takes_another(gate) for _ in range(3)))
        assert answers == [True] * 3


async def takes_another(gate: Served) -> bool:
    """Whether another ticket is given."""
    return (await post(gate, BODY)).status_code == 201


async def filled_up(gate: Served) -> None:
    """Ask for tickets until no more is given, if any."""
    while await takes_another(gate):
        pass


async def test_a_key_that_is_used_again_costs_nothing_more(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, _):
        key = {"Idempotency-Key": new_id()}
        first = await post(gate, BODY, **key)
        await filled(gate)
        again = await post(gate, BODY, **key)
        assert (again.status_code, again.json()["ticket"]) == (200, first.json()["ticket"])
        too_many(await post(gate, BODY, **{"Idempotency-Key": new_id()}), "bytes")


async def test_what_a_key_has_begun_is_found_also_where_there_is_no_room(redis_url: str) -> None:
    """It has ended, so it counts no more; but nothing is stored for it either."""
    async with gateway(redis_url=redis_url, subject_bytes=16 * KIB) as (gate, upstream):
        key = {"Idempotency-Key": new_id()}
        first = await post(gate, BODY, **key)
        got = await gate.read(first.json()["stream_url"])
        stream_id = gate.gateway.tickets.verify(first.json()["ticket"]).stream_id
        counts = ("HEXISTS", subject_keys("alice")[0], stream_id)

        async def is_free() -> bool:
            return not await gate.gateway.store.call(*counts)

        await until(is_free)
        await filled_up(gate)
        again = await post(gate, BODY, **key)
        assert (again.status_code, again.json()["ticket"]) == (200, first.json()["ticket"])
        assert (await post(gate, BODY, **key, **STREAM)).content.endswith(got.raw[-40:])
        other = await post(gate, BODY.replace(b"x", b"y", 1), **key)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
        assert len(upstream.calls) == 1


async def test_what_runs_counts_until_it_has_ended(redis_url: str) -> None:
    """Also after its ticket would have run out."""
    held = Held()
    times: dict[str, Any] = {"start_by": 3, "lease": 1, "subject_bytes": 16 * KIB}
    async with gateway(held, redis_url=redis_url, **times) as (gate, upstream):
        urls = await filled(gate)
        reads = [asyncio.create_task(gate.read(url)) for url in urls]
        await until(lambda: len(upstream.calls) == len(urls))
        begun = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > begun + 6)
        too_many(await post(gate, BODY), "bytes")
        held.go.set()
        assert {(await each).end["state"] for each in reads} == {"done"}
        await until(lambda: takes_another(gate))
        await until(lambda: gate.gateway.records.limits.streams.counts == {})


async def test_what_nobody_redeemed_in_time_counts_no_more(redis_url: str) -> None:
    times: dict[str, Any] = {"start_by": 0.3, "lease": 1, "subject_bytes": 16 * KIB}
    async with gateway(redis_url=redis_url, **times) as (gate, _):
        # Of a ticket that is older than what Redis remembers nobody can say that it ran out.
        await until(lambda: gate.gateway.store.call("EXISTS", DATASET_ID), "it remembers")
        urls = await filled(gate)
        await until(lambda: takes_another(gate))
        records = gate.gateway.records
        stream_id = gate.gateway.tickets.verify(urls[0].partition("=")[2]).stream_id

        async def is_gone() -> bool:
            return await records.read(stream_id) is None

        await until(is_gone)  # The subject's count and the record run out a moment apart.
        answer = await gate.http.get(urls[0], headers={**gate.cookie(), **STREAM})
        assert (answer.status_code, answer.json()["code"]) == (410, "ticket_expired")
        completion = urls[0].replace("/stream", "/completion")
        answer = await gate.http.get(completion, headers=gate.cookie())
        assert (answer.status_code, answer.json()["code"]) == (410, "ticket_expired")
        reconnect = await gate.read(urls[0], last_id="1-1")
        assert (reconnect.status, reconnect.raw) == (204, b"")


# Streams and viewers of one subject in one process


async def test_who_runs_too_many_streams_starts_no_further_one(redis_url: str) -> None:
    held = Held()
    async with gateway(held, redis_url=redis_url, subject_streams=2) as (gate, upstream):
        reads = [asyncio.create_task(gate.read(await gate.ticket())) for _ in range(2)]
        await until(lambda: len(upstream.calls) == 2)
        third = await gate.ticket()
        too_many(await gate.http.get(third, headers=gate.cookie()), "streams")
        page = await gate.read(third)
        assert (page.status, page.events) == (200, [])
        assert page.raw.startswith(b"retry: ")
        too_many(await gate.post(**STREAM), "streams")
        assert (await gate.completion(third))["state"] == "cached"
        bob = asyncio.create_task(
            gate.http.get(await gate.ticket(subject="bob"), headers=gate.cookie("bob"))
        )
        await until(lambda: len(upstream.calls) == 3)
        held.go.set()
        await asyncio.gather(*reads)
        counts = gate.gateway.records.limits.streams.counts
        await until(lambda: "alice" not in counts, "both are counted no more")
        assert (await gate.read(third)).end["state"] == "done"
        assert b"event: end" in (await bob).content
        await until(lambda: counts == {})
    assert len(upstream.calls) == 4


async def test_a_rush_of_one_subject_starts_no_more_than_it_may() -> None:
    held = Held()
    async with gateway(held, subject_streams=5) as (gate, upstream):
        urls = [await gate.ticket() for _ in range(20)]
        reads = [asyncio.create_task(gate.read(url)) for url in urls]
        await until(lambda: sum(each.done() for each in reads) == 15)
        await until(lambda: len(upstream.calls) == 5)
        held.go.set()
        await asyncio.gather(*reads)


@pytest.mark.parametrize("bound", ["subject_streams", "max_streams"])
async def test_who_starts_as_many_at_once_as_it_may_is_not_refused(
    redis_url: str, bound: str
) -> None:
    """A stream is counted once, also while it goes over from its claim to its run."""
    given: Any = {bound: 12}
    async with gateway(redis_url=redis_url, **given) as (gate, _):
        counts = gate.gateway.records.limits.streams.counts
        for _ in range(8):
            urls = [await gate.ticket() for _ in range(12)]
            got = await asyncio.gather(*(after(n / 1000, gate.read(u)) for n, u in enumerate(urls)))
            assert all(each.end["state"] == "done" for each in got)
            await until(lambda: counts == {} and not gate.gateway.supervisor.active)


async def after(seconds: float, read: Coroutine[Any, Any, Transcript]) -> Transcript:
    """Read a little later."""
    await asyncio.sleep(seconds)
    return await read


async def test_who_watches_too_much_opens_no_further_stream(redis_url: str) -> None:
    held = Held()
    async with gateway(held, redis_url=redis_url, subject_viewers=2) as (gate, upstream):
        url = await gate.ticket()
        reads = [asyncio.create_task(gate.read(url)) for _ in range(2)]
        await until(lambda: gate.gateway.fanout.viewers == 2)
        other = await gate.ticket()
        too_many(await gate.http.get(url, headers=gate.cookie()), "viewers")
        too_many(await gate.http.get(other, headers=gate.cookie()), "viewers")
        too_many(await gate.post(**STREAM), "viewers")
        assert (await gate.read(other)).raw.startswith(b"retry: ")
        reads[0].cancel()
        await until(lambda: gate.gateway.fanout.viewers == 1)
        last = asyncio.create_task(gate.read(other))
        await until(lambda: len(upstream.calls) == 2)
        held.go.set()
        assert (await last).end["state"] == "done"
        await asyncio.gather(*reads, return_exceptions=True)


def test_a_seat_takes_next_to_no_memory() -> None:
    """Every open stream has one."""
    limits = replica(RedisClient("")).limits
    tracemalloc.start()
    seats = [limits.seat("alice") for _ in range(1000)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 300_000
    for leave in seats:
        leave()
    assert limits.viewers.counts == {}


async def test_a_refused_stream_takes_no_seat(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, subject_viewers=1, log_ttl=0.3) as (gate, _):
        for _ in range(3):
            url = await gate.ticket()
            got = await gate.read(url)
            assert (await gate.read(url, last_id=got.last_id)).status == 204
            assert (await gate.http.get(f"{url}x", headers=gate.cookie())).status_code == 404


async def test_a_stream_never_counts_twice(redis_url: str) -> None:
    """As its claim and as its run: who may run two would be refused the second."""
    held = Held()
    async with gateway(held, redis_url=redis_url) as (gate, upstream):
        counts, seen = gate.gateway.records.limits.streams.counts, set[int]()

        async def look() -> None:
            while True:
                seen.add(counts.get("alice", 0))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        got = asyncio.create_task(gate.read(await gate.ticket()))
        await until(lambda: len(upstream.calls) == 1)
        held.go.set()
        await got
        looking.cancel()
        assert seen == {0, 1}


@pytest.mark.parametrize("how", ["cancelled", "refused"])
async def test_a_run_is_counted_no_more_however_it_ended(how: str) -> None:
    async def script(call: Call) -> None:
        if how == "refused":
            await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
        else:
            await call.send(OK, sse(chunk("x")))
            await call.left.wait()

    async with gateway(script, subject_streams=1) as (gate, upstream):
        for number in range(3):
            url = await gate.ticket()
            look = asyncio.create_task(gate.read(url))
            await until(lambda number=number: len(upstream.calls) > number)  # type: ignore[misc]
            if how == "cancelled":
                await gate.http.delete(url, headers=gate.cookie())
            assert (await look).end["state"] in {"cancelled", "failed"}
            await until(lambda: gate.gateway.records.limits.streams.counts == {})


# All tickets, and what runs


async def test_new_tickets_leave_the_last_part_of_redis_to_what_runs(tmp_path: Path) -> None:
    held = Held()
    with redis_server(tmp_path, "--maxmemory", "40mb") as server, Redis(port=server.port) as client:
        async with gateway(held, redis_url=server.url, subject_bytes=0) as (gate, upstream):
            url = await gate.ticket()
            look = asyncio.create_task(gate.read(url))
            await until(lambda: len(upstream.calls) == 1)
            body = json.dumps(ask("x" * 900_000)).encode()
            answers = [await post(gate, body, f"user {number}") for number in range(60)]
            full = [each for each in answers if each.status_code != 201]
            assert {(each.status_code, each.json()["code"]) for each in full} == {
                (503, "store_full")
            }
            assert all(int(each.headers["retry-after"]) >= 1 for each in full)
            assert len(full) < 40
            used = int(client.info("memory")["used_memory"])
            assert used < 0.85 * 40 * MIB
            held.go.set()
            assert (await look).end["state"] == "done"


async def test_many_at_once_do_not_fill_what_is_left_to_what_runs(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "40mb") as server, Redis(port=server.port) as client:
        async with (
            gateway(redis_url=server.url, subject_bytes=0) as (a, _),
            gateway(redis_url=server.url, subject_bytes=0) as (b, _),
        ):
            body = json.dumps(ask("x" * 900_000)).encode()
            tries = [post(gate, body, f"user {n}") for n in range(50) for gate in (a, b)]
            answers = await asyncio.gather(*tries)
            assert {each.status_code for each in answers} == {201, 503}
            assert {each.json().get("code") for each in answers} == {None, "store_full"}
            assert int(client.info("memory")["used_memory"]) < 0.9 * 40 * MIB


async def test_what_waits_for_a_replica_that_hangs_is_no_full_redis(tmp_path: Path) -> None:
    """Redis itself does not count it: it would refuse nobody."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    limits = ("--maxmemory", "30mb", "--repl-diskless-sync-delay", "0")
    with redis_server(tmp_path / "a", *limits) as server, Redis(port=server.port) as client:
        follows = ("--replicaof", f"127.0.0.1 {server.port}")
        with redis_server(tmp_path / "b", *follows) as other:
            replication = partial(client.info, "replication")
            await until(lambda: replication().get("slave0", {}).get("state") == "online")
            other.pause()
            for _ in range(40):
                client.set("much", "x" * MIB)
                client.delete("much")
            assert int(client.info("memory")["used_memory"]) > 30 * MIB
            async with gateway(redis_url=server.url) as (gate, _):
                await gate.ticket()


@pytest.mark.parametrize(
    "options", [(), ("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")]
)
async def test_a_redis_that_never_refuses_is_never_full(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with redis_server(tmp_path, *options) as server:
        async with gateway(redis_url=server.url) as (gate, _):
            body = json.dumps(ask("x" * 500_000)).encode()
            assert {(await post(gate, body)).status_code for _ in range(10)} == {201}


HAMMER = """
import asyncio, sys
async def one(port, head, body):
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                writer.write(head + body)
                answer = await reader.readuntil(b"\\r\\n\\r\\n")
                length = int(answer.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
                await reader.readexactly(length)
                print(answer[9:12].decode(), flush=True)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
async def main(port, cookie):
    text = "\U0001f600" * 260_000
    body = f'{{"messages":[{{"role":"user","content":"{text}"}}]}}'.encode()
    head = f"POST /tickets HTTP/1.1\\r\\nHost: a\\r\\nCookie: {cookie}\\r\\n"
    head += f"Content-Length: {len(body)}\\r\\nContent-Type: application/json\\r\\n\\r\\n"
    await asyncio.gather(*(one(port, head.encode(), body) for _ in range(6)))
asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


async def test_who_posts_megabytes_without_end_does_not_hold_up_the_stream_of_another(
    tmp_path: Path,
) -> None:
    """Each filled 300 MB of Redis in two seconds, and all streams stood still while it went on."""
    with ExitStack() as parts:
        redis = parts.enter_context(redis_server(tmp_path, "--maxmemory", "100mb"))
        upstream = parts.enter_context(process("upstream", "--port", "0", "--tokens", "200"))
        url = f"{upstream.url}/v1/chat/completions"
        given = {"redis_url": redis.url, "upstream_url": url, "secrets": SECRET}
        gate = parts.enter_context(process("serve", "--port", "0", **given))
        http = client(gate.url)
        alice, mallory = cookie(settings()), cookie(settings(), "mallory")
        before = memory(gate)
        answer = await http.post("/tickets", json=ask(), headers=alice)
        seen = list[float]()
        look = asyncio.create_task(arrivals(http, answer.json()["stream_url"], alice, seen))
        await until(lambda: len(seen) > 20, "it streams")
        hammer = parts.enter_context(hammering(gate.url, mallory["Cookie"]))
        await look
        hammer.kill()
        statuses = set(hammer.communicate()[0].split())
        assert {b"201", b"429"} <= statuses <= {b"201", b"429", b"503"}
        # On a busy machine; `python -m tests.hostile full_of_requests` tells what it is alone.
        assert max(after - before for before, after in pairwise(seen)) < 10
        assert memory(gate) - before < 150 * MIB
        with Redis(port=redis.port) as looking:
            assert int(looking.info("memory")["used_memory"]) < 85 * MIB
    await http.aclose()


@contextmanager
def hammering(url: str, cookie: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Post for the length of the block, from another process; it prints the statuses."""
    command = [sys.executable, "-c", HAMMER, str(httpx.URL(url).port), cookie]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as hammer:
        try:
            yield hammer
        finally:
            hammer.kill()


async def arrivals(
    http: httpx.AsyncClient, url: str, headers: dict[str, str], seen: list[float]
) -> None:
    """Read a stream to its end; note when something came."""
    text = b""
    async with http.stream("GET", url, headers={**STREAM, **headers}) as response:
        async for part in response.aiter_raw():
            seen.append(time.monotonic())
            text += part
    assert b'"state":"done"' in text


async def kept_without_end(records: Records) -> None:
    """Store requests until one is refused."""
    while True:
        await kept(records, "alice", MIB - KIB)


async def test_every_master_of_a_cluster_keeps_the_last_part_for_what_runs(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        store = RedisClient(cluster.url)
        most = Most(share=0.5)
        records = Records(
            store, "me", start_by=60, log_ttl=600, max_run=lambda: 600, lease=1, most=most
        )
        await store.call("PING")
        for node in store.nodes:
            await node.call("CONFIG", "SET", "maxmemory", 16 * MIB)
        looking = asyncio.create_task(records.limits.run(list))
        with pytest.raises(Unavailable) as caught:
            await kept_without_end(records)
        assert caught.value.code == "store_full"
        looking.cancel()
        for node in store.nodes:
            info = (await node.call("INFO", "memory")).decode()
            assert int(info.partition("used_memory:")[2].split()[0]) < 10 * MIB
        await store.close()

"""A log that ended takes little room, and nobody who reads it can tell."""

import asyncio
import random
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from gateway.errors import Fenced, Sealed
from gateway.eventlog.entries import END, EntryBatch, EntryBatches, EventId
from gateway.eventlog.group_commit import GroupCommit
from gateway.eventlog.packs import packs_of, unpacked
from gateway.eventlog.reader import PAGE, read_all, read_page
from gateway.runs.compaction import Compaction, rewrite
from gateway.runs.record import PACKED
from gateway.sse import Event, encode, parse
from gateway.store.client import RedisClient
from gateway.store.keys import log_key, new_id, packed_key, record_key
from tests.eventlog.test_tail import Elsewhere, fetching
from tests.runs.test_records import ending, found, replica
from tests.runs.test_repeats import posted, stream_of
from tests.support import OK, Call, RedisServer, ask, chunk, gateway, running, sse, until

SIZES = (30, 250, 3_000)
LARGE = 150_000  # More than a pack holds.


def random_log(seed: int) -> list[EntryBatch]:
    """Return a log of several owners that has ended: small, large and reset events, and fences."""
    rng = random.Random(seed)
    entries: list[EntryBatch] = []
    epochs = sorted(rng.sample(range(5, 2_000_000_000_000), rng.choice((1, 1, 2, 4))))
    for epoch in epochs:
        entries.append(EntryBatch(EventId(epoch, 0), 0, b""))
        seq = 0
        for _ in range(rng.choice((12, 40) if epoch == epochs[-1] else (0, 1, 12, 40))):
            number = rng.choice((1, 1, 1, 3))
            size = rng.choice(SIZES) if rng.random() < 0.97 else LARGE
            entries.append(_entry(rng, EventId(epoch, seq + number), number, size))
            seq += number
    last = entries[-1].last
    end = encode(b'{"state":"done"}', b"%d-%d" % (last.epoch, last.seq + 1), b"end")
    return [*entries, EntryBatch(EventId(last.epoch, last.seq + 1), 1, end, "done")]


def _entry(rng: random.Random, last: EventId, number: int, size: int) -> EntryBatch:
    frames = b""
    for seq in range(last.seq - number + 1, last.seq + 1):
        name = rng.choice((b"", b"", b"", b"reset", b"delta"))
        data = bytes(rng.choices(b'abc {}":\xc3', k=size)).replace(b"\xc3", "é\n".encode())
        frames += encode(data, b"%d-%d" % (last.epoch, seq), name)
    return EntryBatch(last, number, frames)


def a_log(events: int = 300) -> list[EntryBatch]:
    """Return a log of many small events that has ended."""
    frames = [encode(b'{"text":"%d"}' % (seq * seq), b"7-%d" % seq) for seq in range(1, events)]
    batches = [EntryBatch(EventId(7, seq), 1, each) for seq, each in enumerate(frames, 1)]
    end = EntryBatch(EventId(7, events), 1, encode(b"{}", b"7-%d" % events, b"end"), "done")
    return [EntryBatch(EventId(7, 0), 0, b""), *batches, end]


async def logged(
    store: RedisClient, entries: list[EntryBatch], end: EntryBatch | None = None
) -> Elsewhere:
    """Write a log, and the record of a stream that ended so, or will."""
    there = Elsewhere(store)
    fields = {"state": "done", "end_id": str((end or entries[-1]).last), "subject": "alice"}
    flat = [part for pair in fields.items() for part in pair]
    await store.call("HSET", record_key(there.stream_id), *flat)
    await there.write(*entries)
    return there


async def read_from(store: RedisClient, stream_id: str, at: EventId | None) -> bytes:
    """Return what a viewer gets at a replica that has not looked at this stream before."""
    there = Elsewhere(store)
    there.stream_id = stream_id
    viewer = await there.fanout.attach(stream_id, "", at)
    return await there.frames(viewer)


def positions(entries: list[EntryBatch]) -> list[EventId | None]:
    """Return every place in a log, and some that are in none."""
    ids = [EventId.parse(event.id.decode()) for each in entries for event in parse(each.frames)]
    strange = [EventId(1, 1), EventId(entries[0].last.epoch, 1 << 40), END]
    return [None, *ids, *(each.last for each in entries if not each.number), *strange]


# The form


@pytest.mark.parametrize("seed", range(30))
def test_packs_hold_what_was_put_in_with_its_borders(seed: int) -> None:
    entries, got = random_log(seed), list[EntryBatch]()
    as_they_are = {each.last: each for each in entries}
    for pack in packs_of(entries):
        got += unpacked(pack.last, pack.data, pack.size) if pack.data else [as_they_are[pack.last]]
    assert got == entries


@pytest.mark.parametrize("seed", range(30))
def test_packs_are_of_one_epoch_and_none_takes_more_than_a_page(seed: int) -> None:
    packs = list(packs_of(random_log(seed)))
    for pack in packs:
        held = unpacked(pack.last, pack.data, pack.size) if pack.data else []
        assert all(after.last.epoch == pack.last.epoch for after in held)
        assert pack.size <= PAGE
    assert all(before.last < after.last for before, after in pairwise(packs))


def test_a_pack_is_opened_no_further_than_it_says() -> None:
    pack = next(each for each in packs_of(a_log()) if each.data)
    with pytest.raises(ValueError, match="more than it says"):
        unpacked(pack.last, pack.data, 1000)


# What is read of it


@pytest.mark.parametrize("seed", range(6))
async def test_every_position_gets_the_same_bytes_before_and_after(
    seed: int, store: RedisClient
) -> None:
    entries = random_log(seed + 1)
    stream_id = (await logged(store, entries)).stream_id
    rng = random.Random(seed)
    at = positions(entries)
    at = [*at[:3], *rng.sample(at[3:], min(24, len(at) - 3))]
    before = [await read_from(store, stream_id, each) for each in at]
    assert await rewrite(store, stream_id, entries)
    assert [await read_from(store, stream_id, each) for each in at] == before
    assert await read_all(store, stream_id) == entries


async def test_pages_are_those_of_a_log_that_was_not_packed(store: RedisClient) -> None:
    entries = a_log(2_000)
    stream_id = (await logged(store, entries)).stream_id
    await rewrite(store, stream_id, entries)
    at: EventId | None = None
    pages = 1
    while (page := await read_page(store, stream_id, at)).more:
        index = entries.index(page.entries[-1])
        assert page.last == entries[-1]
        assert page.base == entries[-2].last
        assert page.size < PAGE + LARGE
        at = entries[index].last
        pages += 1
    assert page.entries[-1] == entries[-1]
    assert pages > 2


async def test_a_viewer_in_the_midst_of_pages_does_not_notice(store: RedisClient) -> None:
    entries = a_log(2_000)
    there = await logged(store, entries)
    viewer = await there.attach()
    first = await there.frames(viewer, enough=20_000)
    assert await rewrite(store, there.stream_id, entries)
    there.fanout._pages.forget(there.stream_id)  # So that the rest is read now.
    assert first + await there.frames(viewer) == b"".join(each.frames for each in entries)


async def test_who_follows_a_log_that_was_packed_meanwhile_gets_its_rest(
    store: RedisClient,
) -> None:
    entries = a_log(3_000)
    there = await logged(store, entries[:5], entries[-1])
    viewer = await there.attach()
    assert len(await there.all(viewer)) == 4
    await there.write(*entries[5:])
    assert await rewrite(store, there.stream_id, entries)
    await fetching(replica(store), viewer.tail).announce()
    assert await there.all(viewer) == [f"7-{seq}" for seq in range(5, 3_001)]
    assert viewer.finished


async def test_who_comes_to_a_tail_that_lacks_what_was_packed_gets_all(store: RedisClient) -> None:
    entries = a_log(3_000)
    there = await logged(store, entries[:5], entries[-1])
    await there.attach()
    await there.write(*entries[5:])
    assert await rewrite(store, there.stream_id, entries)
    late = await there.attach(EventId(7, 2_500))
    assert await there.all(late) == [f"7-{seq}" for seq in range(2_501, 3_001)]
    assert late.tail.ended


# The rewriting


async def untouched(store: RedisClient, stream_id: str, entries: list[EntryBatch]) -> None:
    """Assert that a log cannot be packed as this one, and stays as it is."""
    before = await store.call("XRANGE", log_key(stream_id), "-", "+")
    assert not await rewrite(store, stream_id, entries)
    assert await store.call("XRANGE", log_key(stream_id), "-", "+") == before
    assert not await store.call("EXISTS", packed_key(stream_id))


async def test_a_log_without_an_end_is_never_packed(store: RedisClient) -> None:
    entries = a_log()
    there = await logged(store, entries[:-1])
    await untouched(store, there.stream_id, entries)
    await there.write(entries[-1])
    await store.call("HDEL", record_key(there.stream_id), "end_id")  # A seal that Redis forgot.
    await untouched(store, there.stream_id, entries)


async def test_a_log_that_is_another_by_now_is_not_packed(store: RedisClient) -> None:
    entries = a_log()
    there = await logged(store, [*entries[:4], *entries[5:]])
    await untouched(store, there.stream_id, entries)
    await store.call("DEL", record_key(there.stream_id), log_key(there.stream_id))
    await untouched(store, there.stream_id, entries)
    assert not await store.call("EXISTS", record_key(there.stream_id))


async def test_of_two_who_pack_at_once_one_does(store: RedisClient) -> None:
    entries = a_log()
    there = await logged(store, entries)
    packings = (rewrite(store, there.stream_id, entries) for _ in range(2))
    assert sorted(await asyncio.gather(*packings)) == [False, True]
    assert await read_all(store, there.stream_id) == entries


async def test_what_is_packed_lives_as_long_as_the_log_would_have(store: RedisClient) -> None:
    entries = a_log()
    there = await logged(store, entries)
    await store.call("PEXPIRE", log_key(there.stream_id), 40_000)
    assert await rewrite(store, there.stream_id, entries)
    assert not await store.call("EXISTS", log_key(there.stream_id))
    assert 0 < await store.call("PTTL", packed_key(there.stream_id)) <= 40_000


async def test_a_full_redis_takes_it(own_redis: RedisServer) -> None:
    store, entries = RedisClient(own_redis.url), a_log(3_000)
    try:
        there = await logged(store, entries)
        await store.call("CONFIG", "SET", "maxmemory", 1)
        assert await rewrite(store, there.stream_id, entries)
        assert await read_all(store, there.stream_id) == entries
    finally:
        await store.close()


async def test_a_stream_that_is_packed_has_ended_for_all_who_would_go_on_with_it(
    store: RedisClient,
) -> None:
    records, stream_id = replica(store), new_id()
    await records.create(stream_id, "alice", "default", b"{}", "digest")
    epoch = (await records.claim(stream_id, "nonce")).epoch
    await records.seal(stream_id, epoch, ending(epoch))
    entries = await read_all(store, stream_id)
    many = [EntryBatch(EventId(1, seq), 1, b"data: x\nid: 1-%d\n\n" % seq) for seq in (1, 2, 3)]
    await store.call("DEL", log_key(stream_id))
    there = Elsewhere(store)
    there.stream_id = stream_id
    await there.write(*many, *entries)
    assert await rewrite(store, stream_id, [*many, *entries])
    with pytest.raises(Sealed):
        await records.hold(stream_id, epoch, {"version": 1})
    assert await records.seal(stream_id, epoch, ending(epoch)) == "done"
    with pytest.raises(Fenced):
        await records.seal(stream_id, epoch - 1, ending(epoch - 1))
    assert await records.cancel(stream_id, b"event: end\n", b"{}") == ("done", "")
    assert await records.takeover(stream_id, records.replica, "another") is None
    assert (await records.claim(stream_id, "late")).verdict == "attach"
    assert not (await records.create(stream_id, "alice", "default", b"{}", "digest")).made
    assert await read_all(store, stream_id) == [*many, *entries]
    assert not await records.outlives_log(stream_id)


async def test_replicas_of_before_take_it_for_a_newer_record_and_find_no_log(
    store: RedisClient,
) -> None:
    """They wait for newer ones; what they would read as events are packs."""
    entries = a_log()
    there = await logged(store, entries)
    assert await rewrite(store, there.stream_id, entries)
    assert (await found(replica(store), there.stream_id)).version == PACKED > 2
    assert await store.call("XRANGE", log_key(there.stream_id), "-", "+") == []


# The whole


async def long_answer(call: Call) -> None:
    """Answer with more than is left alone."""
    words = [chunk(f"word {number} ") for number in range(100)]
    await call.send(OK, sse(*words, chunk("", finish="stop"), b"[DONE]"))


async def test_whoever_comes_after_a_stream_was_packed_gets_what_was_there(
    any_redis_url: str,
) -> None:
    async with gateway(long_answer, redis_url=any_redis_url, lease=1) as (gate, upstream):
        body = ask(f"{new_id()}?")
        got = await posted(gate.http, body=body)
        url, store = got.headers["content-location"], gate.gateway.store
        stream_id = stream_of(gate, got)
        before = await gate.completion(url)
        packed = packed_key(stream_id)
        await until(lambda: store.call("EXISTS", packed), "its log is packed", seconds=20)
        assert not await store.call("EXISTS", log_key(stream_id))
        given = {"redis_url": any_redis_url, "upstream_url": upstream.url}
        async with AsyncExitStack() as more:
            other = gate
            if any_redis_url:
                other = await more.enter_async_context(running(**given))
            assert (await other.read(url)).events == got.events
            assert (await other.read(url, last_id=got.ids[40])).events == got.events[41:]
            assert (await other.read(url, last_id=got.last_id)).status == 204
            assert await other.completion(url) == before
            again = await posted(other.http, got.ids[7], body=body)
            assert again.events == got.events[8:]
        assert len(upstream.calls) == 1


async def test_what_is_small_stays_as_it_is(store: RedisClient) -> None:
    compaction, records = Compaction(store), replica(store)
    writer = GroupCommit(store, records, compaction.add)
    stream_id = new_id()
    await records.create(stream_id, "alice", "default", b"{}", "digest")
    epoch = (await records.claim(stream_id, "nonce")).epoch
    small = writer.open(stream_id, epoch, EntryBatches(await read_all(store, stream_id)), {})
    await small.seal("done", [Event(b"{}", b"end")], Event(b"{}", b"end"), b"{}")
    writer.close(small)
    assert not compaction.waiting

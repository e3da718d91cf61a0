"""A viewer is a position: it gets what follows, once, in order, or is told that it cannot."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.errors import Unavailable
from gateway.eventlog.entries import EntryBatch, EventId, weight
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.fetcher import Fetcher
from gateway.eventlog.pages import Pages, Turns
from gateway.eventlog.tail import Tail
from gateway.eventlog.viewer import Viewer
from gateway.runs.records import Records
from gateway.runs.source import RecordSource
from gateway.sse import HEARTBEAT, Event, encode, parse
from gateway.store.client import RedisClient
from gateway.store.keys import (
    DATASET_ID,
    control_channel,
    log_key,
    new_id,
    presence_key,
    record_key,
)
from tests.support import RedisServer, until

EPOCH = 5


def entry(first: int, last: int, state: str = "", epoch: int = EPOCH) -> EntryBatch:
    """Return an entry with the events first..last."""
    frames = b"".join(
        encode(b"event %d" % seq, b"%d-%d" % (epoch, seq)) for seq in range(first, last + 1)
    )
    return EntryBatch(EventId(epoch, last), last - first + 1, frames, state)


def fence(epoch: int = EPOCH) -> EntryBatch:
    """Return the entry that begins an epoch."""
    return EntryBatch(EventId(epoch, 0), 0, b"")


def tail(*entries: EntryBatch) -> Tail:
    """Return a tail that this replica feeds."""
    made = Tail("stream", local=True)
    made.entries.replace(entries)
    return made


def viewer(of: Tail, epoch: int | None = None, seq: int = 0) -> Viewer:
    """Return a viewer at a position, or at the start."""
    made = Viewer(of, None if epoch is None else EventId(epoch, seq))
    of.viewers.add(made)
    return made


def taken(by: Viewer) -> list[Event]:
    """Return everything that can be taken now."""
    frames = b""
    while chunk := by.take():
        frames += chunk
    return parse(frames)


def ids(by: Viewer) -> list[str]:
    """Return the ids of everything that can be taken now."""
    return [event.id.decode() for event in taken(by)]


def later(seconds: float = 0) -> float:
    """Return a time of the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


# What follows a position


async def test_a_viewer_without_a_position_gets_everything_once() -> None:
    of = tail(fence(), entry(1, 2), entry(3, 3))
    one = viewer(of)
    assert ids(one) == ["5-1", "5-2", "5-3"]
    assert one.take() == b""
    of.entries.append(entry(4, 4, "done"))
    assert not one.finished
    assert ids(one) == ["5-4"]
    assert one.finished


@pytest.mark.parametrize("seq", range(5))
async def test_a_viewer_goes_on_after_its_position_also_within_an_entry(seq: int) -> None:
    of = tail(fence(), entry(1, 1), entry(2, 4))
    one = viewer(of, EPOCH, seq)
    assert ids(one) == [f"5-{number}" for number in range(seq + 1, 5)]
    of.entries.append(entry(5, 6))
    assert ids(one) == ["5-5", "5-6"]


async def test_a_viewer_who_is_ahead_of_the_log_waits_and_gets_nothing_twice() -> None:
    of = tail(fence(), entry(1, 2))
    one = viewer(of, EPOCH, 4)
    assert taken(one) == []
    of.extend([entry(3, 3), entry(4, 6)])
    assert ids(one) == ["5-5", "5-6"]


async def test_a_viewer_whom_the_log_has_caught_up_with_goes_on_into_the_next_epoch() -> None:
    of = tail(fence(), entry(1, 2))
    one = viewer(of, EPOCH, 3)
    assert ids(one) == []
    for each in (entry(3, 3), fence(9), entry(1, 1, epoch=9)):
        of.entries.append(each)
    assert ids(one) == ["9-1"]


async def test_a_viewer_who_is_ahead_of_a_log_that_went_another_way_is_told() -> None:
    of = tail(fence(), entry(1, 2))
    one = viewer(of, EPOCH, 4)
    assert taken(one) == []
    of.extend([fence(9), entry(1, 1, "interrupted", epoch=9)])
    gap, *rest = taken(one)
    assert (gap.name, json.loads(gap.data)) == (b"gap", {"from": "5-4", "to": "5-0"})
    assert [event.id for event in rest] == [b"5-1", b"5-2", b"9-1"]
    assert one.finished


@pytest.mark.parametrize("at", [(4, 1), (6, 1), (5, 9)])
async def test_what_cannot_be_had_is_said_once_and_the_log_follows_from_its_start(
    at: tuple[int, int],
) -> None:
    of = tail(fence(), entry(1, 2, "done"))
    one = viewer(of, *at)
    assert not one.finished
    gap, *rest = taken(one)
    assert (gap.name, gap.id) == (b"gap", b"5-0")
    assert json.loads(gap.data) == {"from": f"{at[0]}-{at[1]}", "to": "5-0"}
    assert [event.id for event in rest] == [b"5-1", b"5-2"]
    assert one.finished


async def test_a_gap_waits_until_there_is_something_to_lead_to() -> None:
    of = tail()
    one = viewer(of, 4, 4)
    assert (one.take(), one.has_more, one.finished) == (b"", False, False)
    of.extend([fence(), entry(1, 1)])
    assert [event.name for event in taken(one)] == [b"gap", b""]


async def test_the_id_of_a_gap_is_a_position_to_go_on_from() -> None:
    of = tail(fence(), entry(1, 2))
    gap = taken(viewer(of, 4, 4))[0]
    position = EventId.parse(gap.id.decode())
    assert position is not None
    assert ids(viewer(of, *position)) == ["5-1", "5-2"]


async def test_a_viewer_passes_over_a_fence_without_a_word() -> None:
    of = tail(fence(), entry(1, 1), fence(9), entry(1, 1, "interrupted", epoch=9))
    assert ids(viewer(of)) == ["5-1", "9-1"]
    assert ids(viewer(of, EPOCH, 1)) == ["9-1"]


async def test_a_large_log_is_handed_over_in_bounded_pieces() -> None:
    big = EntryBatch(EventId(EPOCH, 1), 1, encode(b"x" * 200_000, b"5-1"))
    of = tail(fence(), *[big] * 10)
    one = viewer(of)
    sizes = []
    while chunk := one.take():
        sizes.append(len(chunk))
    assert max(sizes) < 500_000
    assert sum(sizes) == 10 * len(big.frames)


# Waiting, heartbeats, leaving


async def test_a_waiting_viewer_is_woken() -> None:
    of = tail(fence())
    one = viewer(of)
    waiting = one.wait()
    await asyncio.sleep(0)
    of.entries.append(entry(1, 1))
    of.wake()
    await asyncio.wait_for(waiting, 20)
    assert ids(one) == ["5-1"]


async def test_a_heartbeat_comes_only_after_silence() -> None:
    one = viewer(tail(fence()))
    assert one.take() == b""
    one.tick(later(0.5), 1, 30)
    assert (one.has_more, one.take()) == (False, b"")
    one.tick(later(1.5), 1, 30)
    assert (one.has_more, one.take()) == (True, HEARTBEAT)
    one.sent()
    assert (one.has_more, one.take()) == (False, b"")


async def test_an_event_is_a_sign_of_life_in_place_of_a_heartbeat() -> None:
    one = viewer(tail(fence(), entry(1, 1)))
    one.tick(later(2), 1, 30)
    assert HEARTBEAT not in one.take().splitlines(keepends=True)
    one.sent()
    assert one.take() == b""


async def test_who_reads_nothing_is_cut_off_at_the_write_timeout() -> None:
    cut: list[bool] = []
    one = viewer(tail(fence()))
    one.abort = lambda: cut.append(True)
    one.sending_since = later()
    one.tick(later(29), 1, 30)
    assert (one.gone, cut) == (False, [])
    one.tick(later(31), 1, 30)
    assert (one.gone, cut) == (True, [True])


async def test_a_dropped_viewer_has_whole_events_only_and_leaves() -> None:
    of = tail(fence(), entry(1, 3))
    one = viewer(of)
    waiting = one.wait()
    await asyncio.sleep(0)
    assert of.drop() == 1
    await asyncio.wait_for(waiting, 20)
    assert one.finished
    assert one.take().endswith(b"id: 5-3\n\n")


async def test_entries_that_are_read_twice_are_shown_once() -> None:
    of = tail(fence(), entry(1, 2))
    assert of.extend([entry(1, 2), entry(3, 3)])
    assert not of.extend([entry(1, 2), entry(3, 3)])
    assert ids(viewer(of)) == ["5-1", "5-2", "5-3"]


# Streams that run elsewhere


class Elsewhere:
    """A stream in Redis that another replica writes, and this replica's fanout."""

    def __init__(self, store: RedisClient, grace: float = 9) -> None:
        self.store = store
        self.stream_id = new_id()
        source = RecordSource(_records(store))
        self.fanout = Fanout(store, source, grace=lambda: grace, heartbeat=9, write_timeout=9)

    async def claim(self) -> Records:
        """Let another replica claim it; return that one's records."""
        other = _records(self.store)
        await other.create(self.stream_id, "alice", "default", b"{}", "digest")
        await other.claim(self.stream_id, "nonce")
        return other

    async def write(self, *entries: EntryBatch) -> None:
        """Append as its owner does."""
        for each in entries:
            fields = [str(each.number), each.frames]
            end = ["end", each.state] if each.state else []
            await self.store.call("XADD", log_key(self.stream_id), str(each.last), *fields, *end)
        await self.store.call("PEXPIRE", log_key(self.stream_id), 60_000)

    async def attach(self, position: EventId | None = None) -> Viewer:
        """Return a viewer."""
        return await self.fanout.attach(self.stream_id, "owner", position)

    async def all(self, by: Viewer) -> list[str]:
        """Return the ids of everything that is logged, however many pages of it."""
        return [event.id.decode() for event in parse(await self.frames(by))]

    async def frames(self, by: Viewer, enough: int = 1 << 30) -> bytes:
        """Return everything that is logged, or enough bytes of it."""
        frames = b""
        while (by.lagging or by.has_more) and not by.finished and len(frames) < enough:
            if by.lagging:
                await self.fanout.turn(by)
            by.sending()
            frames += by.take()
        return frames


def _records(store: RedisClient) -> Records:
    return Records(store, new_id(), start_by=60, log_ttl=600, max_run=lambda: 600, lease=1)


def fetching(records: Records, tail: Tail) -> Fetcher:
    """Return what reads one tail, and announces when it is told to."""
    source = RecordSource(records)
    tails = {tail.stream_id: tail}
    return Fetcher(records.store, source, tails, lambda: [tail.stream_id], grace=lambda: 30)


@asynccontextmanager
async def elsewhere(url: str, grace: float = 9) -> AsyncIterator[Elsewhere]:
    """Follow what runs elsewhere for the length of the block."""
    store = RedisClient(url)
    there = Elsewhere(store, grace)
    task = asyncio.create_task(there.fanout.follow())
    try:
        yield there
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def test_what_was_logged_before_is_there_at_once(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *(entry(seq, seq) for seq in range(1, 1101)))
        assert len(await there.all(await there.attach())) == 1100
        last = await there.attach(EventId(EPOCH, 1098))
        assert await there.all(last) == ["5-1099", "5-1100"]


# Who is further behind than what is kept here


def large(seq: int, state: str = "", epoch: int = EPOCH, size: int = 50_000) -> EntryBatch:
    """Return an entry with one event of which two make a page and more."""
    frames = encode(b"%d " % seq + b"x" * size, b"%d-%d" % (epoch, seq))
    return EntryBatch(EventId(epoch, seq), 1, frames, state)


def numbered(first: int, last: int, epoch: int = EPOCH) -> list[str]:
    """Return the ids first..last."""
    return [f"{epoch}-{seq}" for seq in range(first, last + 1)]


@pytest.mark.parametrize("ended", ["", "done"])
async def test_a_log_of_many_pages_is_read_in_windows_from_any_position(
    any_redis_url: str, ended: str
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 20)), large(20, ended))
        assert await there.all(await there.attach()) == numbered(1, 20)
        for seq in (0, 1, 9, 19, 20):
            one = await there.attach(EventId(EPOCH, seq))
            assert await there.all(one) == numbered(seq + 1, 20)
            assert one.finished is bool(ended)
        assert weight(one.tail.entries) < 200_000


async def test_a_page_may_begin_and_end_within_what_arrived_together(any_redis_url: str) -> None:
    """An entry of many events that is larger than a page, and a position inside it."""
    frames = b"".join(large(seq).frames for seq in range(2, 9))
    async with elsewhere(any_redis_url) as there:
        await there.write(
            fence(), large(1), EntryBatch(EventId(EPOCH, 8), 7, frames), large(9), large(10)
        )
        assert await there.all(await there.attach()) == numbered(1, 10)
        for seq in range(1, 10):
            assert await there.all(await there.attach(EventId(EPOCH, seq))) == numbered(seq + 1, 10)


async def test_a_position_within_an_entry_is_found_behind_one_that_is_larger_than_a_page(
    any_redis_url: str,
) -> None:
    async with elsewhere(any_redis_url) as there:
        together = entry(2, 5)
        await there.write(fence(), large(1, size=200_000), together, *map(large, range(6, 12)))
        one = await there.attach(EventId(EPOCH, 3))
        assert await there.all(one) == numbered(4, 11)


async def test_what_comes_while_a_viewer_is_behind_follows_once_and_in_order(
    any_redis_url: str,
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 10)))
        slow, late = await there.attach(), await there.attach(EventId(EPOCH, 12))
        got = await there.frames(slow, 100_000)
        for seq in range(10, 20):
            await there.write(large(seq))
            there.fanout.mark([there.stream_id])
            got += await there.frames(slow, 60_000)
        await there.write(fence(9), large(1, "interrupted", epoch=9))
        await until(lambda: slow.tail.ended)
        got += await there.frames(slow)
        assert [each.id.decode() for each in parse(got)] == [*numbered(1, 19), "9-1"]
        assert slow.finished
        assert await there.all(late) == [*numbered(13, 19), "9-1"]


async def test_of_a_stream_that_runs_elsewhere_little_is_kept_but_a_slow_viewer_misses_nothing(
    shared_redis: RedisServer,
) -> None:
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence())
        slow, fast = await there.attach(), await there.attach()
        got: list[str] = []
        for seq in range(1, 41):
            await there.write(large(seq, size=20_000))
            there.fanout.mark([there.stream_id])
            await until(lambda: fast.has_more)
            got += await there.all(fast)
            assert weight(fast.tail.entries) < 200_000
        assert got == numbered(1, 40)
        assert await there.all(slow) == got
        assert await there.all(await there.attach()) == got


@pytest.mark.parametrize("at", [(4, 1), (6, 1), (5, 99), (9, 3)])
async def test_what_no_page_has_is_a_gap_and_the_log_follows_from_its_start(
    any_redis_url: str, at: tuple[int, int]
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 10)))
        await there.write(fence(9), large(1, epoch=9), large(2, "done", epoch=9))
        one = await there.attach(EventId(*at))
        gap, *rest = parse(await there.frames(one))
        assert (gap.name, gap.id) == (b"gap", b"5-0")
        assert json.loads(gap.data)["from"] == f"{at[0]}-{at[1]}"
        assert [each.id.decode() for each in rest] == [*numbered(1, 9), *numbered(1, 2, 9)]
        assert one.finished


async def test_a_log_that_begins_anew_under_a_viewer_who_is_behind_is_a_gap(
    any_redis_url: str,
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 10)))
        one = await there.attach()
        assert await there.frames(one, 100_000) == large(1).frames + large(2).frames
        await there.store.call("DEL", log_key(there.stream_id))
        await there.write(fence(9), *(large(seq, epoch=9) for seq in range(1, 10)))
        await until(lambda: one.tail.last == EventId(9, 9))
        gap, *rest = parse(await there.frames(one))
        assert (gap.name, json.loads(gap.data)) == (b"gap", {"from": "5-9", "to": "9-0"})
        assert [each.id.decode() for each in rest] == numbered(1, 9, 9)


async def test_a_page_that_was_asked_for_before_a_gap_is_no_place_to_go_on_from(
    any_redis_url: str,
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 10)))
        one = await there.attach(EventId(EPOCH, 2))
        turning = asyncio.create_task(there.fanout.turn(one))
        await asyncio.sleep(0)  # It asks for what follows its position.
        one.miss(EventId(EPOCH, 9))
        await turning
        gap, *rest = parse(one.take() + await there.frames(one))
        assert json.loads(gap.data) == {"from": "5-9", "to": "5-0"}
        assert [each.id.decode() for each in rest] == numbered(1, 9)


async def test_two_who_look_at_a_new_log_at_once_tell_one_gap(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        of = Tail(there.stream_id, local=False)
        of.entries.replace([fence(), entry(1, 2)])
        one, news = viewer(of, EPOCH, 2), entry(1, 1, epoch=9)
        await there.write(fence(9), news)
        fetcher = fetching(_records(there.store), of)
        await asyncio.gather(*(fetcher.compare(of, [news]) for _ in range(2)))
        gap, *rest = taken(one)
        assert json.loads(gap.data) == {"from": "5-2", "to": "9-0"}
        assert [each.id.decode() for each in rest] == ["9-1"]


async def test_who_is_in_the_midst_of_an_event_that_is_gone_is_sent_away(
    shared_redis: RedisServer,
) -> None:
    """Half an event, and then a gap: the two would be one to who reads it."""
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence(), *map(large, range(1, 10)))
        one = await there.attach()
        await there.fanout.turn(one)
        assert not one.take().endswith(b"\n\n")
        await there.store.call("DEL", log_key(there.stream_id))
        await there.write(fence(9), large(1, epoch=9))
        await until(lambda: one.finished)


async def test_who_is_behind_in_a_log_that_expired_is_sent_away(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), *map(large, range(1, 9)), large(9, "done"))
        one = await there.attach()
        assert await there.frames(one, 100_000) == large(1).frames + large(2).frames
        await there.store.call("DEL", log_key(there.stream_id))
        await there.all(one)
        assert one.finished


async def test_a_page_that_was_read_before_the_tail_went_on_ends_nobodys_connection(
    shared_redis: RedisServer,
) -> None:
    """It brought nothing, and by now the tail begins after it: it is read once more."""
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence(), *map(large, range(1, 6)))
        one, pages = await there.attach(), Pages(there.store, 1 << 20)
        got = await there.frames(one)
        early = await pages.load(there.stream_id, EventId(EPOCH, 5), "alice")
        for seq in range(6, 20):
            await there.write(large(seq))
            there.fanout.mark([there.stream_id])
            await until(lambda: one.has_more)
            got += await there.frames(one)
        late = Viewer(one.tail, EventId(EPOCH, 5))
        assert late.lagging
        late.turn(early)
        assert late.take() == b""
        assert not late.gone
        assert await there.all(late) == numbered(6, 19)
        assert [each.id.decode() for each in parse(got)] == numbered(1, 19)
        await pages.stop()


async def test_who_leaves_in_the_midst_of_a_large_event_has_the_whole_of_it() -> None:
    of = tail(fence(), large(1), large(2))
    one = viewer(of)
    frames = one.take()
    assert 0 < len(frames) < 20_000
    one.leave()
    while not one.finished:
        frames += one.take()
    assert frames == large(1).frames


async def test_no_heartbeat_comes_in_the_midst_of_a_large_event(shared_redis: RedisServer) -> None:
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence(), *map(large, range(1, 9)))
        one = await there.attach()
        await there.fanout.turn(one)
        one.take()
        one.sending()
        of = one.tail.pages
        assert of is not None
        of.forget(there.stream_id)
        one.tick(later(20), 1, 60)
        assert one.lagging
        assert (one.has_more, one.take()) == (False, b"")


async def test_pages_are_kept_up_to_a_number_of_bytes_and_shared(shared_redis: RedisServer) -> None:
    async with elsewhere(shared_redis.url) as there:
        pages = Pages(there.store, 300_000)
        await there.write(fence(), *map(large, range(1, 30)))
        loads = [pages.load(there.stream_id, None, "alice") for _ in range(10)]
        assert len({id(await each) for each in loads}) == 1
        for seq in range(1, 27, 3):
            await pages.load(there.stream_id, EventId(EPOCH, seq), "alice")
            assert pages.size < 300_000
            assert pages.get(there.stream_id, EventId(EPOCH, seq)) is not None
        assert pages.get(there.stream_id, None) is None
        pages.forget(there.stream_id)
        assert pages.size == 0
        await pages.stop()


async def test_pages_of_a_log_that_nobody_looks_at_are_let_go(shared_redis: RedisServer) -> None:
    """A key that is used again, later, is for another log of the same name."""
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence(), *map(large, range(1, 30)))
        viewer = await there.attach()
        await there.all(viewer)
        pages = viewer.tail.pages
        assert pages is not None
        assert pages.size > 0
        there.fanout.detach(viewer)
        there.fanout.sweep(later(5))
        assert pages.size == 0


async def test_pages_of_logs_that_are_gone_have_a_bound_too(shared_redis: RedisServer) -> None:
    async with elsewhere(shared_redis.url) as there:
        pages = Pages(there.store, 1000)
        for seq in range(20):
            await pages.load(there.stream_id, EventId(EPOCH, seq), "alice")
        kept = [pages.get(there.stream_id, EventId(EPOCH, seq)) for seq in range(20)]
        assert 0 < sum(each is not None for each in kept) < 10
        await pages.stop()


async def test_one_who_asks_for_much_does_not_hold_up_the_others() -> None:
    turns, order = Turns(2, 1), list[str]()

    async def work(subject: str) -> None:
        async with turns.of(subject):
            order.append(subject)
            await asyncio.sleep(0)

    await asyncio.gather(*map(work, ["mallory"] * 20), work("alice"))
    assert order.index("alice") < 3


# News


async def test_a_word_of_the_owner_brings_what_is_new_at_once(
    any_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.eventlog.fanout.POLL", 1000.0)  # Nobody looks without a word.
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        one = await there.attach()
        assert ids(one) == []
        await there.write(entry(1, 1))
        there.fanout.mark([there.stream_id])
        await until(lambda: one.has_more)
        assert ids(one) == ["5-1"]


async def test_a_lost_word_loses_nothing(any_redis_url: str) -> None:
    """What was not told is found by a look once a second."""
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        one = await there.attach()
        assert ids(one) == []
        await there.write(entry(1, 1))
        await until(lambda: one.has_more)
        assert ids(one) == ["5-1"]


async def test_viewers_who_come_together_share_one_tail(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), entry(1, 3))
        viewers = await asyncio.gather(*(there.attach() for _ in range(20)))
        assert len({id(each.tail) for each in viewers}) == 1
        assert all(ids(each) == ["5-1", "5-2", "5-3"] for each in viewers)


async def test_a_tail_that_nobody_watches_is_dropped(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        one = await there.attach()
        there.fanout.sweep(later(60))
        assert there.fanout.get(there.stream_id) is one.tail
        there.fanout.detach(one)
        assert there.fanout.viewers == 0
        there.fanout.sweep(later(60))
        assert there.fanout.get(there.stream_id) is None


async def test_a_tail_is_not_dropped_under_a_viewer_who_is_just_coming(
    shared_redis: RedisServer,
) -> None:
    """Redis may take longer than a sweep; who comes meanwhile would never hear anything."""
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence())
        coming = asyncio.create_task(there.attach())
        await asyncio.sleep(0)
        there.fanout.sweep(later(60))
        one = await coming
        assert ids(one) == []
        await there.write(entry(1, 1))
        await until(lambda: one.has_more, "the viewer is told", 20)


async def test_a_viewer_who_comes_before_the_claim_is_answered_gets_what_follows(
    any_redis_url: str,
) -> None:
    """Redis has named us the owner, but we do not know it yet when a second viewer comes."""
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        one = await there.attach()
        assert ids(one) == []
        own = there.fanout.own(there.stream_id, fence())
        own.entries.append(entry(1, 1))
        own.wake()
        await until(lambda: one.has_more, "the viewer is told", 20)
        assert ids(one) == ["5-1"]


async def test_what_is_read_while_a_run_begins_here_is_not_shown_twice(
    shared_redis: RedisServer,
) -> None:
    """A read was under way when the run began: Redis has an entry that is not acknowledged yet."""
    async with elsewhere(shared_redis.url) as there:
        await there.write(fence())
        await there.attach()
        coming = asyncio.create_task(there.attach())
        await asyncio.sleep(0)
        own = there.fanout.own(there.stream_id, fence())
        await there.write(entry(1, 1))
        one = await coming
        own.entries.append(entry(1, 1))  # It lands.
        own.wake()
        assert ids(one) == ["5-1"]


async def test_a_watched_stream_is_shown_to_its_owner_before_the_first_byte(
    any_redis_url: str,
) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        await there.attach()
        assert await there.store.call("PTTL", presence_key(there.stream_id)) > 0


@pytest.mark.parametrize("unread", [0, 1])
async def test_who_watches_is_made_known_to_the_replica_that_took_the_stream_over(
    any_redis_url: str, unread: int
) -> None:
    """Else it hears of nothing new but once a second. The old owner's last words come along."""
    async with elsewhere(any_redis_url) as there:
        old, successor = await there.claim(), _records(there.store)
        one = await there.attach()
        assert ids(one) == []
        told = asyncio.create_task(_watch(there.store, successor.replica))
        record = await old.read(there.stream_id)
        assert record is not None
        await there.write(*[entry(1, 1, epoch=record.epoch)] * unread)
        await successor.takeover(there.stream_id, old.replica, "nonce")
        assert there.stream_id in await asyncio.wait_for(told, 20)
        assert there.fanout.owners() == {successor.replica: [there.stream_id]}
        await until(lambda: len(ids(one)) == unread, "its last words")


async def _watch(store: RedisClient, replica: str) -> str:
    """Return the first word to a replica that somebody watches."""
    async for message in store.messages(control_channel(replica)):
        if message.startswith(b"watch"):
            break
    return message.decode()


async def test_presence_is_shown_again_as_long_as_somebody_watches(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url, grace=2) as there:
        await there.write(fence())
        one = await there.attach()
        key, last = presence_key(there.stream_id), 0

        async def shown_again() -> bool:
            nonlocal last
            before, last = last, int(await there.store.call("PTTL", key))
            assert last > 0
            return last > before

        for _ in range(4):
            await until(shown_again)
        there.fanout.detach(one)

        async def gone() -> bool:
            return not await there.store.call("EXISTS", key)

        await until(gone)


async def test_a_log_that_cannot_be_read_now_leaves_no_viewer_behind(
    own_redis: RedisServer,
) -> None:
    async with elsewhere(own_redis.url) as there:
        own_redis.kill()
        with pytest.raises(Unavailable):
            await there.attach()
        assert there.fanout.viewers == 0
        own_redis.start()
        await there.write(fence(), entry(1, 1))
        assert ids(await there.attach()) == ["5-1"]


async def test_a_stream_that_was_taken_from_us_is_followed_in_the_log(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), entry(1, 2), fence(9), entry(1, 1, "interrupted", epoch=9))
        mine = there.fanout.own(there.stream_id, fence())
        mine.entries.append(entry(1, 2))
        one = viewer(mine)
        assert ids(one) == ["5-1", "5-2"]
        there.fanout.disown(there.stream_id)
        await until(lambda: one.has_more)
        assert ids(one) == ["9-1"]
        assert one.finished


@pytest.mark.parametrize("local", [True, False])
async def test_a_log_that_began_anew_is_a_gap_also_for_those_who_never_left(
    any_redis_url: str, local: bool
) -> None:
    """Redis forgot the claim, another replica made it: what was seen so far is of no stream."""
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), entry(1, 2))
        if local:
            there.fanout.own(there.stream_id, fence()).entries.append(entry(1, 2))
        one = await there.attach()
        assert ids(one) == ["5-1", "5-2"]
        await there.store.call("DEL", log_key(there.stream_id))
        await there.write(fence(9), entry(1, 2, epoch=9))
        if local:
            there.fanout.disown(there.stream_id)
        await until(lambda: one.has_more)
        assert [event.name for event in taken(one)] == [b"gap", b"", b""]


async def test_who_comes_to_a_log_that_began_anew_mixes_it_with_nothing(any_redis_url: str) -> None:
    """It may come before those who watch here have heard of it."""
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), entry(1, 2))
        one = await there.attach()
        assert ids(one) == ["5-1", "5-2"]
        await there.store.call("DEL", log_key(there.stream_id))
        await there.write(fence(9), entry(1, 2, epoch=9))
        assert ids(await there.attach()) == ["9-1", "9-2"]
        assert [event.name for event in taken(one)] == [b"gap", b"", b""]


async def test_nobody_is_held_to_be_dead_who_has_no_name(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence())
        viewer(there.fanout.own(there.stream_id, fence()))
        there.fanout.disown(there.stream_id)
        assert "" not in there.fanout.owners()


async def test_those_who_wait_for_a_stream_that_is_lost_are_sent_away(
    own_redis: RedisServer,
) -> None:
    async with elsewhere(own_redis.url, grace=0.3) as there:
        await there.claim()
        await there.store.call("SET", DATASET_ID, 1, "PX", 60_000)
        one = await there.attach()
        await asyncio.sleep(0)
        assert not one.gone
        await there.store.call("DEL", record_key(there.stream_id), log_key(there.stream_id))
        await until(lambda: one.gone)


async def test_those_who_wait_for_a_stream_whose_claim_is_lost_are_sent_to_redeem_it(
    own_redis: RedisServer,
) -> None:
    """A failover lost the claim, and who had it does not live: nobody else would ever run it."""
    async with elsewhere(own_redis.url, grace=0.3) as there:
        await there.claim()
        one = await there.attach()
        await there.store.call("DEL", log_key(there.stream_id))
        await there.store.call("HSET", record_key(there.stream_id), "state", "cached")
        await until(lambda: one.gone)


async def test_an_owner_has_time_to_write_a_lost_claim_again(any_redis_url: str) -> None:
    """Who is sent away redeems it: where its owner lives that would be paid for twice."""
    async with elsewhere(any_redis_url) as there:
        records = await there.claim()
        tail = Tail(there.stream_id, local=False, owner=records.replica)
        one = viewer(tail)
        fetcher = fetching(records, tail)
        begun = asyncio.get_running_loop().time()
        for state in ("cached", "starting", "cached"):
            await there.store.call("HSET", record_key(there.stream_id), "state", state)
            await fetcher.announce()
            assert not one.gone

        async def gone() -> bool:
            await fetcher.announce()
            return one.gone

        await until(gone)
        assert asyncio.get_running_loop().time() - begun >= records.patience


@pytest.mark.parametrize("state", ["starting", "failed"])
async def test_a_log_that_went_back_to_an_earlier_owner_is_followed_there(
    any_redis_url: str, state: str
) -> None:
    """Redis forgot the takeover that was seen here, and the old owner lived to write it again."""
    async with elsewhere(any_redis_url) as there:
        records = await there.claim()
        tail = Tail(there.stream_id, local=False, owner="who took it over")
        one = viewer(tail)
        tail.extend([fence(), entry(1, 2), fence(2**50)])
        assert ids(one) == ["5-1", "5-2"]
        end = state if state != "starting" else ""
        await there.store.call("DEL", log_key(there.stream_id))
        await there.write(fence(), entry(1, 2), entry(3, 3, end))
        await there.store.call("HSET", record_key(there.stream_id), "state", state, "epoch", EPOCH)
        fetcher = fetching(records, tail)
        await fetcher.announce()
        assert [event.name for event in taken(one)] == [b"gap", b"", b"", b""]
        assert one.finished is bool(end)


async def test_who_waits_for_the_end_of_a_log_that_is_gone_is_sent_away(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        records = await there.claim()
        tail = Tail(there.stream_id, local=False, owner=records.replica)
        one = viewer(tail)
        tail.extend([fence(), entry(1, 2)])
        await there.store.call("DEL", log_key(there.stream_id))
        await there.store.call("HSET", record_key(there.stream_id), "state", "done")
        fetcher = fetching(records, tail)
        await fetcher.announce()
        assert one.gone


async def test_who_comes_to_a_replica_that_drains_is_sent_away_at_once(any_redis_url: str) -> None:
    async with elsewhere(any_redis_url) as there:
        await there.write(fence(), entry(1, 1))
        before = await there.attach()
        there.fanout.drain()
        assert before.finished
        assert (await there.attach()).finished

"""What is shown is logged; and whatever happens to Redis or the way to it, the log has no hole."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from gateway.errors import Fenced, Unavailable
from gateway.eventlog.entries import Cursor, EntryBatch, EntryBatches, EventId, seek, start_of
from gateway.eventlog.group_commit import GroupCommit, NodeCommitter
from gateway.eventlog.reader import read_all
from gateway.eventlog.writer import EventLog
from gateway.runs.records import Records
from gateway.sse import Event, encode, parse
from gateway.store.client import RedisClient
from gateway.store.keys import log_key, new_id, record_key
from gateway.store.node import Node
from gateway.store.pools import Address
from tests.scripts import digests_of, texts_of
from tests.support import RedisServer, redis_server, until

LOSE_REQUEST = -1


class Proxy:
    """A way to Redis that loses what a test wants lost.

    `judge` sees the bytes of each request: None lets it pass; LOSE_REQUEST cuts the connection
    before Redis has it; n >= 0 cuts it after n bytes of the reply. While `answering` is not set,
    replies wait; each is late by `delay` seconds. `requests` keeps what passed. `garble` and
    `misread` change what Redis is asked and what it answers: none of our servers does so.
    """

    def __init__(self, port: int) -> None:
        self.judge: Callable[[bytes], int | None] = lambda _: None
        self.answering = asyncio.Event()
        self.answering.set()
        self.delay: Callable[[], float] = lambda: 0.0
        self.garble: Callable[[bytes], bytes] = lambda data: data
        self.misread: Callable[[bytes], bytes] = lambda data: data
        self.requests: list[bytes] = []
        self.url = ""
        self.port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            replies, onward = await asyncio.open_connection("127.0.0.1", self.port)
            writers.append(onward)
            left: list[int | None] = [None]
            pumps = [
                asyncio.create_task(self._requests(reader, onward, left)),
                asyncio.create_task(self._replies(replies, writer, left)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # A stream server logs the cancelling of a connection as a fault.
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter, left: list[int | None]
    ) -> None:
        while data := await reader.read(1 << 20):
            verdict = self.judge(data)
            if verdict == LOSE_REQUEST:
                return
            if verdict is not None:
                left[0] = verdict
            self.requests.append(data)
            onward.write(self.garble(data))
            await onward.drain()

    async def _replies(
        self, replies: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int | None]
    ) -> None:
        while data := await replies.read(1 << 20):
            await self.answering.wait()
            if late := self.delay():
                await asyncio.sleep(late)
            data = self.misread(data)
            bound = left[0]
            writer.write(data if bound is None else data[:bound])
            await writer.drain()
            if bound is not None:
                left[0] = bound - len(data)
                if bound <= len(data):
                    return

    def cut(self) -> None:
        """Cut every connection now."""
        for task in self._tasks:
            task.cancel()

    async def finish(self) -> None:
        """Cut every connection and wait until that is done."""
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(redis: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy before a Redis for the length of the block."""
    proxy = Proxy(redis.port)
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    proxy.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.finish()
        await server.wait_closed()


class Owner:
    """A replica that writes logs and does nothing else."""

    def __init__(self, store: RedisClient) -> None:
        self.store = store
        self.records = records(store)
        self.writer = GroupCommit(store, self.records)

    async def log(self) -> EventLog:
        """Return the log of a new stream."""
        stream_id = new_id()
        await self.records.create(stream_id, "alice", "default", b"{}", "digest")
        claim = await self.records.claim(stream_id, "nonce")
        record = await self.records.read(stream_id)
        assert record is not None
        fields = {"version": 1, "subject": "alice", "preset": "default", "digest": "digest"}
        fields |= {"issued": record.issued, "start_by": record.start_by, "attempts": 1}
        fence = EntryBatch(EventId(claim.epoch, 0), 0, b"")
        fields["request"] = "{}"
        return self.writer.open(stream_id, claim.epoch, EntryBatches([fence]), fields)


def records(store: RedisClient) -> Records:
    """Return the records as a new replica sees them."""
    return Records(store, new_id(), start_by=60, log_ttl=600, max_run=lambda: 600, lease=1)


@asynccontextmanager
async def owner(url: str) -> AsyncIterator[Owner]:
    """Run a writer for the length of the block."""
    store = RedisClient(url)
    writing = Owner(store)
    task = asyncio.create_task(writing.writer.run())
    try:
        warm = await writing.log()  # The first append of all finds a new connection.
        warm.append(numbered(1, 1))
        await warm.flushed()
        yield writing
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def stored(url: str, log: EventLog) -> list[EntryBatch]:
    """Return a log as Redis has it."""
    store = RedisClient(url)
    try:
        return await read_all(store, log.stream_id)
    finally:
        await store.close()


async def forget(store: RedisClient, log: EventLog) -> None:
    """Lose what Redis knows of one stream."""
    await store.call("DEL", record_key(log.stream_id), log_key(log.stream_id))


def numbered(first: int, last: int) -> list[Event]:
    """Return events that tell their number."""
    return [Event(b"%d" % number) for number in range(first, last + 1)]


def numbers(entries: Sequence[EntryBatch]) -> list[int]:
    """Return the numbers in entries, their ids checked: the n-th event of an epoch is n."""
    events = [event for entry in entries for event in parse(entry.frames) if event.name != b"end"]
    assert [int(event.id.partition(b"-")[2]) for event in events] == [
        int(event.data) for event in events
    ]
    return [int(event.data) for event in events]


def appends(proxy: Proxy) -> int:
    """Return how many entries went through a proxy."""
    return sum(request.count(b"XADD") for request in proxy.requests)


# Positions, entries, seeking


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "1", "1-", "-1", "1-1-1", "a-1", "1-b", "+1-1", " 1-1", "1-1 ", "01-1", "1-01"),
        *(
            "1_0-1",
            "\u0661-1",
            "\u00b2-1",
            "9223372036854775808-1",
            "1-" + "9" * 400,
            "1.0-1",
            "\0",
        ),
    ],
)
def test_what_is_no_id_of_ours_is_no_position(text: str) -> None:
    assert EventId.parse(text) is None


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_an_id_is_the_position_that_it_names(epoch: int, seq: int) -> None:
    position = EventId(epoch, seq)
    assert EventId.parse(str(position)) == position


@given(st.text(max_size=40))
def test_no_text_of_a_client_breaks_a_position(text: str) -> None:
    position = EventId.parse(text)
    assert position is None or str(position) == text


def entry(epoch: int, first: int, last: int, state: str = "") -> EntryBatch:
    """Return an entry with the events first..last."""
    frames = b"".join(
        encode(b"event %d" % seq, b"%d-%d" % (epoch, seq)) for seq in range(first, last + 1)
    )
    return EntryBatch(EventId(epoch, last), last - first + 1, frames, state)


def fence(epoch: int) -> EntryBatch:
    """Return the entry that begins an epoch."""
    return EntryBatch(EventId(epoch, 0), 0, b"")


LIVE = [fence(5), entry(5, 1, 1), entry(5, 2, 4)]
SEALED = [*LIVE, entry(5, 5, 5, "done")]
TAKEN = [*LIVE, fence(9), entry(9, 1, 2, "interrupted")]


@pytest.mark.parametrize(
    ("log", "at", "cursor"),
    [
        (LIVE, (5, 0), Cursor(1)),
        (LIVE, (5, 1), Cursor(2)),
        (LIVE, (5, 2), Cursor(2, EventId(5, 2))),
        (LIVE, (5, 3), Cursor(2, EventId(5, 3))),
        (LIVE, (5, 4), Cursor(3)),
        (LIVE, (5, 8), Cursor(3, EventId(5, 8))),
        (LIVE, (4, 1), None),
        (LIVE, (6, 1), None),
        (SEALED, (5, 4), Cursor(3)),
        (SEALED, (5, 5), Cursor(4)),
        (SEALED, (5, 6), None),
        (TAKEN, (5, 4), Cursor(3)),
        (TAKEN, (5, 5), None),
        (TAKEN, (9, 0), Cursor(4)),
        (TAKEN, (9, 1), Cursor(4, EventId(9, 1))),
        (TAKEN, (7, 1), None),
        ([entry(5, 3, 4)], (5, 1), None),
        ([entry(5, 3, 4)], (5, 2), Cursor(0, EventId(5, 2))),
        ([], (5, 1), None),
    ],
)
def test_a_reader_goes_on_where_it_was_or_is_told_that_it_cannot(
    log: list[EntryBatch], at: tuple[int, int], cursor: Cursor | None
) -> None:
    ended = bool(log) and bool(log[-1].state)
    assert seek(log, EventId(*at), ended) == cursor


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_from_any_id_in_a_log_exactly_the_rest_follows(sizes: list[int], data: Any) -> None:
    log, last = [fence(5)], 0
    for size in sizes:
        log.append(entry(5, last + 1, last + size))
        last += size
    seen = data.draw(st.integers(0, last))
    cursor = seek(log, EventId(5, seen), False)
    assert cursor is not None
    rest = log[cursor.at :]
    frames = [rest[0].after(cursor.after) if cursor.after else rest[0].frames] if rest else []
    frames += [each.frames for each in rest[1:]]
    ids = [event.id for event in parse(b"".join(frames))]
    assert ids == [b"5-%d" % seq for seq in range(seen + 1, last + 1)]


@pytest.mark.parametrize(
    "data", [b"id: 5-1", b"x\nid: 5-1\n", b"\nid: 5-1\n\n", b"", b"data: \nid: 5-2\n\n"]
)
def test_data_that_looks_like_an_id_is_no_border_of_an_entry(data: bytes) -> None:
    frames = [encode(data, b"5-%d" % seq, b"id: 5-1") for seq in (1, 2, 3)]
    three = EntryBatch(EventId(5, 3), 3, b"".join(frames))
    for seen in range(4):
        assert three.after(EventId(5, seen)) == b"".join(frames[seen:])


def test_a_log_starts_before_its_first_event_not_before_its_fence() -> None:
    assert start_of([fence(5), entry(5, 3, 4)]) == (5, 2)
    assert start_of(TAKEN) == (5, 0)
    assert start_of([fence(5)]) == (5, 0)
    assert start_of([]) == (0, 0)


# Group commit


async def test_events_are_logged_in_order_under_growing_ids(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        for first in (1, 11, 21):
            log.append(numbered(first, first + 9))
            await asyncio.sleep(0)
        await log.flushed()
        assert numbers(log.entries) == list(range(1, 31))
        assert await read_all(writing.store, log.stream_id) == log.entries


async def test_many_logs_share_a_round_trip(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        logs = [await writing.log() for _ in range(50)]
        proxy.requests.clear()
        for each in logs:
            each.append(numbered(1, 1))
        for each in logs:
            await each.flushed()
        assert appends(proxy) == 50
        assert sum(b"XADD" in request for request in proxy.requests) == 1


async def test_one_entry_of_a_log_is_in_flight_and_the_rest_becomes_the_next(
    shared_redis: RedisServer,
) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        proxy.requests.clear()
        proxy.answering.clear()
        log.append(numbered(1, 1))
        await until(lambda: appends(proxy) == 1)
        log.append(numbered(2, 2))
        log.append(numbered(3, 5))
        await asyncio.sleep(0.05)  # A second append would come at once, if it came.
        assert appends(proxy) == 1
        proxy.answering.set()
        await log.flushed()
        assert [each.number for each in log.entries] == [0, 1, 4]


async def test_an_event_is_shown_only_after_redis_answered(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        shown: list[int] = []
        log.on_commit = lambda: shown.extend(numbers(log.entries))
        proxy.requests.clear()
        proxy.answering.clear()
        log.append(numbered(1, 1))
        await until(lambda: appends(proxy) == 1)
        await until_stored(shared_redis.url, log, 1)
        assert (shown, log.settled, log.backlog > 0) == ([], False, True)
        proxy.answering.set()
        await log.flushed()
        assert (shown, log.backlog) == ([1], 0)


async def until_stored(url: str, log: EventLog, last: int) -> None:
    """Wait until Redis has an event."""

    async def has() -> bool:
        return numbers(await stored(url, log))[-1:] == [last]

    await until(has)


# Faults on the way


@pytest.mark.parametrize("fault", [LOSE_REQUEST, 0, 5])
async def test_an_append_whose_fate_is_unknown_is_there_once(
    shared_redis: RedisServer, fault: int
) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        verdicts = iter([fault])
        proxy.judge = lambda data: next(verdicts, None) if b"XADD" in data else None
        for number in range(1, 6):
            log.append(numbered(number, number))
            await asyncio.sleep(0.01)
        await log.flushed()
        assert numbers(log.entries) == [1, 2, 3, 4, 5]
        assert await stored(shared_redis.url, log) == log.entries


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_cut_nothing_is_lost_doubled_or_reordered(
    shared_redis: RedisServer, seed: int
) -> None:
    chance = random.Random(seed)

    def judge(data: bytes) -> int | None:
        return chance.choice([LOSE_REQUEST, 0, 3, 40, 90]) if chance.random() < 0.12 else None

    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        logs = [await writing.log() for _ in range(8)]
        proxy.judge = judge
        await asyncio.gather(*(_feed(each, 120, random.Random(seed)) for each in logs))
        for each in logs:
            await asyncio.wait_for(each.flushed(), 30)
        proxy.judge = lambda _: None
        for each in logs:
            assert numbers(each.entries) == list(range(1, 121))
            assert await stored(shared_redis.url, each) == each.entries


async def _feed(log: EventLog, count: int, chance: random.Random) -> None:
    number = 1
    while number <= count:
        last = min(count, number + chance.randrange(6))
        log.append(numbered(number, last))
        number = last + 1
        await asyncio.sleep(chance.random() * 0.01)


async def test_a_connection_that_is_cut_at_a_quiet_moment_costs_nothing(
    shared_redis: RedisServer,
) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        for number in range(1, 6):
            log.append(numbered(number, number))
            await log.flushed()
            proxy.cut()
        assert await stored(shared_redis.url, log) == log.entries


async def test_a_full_redis_leaves_no_hole_when_it_has_room_again(own_redis: RedisServer) -> None:
    async with owner(own_redis.url) as writing:
        logs = [await writing.log() for _ in range(10)]
        await _fill(writing.store)
        for each in logs:
            each.append([Event(b"x" * 20_000)])
        await until(lambda: all(each.in_doubt for each in logs))
        for each in logs:
            each.append([Event(b"after")])
        await writing.store.call("CONFIG", "SET", "maxmemory", 0)
        for each in logs:
            await each.flushed()
            entries = await stored(own_redis.url, each)
            assert [event.data[:5] for e in entries for event in parse(e.frames)] == [
                b"xxxxx",
                b"after",
            ]


async def _fill(store: RedisClient) -> None:
    used = b""
    for line in bytes(await store.call("INFO", "memory")).splitlines():
        if line.startswith(b"used_memory:"):
            used = line.partition(b":")[2]
    await store.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await store.call("CONFIG", "SET", "maxmemory", int(used) - 1)


async def test_a_redis_that_fills_up_within_a_round_leaves_no_hole(own_redis: RedisServer) -> None:
    async with owner(own_redis.url) as writing:
        logs = [await writing.log() for _ in range(20)]
        memory = bytes(await writing.store.call("INFO", "memory")).splitlines()
        (used,) = [int(line[12:]) for line in memory if line.startswith(b"used_memory:")]
        await writing.store.call("CONFIG", "SET", "maxmemory", used + 400_000)
        for number in range(1, 6):
            for each in logs:
                each.append([Event(b"%d" % number + b" " * 20_000)])
            await asyncio.sleep(0.01)
        await until(lambda: any(each.in_doubt for each in logs))
        await writing.store.call("CONFIG", "SET", "maxmemory", 0)
        for each in logs:
            await each.flushed()
            assert numbers(await stored(own_redis.url, each)) == [1, 2, 3, 4, 5]


async def test_a_redis_that_comes_back_empty_is_told_everything_under_the_same_ids(
    own_redis: RedisServer,
) -> None:
    async with owner(own_redis.url) as writing:
        log = await writing.log()
        log.append(numbered(1, 3))
        await log.flushed()
        own_redis.kill()
        log.append(numbered(4, 4))
        own_redis.start()
        log.append(numbered(5, 5))
        await asyncio.wait_for(log.flushed(), 20)
        assert numbers(log.entries) == [1, 2, 3, 4, 5]
        assert await stored(own_redis.url, log) == log.entries
        record = await writing.records.read(log.stream_id)
        assert record is not None
        assert (record.owner, record.epoch, record.running) == (
            writing.records.replica,
            log.epoch,
            True,
        )


async def test_a_log_too_long_for_one_repair_is_written_again_whole(own_redis: RedisServer) -> None:
    async with owner(own_redis.url) as writing:
        log = await writing.log()
        for number in range(1, 201):
            log.append(numbered(number, number))
            await log.flushed()
        await writing.store.call("FLUSHALL")
        log.append(numbered(201, 201))
        await log.flushed()
        assert numbers(await stored(own_redis.url, log)) == list(range(1, 202))


@pytest.mark.parametrize("then", [None, LOSE_REQUEST])
async def test_what_comes_late_into_a_log_that_is_written_again_leaves_no_hole(
    own_redis: RedisServer, then: int | None
) -> None:
    """It was in flight on a connection that is gone, while Redis forgot the log."""
    async with proxied(own_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        for number in range(1, 201):
            log.append(numbered(number, number))
            await log.flushed()
        digest, direct = writing.store._scripts["append"][0].encode(), Redis.from_url(own_redis.url)
        late, batches = log.entries[-1], iter(range(1000))
        late_append = ("XADD", log_key(log.stream_id), "NOMKSTREAM", str(late.last), 1, late.frames)

        def judge(data: bytes) -> int | None:
            if digest not in data or next(batches) != 1:
                return None
            direct.execute_command(*late_append)  # type: ignore[no-untyped-call]
            return then

        proxy.judge = judge
        await forget(writing.store, log)
        log.append(numbered(201, 201))
        await log.flushed()
        direct.close()
        assert await stored(own_redis.url, log) == log.entries
        assert numbers(log.entries) == list(range(1, 202))


async def test_a_redis_that_comes_back_behind_gets_what_it_lost_before_anything_new(
    own_redis: RedisServer,
) -> None:
    """Its last second is gone, but not the logs: an append succeeds and would leave a hole."""
    async with owner(own_redis.url) as writing:
        busy, quiet = await writing.log(), await writing.log()
        for each in (busy, quiet):
            each.append(numbered(1, 1))
            await each.flushed()
        await writing.store.call("SAVE")
        for each in (busy, quiet):
            each.append(numbered(2, 2))
            await each.flushed()
        own_redis.kill()
        own_redis.start()
        for each in (busy, quiet):
            each.append(numbered(3, 3))
            await each.flushed()
        assert numbers(await stored(own_redis.url, busy)) == [1, 2, 3]
        assert numbers(await stored(own_redis.url, quiet)) == [1, 2, 3]


async def test_a_log_that_was_trimmed_away_is_written_again(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        log.append(numbered(1, 2))
        await log.flushed()
        await writing.store.call("DEL", log_key(log.stream_id))
        log.append(numbered(3, 3))
        await log.flushed()
        assert await read_all(writing.store, log.stream_id) == log.entries


@pytest.mark.parametrize("left", [0, 1, 2, 3])
async def test_a_log_that_was_taken_over_is_written_again_from_its_first_epoch(
    redis_url: str, left: int
) -> None:
    """Redis comes back empty, or without the fence and what was before it; or it has more: what
    the dead owner appended when it came back, while nobody had written the fence again."""
    async with owner(redis_url) as writing:
        old = await writing.log()
        for number in (1, 2):
            old.append(numbered(number, number))
            await old.flushed()
        successor = Owner(writing.store)
        epoch = await successor.records.takeover(old.stream_id, writing.records.replica, "nonce")
        entries = await read_all(writing.store, old.stream_id)
        given = old.stream_id, epoch or 0, EntryBatches(entries), dict(old.fields)
        log = successor.writer.open(*given)
        task = asyncio.create_task(successor.writer.run())
        log.append(numbered(1, 1))
        await log.flushed()
        await forget(writing.store, log)
        for each in [*log.entries][:left]:
            fields = (str(each.last), str(each.number), each.frames)
            await writing.store.call("XADD", log_key(log.stream_id), *fields)
        if left == 3:
            late = f"{old.epoch}-3", "1", "late"
            await writing.store.call("XADD", log_key(log.stream_id), *late)
        log.doubt()
        log.append(numbered(2, 2))
        await log.flushed()
        task.cancel()
        assert await read_all(writing.store, log.stream_id) == log.entries
        assert numbers(log.entries) == [1, 2, 1, 2]


# Fences and ends


async def test_an_owner_that_was_replaced_writes_nothing_more(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        told: list[bool] = []
        log.on_fence = lambda: told.append(True)
        log.append(numbered(1, 1))
        await log.flushed()
        epoch = await records(writing.store).takeover(
            log.stream_id, writing.records.replica, "nonce"
        )
        log.append(numbered(2, 2))
        with pytest.raises(Fenced):
            await log.flushed()
        assert told == [True]
        assert [each.last for each in await read_all(writing.store, log.stream_id)] == [
            (log.epoch, 0),
            (log.epoch, 1),
            (epoch, 0),
        ]
        assert numbers(log.entries) == [1]


async def test_a_fenced_log_does_not_keep_others_from_being_written(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        zombie, alive = await writing.log(), await writing.log()
        await records(writing.store).takeover(zombie.stream_id, writing.records.replica, "nonce")
        for each in (zombie, alive):
            each.append(numbered(1, 1))
        await alive.flushed()
        assert numbers(await read_all(writing.store, alive.stream_id)) == [1]


async def test_a_log_whose_writing_breaks_holds_up_no_other(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        broken, alive = await writing.log(), await writing.log()
        proxy.garble = await nonsense(writing.store, "hold")
        broken.doubt()
        broken.append(numbered(1, 1))
        with pytest.raises(Fenced):
            await broken.flushed()
        proxy.garble = lambda data: data
        alive.append(numbered(1, 1))
        await alive.flushed()
        assert numbers(await stored(shared_redis.url, alive)) == [1]


async def test_a_log_that_cannot_be_shown_is_written_all_the_same_and_holds_up_no_other(
    shared_redis: RedisServer,
) -> None:
    async with owner(shared_redis.url) as writing:
        logs = [await writing.log() for _ in range(3)]

        def breaks() -> None:
            raise ValueError("a fault of ours")

        logs[1].on_commit = breaks
        for count in (1, 2, 3):
            for each in logs:
                each.append(numbered(count, count))
            for each in logs:
                await each.flushed()
        for each in logs:
            assert numbers(await stored(shared_redis.url, each)) == [1, 2, 3]
            assert numbers(each.entries) == [1, 2, 3]


async def nonsense(store: RedisClient, script: str, times: int = 1000) -> Callable[[bytes], bytes]:
    """Return what makes Redis answer nonsense instead of running a script, for some times."""
    other = await store.call("SCRIPT", "LOAD", "return 1")
    for text in texts_of(script):
        await store.call("SCRIPT", "LOAD", text)
    digests, left = digests_of(script), iter(range(times))

    def garble(data: bytes) -> bytes:
        for digest in digests:
            if digest in data and next(left, None) is not None:
                return data.replace(digest, other)
        return data

    return garble


END = Event(b'{"state":"done"}', b"end")
CANCELLED = Event(b'{"state":"cancelled"}', b"end")


async def seal(log: EventLog) -> str:
    """End a log as done."""
    return await log.seal("done", [END], CANCELLED, b"{}")


@pytest.mark.parametrize("fault", [LOSE_REQUEST, 0, 5])
async def test_an_end_whose_fate_is_unknown_is_there_once(
    shared_redis: RedisServer, fault: int
) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        log.append(numbered(1, 1))
        await log.flushed()
        verdicts = iter([fault] * 3)
        proxy.judge = lambda data: next(verdicts, None) if b"EVAL" in data else None
        assert await seal(log) == "done"
        entries = await stored(shared_redis.url, log)
        assert entries == log.entries
        assert [each.state for each in entries] == ["", "", "done"]


async def test_an_end_waits_for_everything_before_it(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        verdicts = iter([0, LOSE_REQUEST])
        proxy.judge = lambda data: next(verdicts, None) if b"XADD" in data else None
        log.append(numbered(1, 5))
        await seal(log)
        assert numbers(await stored(shared_redis.url, log)) == [1, 2, 3, 4, 5]


async def test_an_end_is_stored_also_where_redis_forgot_all_that_was_before(
    any_redis_url: str,
) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        log.append(numbered(1, 2))
        await log.flushed()
        await forget(writing.store, log)
        assert await seal(log) == "done"
        assert await read_all(writing.store, log.stream_id) == log.entries


async def test_an_ended_log_is_written_again_with_its_end(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        log.append(numbered(1, 2))
        await seal(log)
        await forget(writing.store, log)
        log.doubt()
        await log.flushed()
        assert await read_all(writing.store, log.stream_id) == log.entries
        record = await writing.records.read(log.stream_id)
        assert record is not None
        assert (record.state, record.end_id) == ("done", str(log.entries[-1].last))


async def test_an_end_that_redis_forgets_as_it_is_written_again_is_written_once_more(
    shared_redis: RedisServer,
) -> None:
    async with proxied(shared_redis) as proxy, owner(proxy.url) as writing:
        log = await writing.log()
        log.append(numbered(1, 2))
        await seal(log)
        await forget(writing.store, log)

        def forget_again(request: bytes) -> None:
            if b"event: end" in request:
                proxy.judge = lambda _: None
                with Redis(port=shared_redis.port) as redis:
                    redis.delete(record_key(log.stream_id), log_key(log.stream_id))

        proxy.judge = forget_again
        log.doubt()
        await log.flushed()
        assert await read_all(writing.store, log.stream_id) == log.entries
        record = await writing.records.read(log.stream_id)
        assert record is not None
        assert record.state == "done"


async def test_an_end_that_a_cancel_changed_stays_changed_where_redis_forgot(
    any_redis_url: str,
) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        await writing.records.cancel(log.stream_id, b"", b"")
        assert await seal(log) == "cancelled"
        assert log.entries[-1].frames.startswith(b"event: end\ndata: " + CANCELLED.data)
        await forget(writing.store, log)
        log.doubt()
        await log.flushed()
        assert await read_all(writing.store, log.stream_id) == log.entries


async def test_an_end_that_was_shown_is_not_changed_by_a_cancel_after_redis_forgot(
    any_redis_url: str,
) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        await seal(log)
        await forget(writing.store, log)
        await writing.records.hold(log.stream_id, log.epoch, log.fields)
        await writing.records.cancel(log.stream_id, b"", b"")
        log.doubt()
        await log.flushed()
        assert await read_all(writing.store, log.stream_id) == log.entries


async def test_an_end_by_an_owner_that_was_replaced_is_refused(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        await records(writing.store).takeover(log.stream_id, writing.records.replica, "nonce")
        with pytest.raises(Fenced):
            await seal(log)
        assert log.fenced


async def test_the_names_that_have_a_meaning_are_not_the_upstreams(any_redis_url: str) -> None:
    async with owner(any_redis_url) as writing:
        log = await writing.log()
        log.append([Event(b"1", b"end"), Event(b"2", b"error"), Event(b"3", b"chunk")])
        await log.flushed()
        events = [event for each in log.entries for event in parse(each.frames)]
        assert [event.name for event in events] == [b"upstream-end", b"upstream-error", b"chunk"]


async def test_what_one_server_said_of_a_log_is_not_acted_upon_at_another(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    asked, cut = asyncio.Event(), asyncio.Event()

    def judge(request: bytes) -> int | None:
        if b"XADD" in request and not cut.is_set():
            cut.set()
            return LOSE_REQUEST
        if b"EVALSHA" in request and not asked.is_set():
            proxy.answering.clear()
            asked.set()
        if b"PING" in request:  # The old server goes, and the new one knows less.
            proxy.port = behind.port
            return LOSE_REQUEST
        return None

    with redis_server(tmp_path) as behind:
        async with proxied(own_redis) as proxy, owner(proxy.url) as writing:
            log = await writing.log()
            log.append(numbered(1, 3))
            await log.flushed()
            # The warm one has nothing to say, and the other server knows only the first fence.
            store = RedisClient(behind.url)
            await records(store).hold(log.stream_id, log.epoch, log.fields)
            await store.call("HSET", record_key(log.stream_id), "owner", writing.records.replica)
            proxy.judge = judge
            log.append(numbered(4, 4))
            await asyncio.wait_for(asked.wait(), 20)
            ping = asyncio.create_task(writing.store.urgent([["PING"]]))
            await asyncio.sleep(0)
            proxy.answering.set()
            await asyncio.gather(ping, return_exceptions=True)
            await asyncio.wait_for(log.flushed(), 20)
            await until(lambda: writing.store.node_for("").generation > 2)
            writing.writer.look_at_connection()
            await asyncio.wait_for(log.flushed(), 20)
            assert await read_all(store, log.stream_id) == log.entries
            await store.close()


async def test_a_log_that_went_to_another_server_is_not_written_by_the_committer_it_left(
    shared_redis: RedisServer,
) -> None:
    async with (
        proxied(shared_redis) as here,
        proxied(shared_redis) as there,
        owner(shared_redis.url) as writing,
    ):
        nodes = [Node(Address.of(proxy.url).pool()) for proxy in (here, there)]
        homes: dict[str, NodeCommitter] = {}
        old, new = (NodeCommitter(node, lambda stream_id: homes[stream_id]) for node in nodes)
        moving, staying, other = [await writing.log() for _ in range(3)]
        for log, committer in ((moving, old), (staying, old), (other, new)):
            homes[log.stream_id] = committer
            committer.add(log)
            log.move_to(committer.mark)
        tasks = [asyncio.create_task(each.run()) for each in (old, new)]
        try:
            for log in (moving, staying, other):
                log.append(numbered(1, 1))
                await asyncio.wait_for(log.flushed(), 20)
            here.answering.clear()
            homes[moving.stream_id] = new
            moving.doubt()
            staying.append(numbered(2, 2))  # The old server answers this only later.
            await asyncio.wait_for(moving.flushed(), 20)
            there.answering.clear()
            moving.append(numbered(2, 2))
            await until(lambda: moving.in_flight)
            here.answering.set()
            await asyncio.wait_for(staying.flushed(), 20)
            moving.append(numbered(3, 3))
            staying.append(numbered(3, 3))  # A commit later.
            await asyncio.wait_for(staying.flushed(), 20)
            there.answering.set()
            await asyncio.wait_for(moving.flushed(), 20)
            assert numbers(moving.entries) == [1, 2, 3]
            assert await stored(shared_redis.url, moving) == moving.entries
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for node in nodes:
                await node.close()


async def test_a_writer_that_finds_redis_away_goes_on_when_it_is_back(
    own_redis: RedisServer,
) -> None:
    async with owner(own_redis.url) as writing:
        log = await writing.log()
        own_redis.kill()
        log.append(numbered(1, 1))
        await until(lambda: log.in_doubt)
        with suppress(Unavailable):
            await writing.store.call("PING")
        own_redis.start()
        await asyncio.wait_for(log.flushed(), 20)
        assert numbers(await stored(own_redis.url, log)) == [1]

"""Tail: one stream as this replica's viewers see it, and a wait for more.

A stream that this replica runs is fed by its own log after each commit; any other is read from
Redis by one task for all of them, at a wake-up from its owner and once a second in any case. So a
lost wake-up costs a second, and the number of connections does not grow with viewers.

A viewer is an index into the tail's entries, not a queue: a slow one costs nothing but the socket's
buffer, and is dropped at the write time-out. What a viewer gets next is decided by `Viewer.take`
without awaiting, so between "there is nothing" and the wait no wake-up can be lost.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable

from gateway.beat import inbox
from gateway.errors import Passing
from gateway.eventlog import READ_COUNT, Cursor, Entry, Position, read, seek, start_of
from gateway.records import Records
from gateway.sse import HEARTBEAT, encode
from gateway.store import Store

log = logging.getLogger("gateway.tail")

POLL = 1.0  # Seconds between reads of a stream that is run elsewhere, if nobody wakes us.
_BATCH = 64  # Streams read in one round trip.
_CHUNK = 256 * 1024  # Bytes handed to a viewer's socket at once.


class Tail:
    """What is logged so far of one stream; `local` if this replica runs it."""

    def __init__(self, stream_id: str, *, local: bool, owner: str = "") -> None:
        self.stream_id = stream_id
        self.local = local
        self.owner = owner
        self.entries: list[Entry] = []
        self.viewers: set[Viewer] = set()
        self.loaded = local
        self.idle_since = _now()

    @property
    def last(self) -> Position | None:
        """The position after everything known."""
        return self.entries[-1].last if self.entries else None

    @property
    def ended(self) -> bool:
        """Whether the stream's last event is here."""
        return bool(self.entries) and bool(self.entries[-1].state)

    def extend(self, entries: Iterable[Entry]) -> bool:
        """Add entries read from Redis, those already here left out; say whether any was new."""
        before = len(self.entries)
        for entry in entries:
            if not self.entries or entry.last > self.entries[-1].last:
                self.entries.append(entry)
        return len(self.entries) > before

    def wake(self) -> None:
        """Let every viewer look again."""
        for viewer in self.viewers:
            viewer.wake()

    def drop(self) -> int:
        """End the connections of all viewers, each after a whole event; return how many."""
        for viewer in self.viewers:
            viewer.leave()
        return len(self.viewers)


class Viewer:
    """One open response: a cursor into a tail, and a wait for more."""

    def __init__(self, tail: Tail, position: Position | None) -> None:
        self.gone = False
        self.sending_since: float | None = None
        self.abort: Callable[[], None] | None = None
        self.tail = tail
        self._heard = _now()
        self._heartbeat_due = False
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = position
        cursor = Cursor(0) if position is None else seek(tail.entries, position, tail.ended)
        self._gap = cursor is None
        self._index, self._after = cursor or Cursor(0)

    @property
    def finished(self) -> bool:
        """Whether everything to the end was taken, or the connection is to end all the same."""
        done = self.tail.ended and self._index >= len(self.tail.entries) and not self._gap
        return done or self.gone

    @property
    def has_more(self) -> bool:
        """Whether another `take` may give something at once."""
        return self._index < len(self.tail.entries) or self._heartbeat_due

    def take(self) -> bytes:
        """Return the next frames, or a heartbeat if one is due; b"" if there is nothing yet."""
        parts = [self._take_gap()] if self._gap else []
        size = 0
        entries = self.tail.entries
        while self._index < len(entries) and size < _CHUNK:
            frames = self._next(entries[self._index])
            if self._gap:  # It waited ahead of the log, and the log went another way.
                break
            self._index += 1
            parts.append(frames)
            size += len(frames)
        chunk = b"".join(parts)
        if not chunk and self._gap and entries:
            return self.take()
        if not chunk and self._heartbeat_due:
            chunk = HEARTBEAT
        if chunk:
            self._heartbeat_due = False
            self._heard = _now()
        return chunk

    def _next(self, entry: Entry) -> bytes:
        if self._after is None:
            return entry.frames
        if entry.last <= self._after:
            return b""
        if entry.last.epoch != self._after.epoch:
            self._gap, self._index, self._wanted = True, 0, self._after
            self._after = None
            return b""
        frames, self._after = entry.after(self._after), None
        return frames

    def _take_gap(self) -> bytes:
        """Return the one event that is not in the log: what was asked for cannot be had."""
        if not self.tail.entries:
            return b""
        self._gap = False
        start = start_of(self.tail.entries)
        data = json.dumps({"from": str(self._wanted), "to": str(start)})
        return encode(data.encode(), str(start).encode(), b"gap")

    async def wait(self) -> None:
        """Wait until there may be something to take."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """End a wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """Let the response end after a whole event."""
        self.gone = True
        self.wake()

    def tick(self, now: float, heartbeat: float, write_timeout: float) -> None:
        """Make a heartbeat due, or cut off a reader that reads nothing."""
        if self.sending_since is not None:
            if now - self.sending_since > write_timeout:
                self.gone = True
                if self.abort is not None:
                    self.abort()
        elif now - self._heard >= heartbeat:
            self._heartbeat_due = True
            self.wake()


class Tails:
    """All tails of one replica; `follow` and `announce` are its tasks."""

    def __init__(
        self,
        store: Store,
        records: Records,
        *,
        grace: float,
        heartbeat: float,
        write_timeout: float,
    ) -> None:
        self._store = store
        self._records = records
        self._grace = grace
        self._heartbeat = heartbeat * 0.75  # The sweep that looks at it comes every quarter.
        self._write_timeout = write_timeout
        self._tails: dict[str, Tail] = {}
        self._stale: set[str] = set()
        self._news = asyncio.Event()
        self.viewers = 0
        self.closing = False

    def get(self, stream_id: str) -> Tail | None:
        """Return the tail of a stream, if this replica has one."""
        return self._tails.get(stream_id)

    def own(self, stream_id: str, fence: Entry) -> Tail:
        """Begin the tail of a stream that this replica runs."""
        tail = Tail(stream_id, local=True)
        tail.entries.append(fence)
        self._tails[stream_id] = tail
        return tail

    def disown(self, stream_id: str) -> None:
        """Let the viewers of a stream that another replica took over follow the log."""
        if tail := self._tails.get(stream_id):
            tail.local = False
            self.mark([stream_id])

    def forget(self, stream_id: str) -> None:
        """Drop a tail; those still looking at it keep it until they leave."""
        self._tails.pop(stream_id, None)

    async def attach(self, stream_id: str, owner: str, position: Position | None) -> Viewer:
        """Return a new viewer, to be detached; raises Passing if the log cannot be read.

        `owner` is the replica that runs the stream, "" if it has ended.
        """
        tail = self._tails.get(stream_id)
        if tail is None:
            tail = self._tails[stream_id] = Tail(stream_id, local=False, owner=owner)
        if tail.owner and not tail.local and not tail.ended:
            await self._show_presence([tail])  # Before the first byte: the owner may be waiting.
        if not tail.loaded:
            await self._load(tail)
        viewer = Viewer(tail, position)
        tail.viewers.add(viewer)
        self.viewers += 1
        if self.closing:
            viewer.leave()
        return viewer

    def detach(self, viewer: Viewer) -> None:
        """Let a viewer go."""
        viewer.tail.viewers.discard(viewer)
        viewer.tail.idle_since = _now()
        self.viewers -= 1

    def mark(self, stream_ids: Iterable[str]) -> None:
        """Read these streams soon: their owner says that there is more."""
        for stream_id in stream_ids:
            tail = self._tails.get(stream_id)
            if tail is not None and not tail.local:
                self._stale.add(stream_id)
        if self._stale:
            self._news.set()

    def owners(self) -> dict[str, list[str]]:
        """Return the replicas that run what is watched here, with the streams."""
        owners: dict[str, list[str]] = {}
        for stream_id in self._followed():
            owners.setdefault(self._tails[stream_id].owner, []).append(stream_id)
        return owners

    def drain(self) -> None:
        """Send all viewers away, now and from now on."""
        self.closing = True
        for tail in list(self._tails.values()):
            tail.drop()

    def sweep(self, now: float) -> None:
        """Tick all viewers, and drop tails of other replicas' streams that nobody watches."""
        for tail in list(self._tails.values()):
            for viewer in list(tail.viewers):
                viewer.tick(now, self._heartbeat, self._write_timeout)
            if not tail.local and not tail.viewers and now - tail.idle_since > POLL:
                del self._tails[tail.stream_id]

    async def follow(self) -> None:
        """Read the streams that run elsewhere, for ever; the owner cancels it."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            timer = loop.call_at(due + POLL, self._news.set)
            await self._news.wait()
            timer.cancel()
            self._news.clear()
            if loop.time() - due >= POLL:
                due = loop.time()
                self._stale.update(self._followed())
            stale, self._stale = list(self._stale), set()
            try:
                for start in range(0, len(stale), _BATCH):
                    await self._read(stale[start : start + _BATCH])
            except Passing as error:
                log.info("nothing can be read: %s", error.detail)

    async def announce(self) -> None:
        """Tell the owners of watched streams that somebody is here, for ever."""
        while True:
            await asyncio.sleep(self._grace / 3)
            tails = [self._tails[each] for each in self._followed()]
            try:
                for start in range(0, len(tails), _BATCH):
                    await self._show_presence(tails[start : start + _BATCH])
                    await self._drop_lost(tails[start : start + _BATCH])
            except Passing as error:
                log.info("presence cannot be shown: %s", error.detail)

    def _followed(self) -> list[str]:
        return [
            name
            for name, tail in self._tails.items()
            if tail.viewers and not tail.local and not tail.ended
        ]

    async def _show_presence(self, tails: list[Tail]) -> None:
        await self._records.show_presence([each.stream_id for each in tails], self._grace)
        words: dict[str, list[str]] = {}
        for tail in tails:
            if tail.owner:
                words.setdefault(tail.owner, []).append(tail.stream_id)
        await self._store.calls(
            ["PUBLISH", inbox(owner), " ".join(["watch", self._records.replica, *ids])]
            for owner, ids in words.items()
        )

    async def _drop_lost(self, tails: list[Tail]) -> None:
        """Send viewers away from streams that Redis lost and that nobody wrote again in time."""
        known = await self._records.exist([each.stream_id for each in tails])
        lost = [tail for tail, there in zip(tails, known, strict=True) if not there]
        if lost and not await self._records.may_be_forgotten(0):
            for tail in lost:
                tail.drop()

    async def _load(self, tail: Tail) -> None:
        """Read a whole log; two viewers that come at once may both do it."""
        while True:
            (entries,) = await read(self._store, [tail.stream_id], [tail.last])
            tail.extend(entries)
            if len(entries) < READ_COUNT:
                tail.loaded = True
                return

    async def _read(self, stream_ids: list[str]) -> None:
        tails = [self._tails[each] for each in stream_ids if each in self._tails]
        tails = [each for each in tails if not each.local and not each.ended]
        if not tails:
            return
        batches = await read(
            self._store, [each.stream_id for each in tails], [each.last for each in tails]
        )
        for tail, entries in zip(tails, batches, strict=True):
            if tail.extend(entries):
                tail.wake()
            if len(entries) == READ_COUNT:
                self.mark([tail.stream_id])


def _now() -> float:
    return asyncio.get_running_loop().time()

"""Writer: one Redis Stream per ticket; append, repair, seal.

Theory of operation
-------------------
Ids are explicit, `<epoch>-<seq>`. Redis refuses an id that does not grow, so an append that is
repeated, or that comes late from an owner whose successor has set the fence `<epoch>-0`, fails by
itself; and the id of an event is its place in the log, for ever.

One entry holds the events that arrived together: field = their number, value = their frames, just
as viewers get them; its id is that of the last one. Within an epoch the seq has no holes.

Redis checks that ids grow, not that they are contiguous. If an append fails in the middle of a
pipeline (out of memory, failover) and a later one succeeds, the hole stays for ever. Hence at most
one entry of a stream is in flight; what gathers meanwhile becomes the next. After a lost reply, an
error, a nil, a new connection or a Redis that forgot, the log is in doubt: nothing is appended
before the last id was read back (`Ownership.hold`, which also asserts the ownership), and what is
missing goes first, with the same borders.

An entry is shown to viewers only after Redis answered. The sending is the group commit's.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from gateway import clock
from gateway.errors import EarlierNeeded, Fenced, InDoubt, Sealed, Unavailable
from gateway.eventlog.base import Ownership
from gateway.eventlog.entries import End, EntryBatch, EntryBatches, EventId, Seal
from gateway.limits.ledger import Spent
from gateway.sse import Event, encode, safe_name
from gateway.store.client import RedisClient
from gateway.store.keys import control_channel, log_key

logger = logging.getLogger("gateway.eventlog.writer")

_REPAIR_BATCH = 64
_BREAKS = 3  # Faults of ours in a row, after which a log is given up, and reclaimed.


class EventLog:
    """One stream's log as its owner writes it; the entries it has shown stay here until dropped.

    Its run appends, waits until all is `flushed`, and seals. Its committer, which hears when there
    is something to do, takes the `next_batch` and says what became of it: it is `acknowledged`, or
    in `doubt`, and then the committer lets it `repair` itself. Nobody else sets what is said here.

    One idea: what is pending, in flight, in doubt and sealed is one state, and only together it
    says what may be sent next.
    """

    def __init__(
        self,
        store: RedisClient,
        ownership: Ownership,
        mark: Callable[["EventLog"], None],
        stream_id: str,
        epoch: int,
        entries: EntryBatches,
        fields: dict[str, Any],
    ) -> None:
        self.stream_id = stream_id
        self.epoch = epoch
        self.entries = entries
        self.fields = fields  # Of the record, to write it again where Redis forgot it.
        self.size = sum(len(entry.frames) for entry in entries)
        self.watchers: dict[str, float] = {}  # Replica -> until when it wants to be woken.
        self.on_commit: Callable[[], None] = _nothing
        self.on_fence: Callable[[], None] = _nothing
        self.fenced = False
        self.in_doubt = False
        self.in_flight: EntryBatch | None = None  # Sent, and not answered yet.
        self._store = store
        self._ownership = ownership
        self._mark = mark  # The committer of the server that has it.
        self._key = log_key(stream_id).encode()
        self._seq = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._flushed: asyncio.Future[None] | None = None
        self._sealed: Seal | None = None
        self._breaks = 0
        self._torn = False

    @property
    def backlog(self) -> int:
        """The bytes not yet committed."""
        return self._pending_bytes + (len(self.in_flight.frames) if self.in_flight else 0)

    @property
    def uncommitted(self) -> bytes:
        """The frames that Redis is not known to have."""
        return b"".join([self.in_flight.frames if self.in_flight else b"", *self._pending])

    @property
    def count(self) -> int:
        """The events of this owner so far."""
        return self._seq

    @property
    def settled(self) -> bool:
        """Whether everything appended was committed."""
        return not (self._pending or self.in_flight or self.in_doubt)

    @property
    def unsure(self) -> bool:
        """Whether Redis may lack what this owner has."""
        return self.in_doubt and not self.fenced

    @property
    def taken_over(self) -> bool:
        """Whether it began under another owner, who died."""
        return bool(self.entries) and self.entries[0].last.epoch != self.epoch

    def append(self, events: Iterable[Event], *, ours: bool = False) -> None:
        """Add events; they are shown once Redis has them. `ours` keep the names of our own."""
        size, marked = 0, bool(self._pending)
        for data, name, _ in events:
            self._seq += 1
            event_id = b"%d-%d" % (self.epoch, self._seq)
            frame = encode(data, event_id, name if ours or not name else safe_name(name))
            self._pending.append(frame)
            size += len(frame)
        self._pending_bytes += size
        self.size += size
        if not marked:
            self._mark(self)

    async def flushed(self) -> None:
        """Wait until everything is committed; raises Fenced."""
        while not self.settled and not self.fenced:
            self._flushed = asyncio.get_running_loop().create_future()
            await self._flushed
        if self.fenced:
            raise Fenced(self.stream_id)

    async def seal(
        self,
        state: str,
        events: list[Event],
        end: Event,
        result: bytes,
        spent: Spent | None = None,
    ) -> str:
        """End the log with `events`, or with `end` alone if a cancel was stored first.

        Tries until Redis has stored it; returns the state it stored. Raises Fenced.
        """
        await self.flushed()
        last = str(EventId(self.epoch, self._seq))
        ends = self._end(state, events), self._end("cancelled", [end])
        seal = Seal(last, *ends, result, spent, "webhook" in self.fields)
        stored = await self._store_seal(seal)
        shown = ends[0] if stored == state else ends[1]
        # Written again, it must be what viewers saw, whatever was cancelled since.
        self._sealed = seal.always(shown)
        event_id = EventId(self.epoch, self._seq + shown.number)
        self.entries.append(EntryBatch(event_id, shown.number, shown.frames, stored))
        self.on_commit()
        await self._wake_watchers()
        return stored

    def _end(self, state: str, events: list[Event]) -> End:
        ids = [b"%d-%d" % (self.epoch, self._seq + number) for number in range(1, len(events) + 1)]
        frames = [
            encode(event.data, name, event.name) for event, name in zip(events, ids, strict=True)
        ]
        return End(state, ids[-1].decode(), len(events), b"".join(frames))

    async def _store_seal(self, seal: Seal) -> str:
        breaks = 0
        while True:
            try:
                return await self._ownership.seal(self.stream_id, self.epoch, seal)
            except InDoubt:
                self.doubt()
            except Fenced:
                self.fence()
                raise
            except Exception as error:
                if not isinstance(error, Unavailable):
                    breaks += 1
                    if breaks == _BREAKS:
                        raise
                    logger.exception("%s: the seal broke", self.stream_id)
                await asyncio.sleep(0.2)
                continue
            await self.flushed()

    async def _wake_watchers(self) -> None:
        if commands := wake_ups([self]):
            with suppress(Unavailable):  # A lost word costs them a second.
                await self._store.calls(commands)

    def doubt(self) -> None:
        """Append nothing more before Redis was asked what it has."""
        self.in_doubt = True
        self._mark(self)

    def fence(self) -> None:
        """Stop for good: another replica owns the stream."""
        self.fenced = True
        self._pending.clear()
        self.in_flight = None
        self._settle()
        self.on_fence()

    def broke(self, error: BaseException) -> None:
        """Note a fault of ours in the writing; a log in which one stays is reclaimed."""
        logger.error("%s: its writing broke", self.stream_id, exc_info=error)
        self._breaks += 1
        self.doubt()
        if self._breaks >= _BREAKS:
            self.fence()

    def watched_by(self, replica: str, until: float) -> None:
        """Wake another replica at what is new, until then."""
        self.watchers[replica] = until

    def watching(self, now: float) -> Iterable[str]:
        """Return the replicas to be woken."""
        self.watchers = {name: end for name, end in self.watchers.items() if end > now}
        return self.watchers

    def move_to(self, mark: Callable[["EventLog"], None]) -> None:
        """Let another committer write it; what its server knows of it is to be asked first."""
        self._mark = mark
        self.doubt()

    def forget(self) -> None:
        """Let go of those who were told.

        In a circle with them its megabytes would wait for a collector that counts objects.
        """
        self.on_commit = self.on_fence = _nothing

    def next_batch(self) -> tuple[bytes, ...]:
        """Put what gathered in flight; return the command that appends it."""
        count = len(self._pending)
        frames = self._pending[0] if count == 1 else b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self.in_flight = EntryBatch(EventId(self.epoch, self._seq), count, frames)
        return _append(self._key, self.in_flight)

    def acknowledged(self) -> None:
        """Show what was in flight: Redis has it."""
        assert self.in_flight is not None
        self.entries.append(self.in_flight)
        self.in_flight = None
        self.on_commit()
        if self._flushed is not None:
            self._settle()

    @property
    def ready(self) -> bool:
        """Whether there is something to send."""
        return bool(self._pending) and not (self.in_doubt or self.fenced)

    @property
    def has_work(self) -> bool:
        """Whether there is something to send or to clear up."""
        return bool(self._pending or self.in_doubt or self.in_flight) and not self.fenced

    async def hold(self, torn: str = "") -> str:
        """Assert the ownership; return the log's last id. Raises Fenced, Sealed, Unavailable."""
        given = self.stream_id, self.epoch, self.fields
        with suppress(EarlierNeeded):
            return await self._ownership.hold(*given, None if self.taken_over else (), torn)
        earlier = [entry for entry in self.entries if entry.last.epoch < self.epoch]
        return await self._ownership.hold(*given, earlier, torn)

    async def _hold_whole(self) -> str:
        """Do as `hold`; but begin the log anew if it has fewer entries than it must.

        Where a repair broke off, what came late may have gone in ahead of the rest.
        """
        last = await self.hold()
        if not self._torn:
            return last
        (count,) = await self._store.urgent([["XLEN", self._key]])
        tail = EventId.parse(last) or EventId(self.epoch, 0)
        in_flight = self.in_flight is not None and self.in_flight.last <= tail
        if count != in_flight + sum(entry.last <= tail for entry in self.entries):
            logger.warning("%s lacks something, and is written again", self.stream_id)
            last = await self.hold(f"{last} {count}")
            if last != f"{self.epoch}-0":
                raise InDoubt("the log grew meanwhile")
        return last

    async def repair(self) -> None:
        """Ask Redis what it has; append what it misses, in the same pieces; raises Unavailable."""
        try:
            await self._append_missing(await self._hold_whole())
        except Fenced:
            self.fence()
            return
        except Sealed:
            pass  # It has all there is.
        self._torn = self.in_doubt = False
        if self.in_flight is not None:
            self.acknowledged()
        self._breaks = 0
        self._settle()

    async def _append_missing(self, last: str) -> None:
        """Append what is not in a log that ends with `last`, and its end."""
        tail = EventId.parse(last) or EventId(self.epoch, 0)
        mine = [entry for entry in self.entries if not entry.state]
        if self.in_flight is not None:
            mine.append(self.in_flight)
        missing = [entry for entry in mine if entry.last > tail]
        self._torn = len(missing) > 1  # Until it is whole.
        for start in range(0, len(missing), _REPAIR_BATCH):
            batch = missing[start : start + _REPAIR_BATCH]
            await self._ownership.append(self.stream_id, last, batch)
            last = str(batch[-1].last)
        self._torn = False
        if missing:
            logger.debug("wrote %d entries of %s again", len(missing), self.stream_id)
        if self._sealed is not None:
            await self._ownership.seal(self.stream_id, self.epoch, self._sealed)

    def _settle(self) -> None:
        if (self.settled or self.fenced) and self._flushed and not self._flushed.done():
            self._flushed.set_result(None)


def _nothing() -> None:
    pass


def _append(key: bytes, entry: EntryBatch) -> tuple[bytes, ...]:
    event_id, number, frames, _ = entry
    return (b"XADD", key, b"NOMKSTREAM", b"%d-%d" % event_id, b"%d" % number, frames)


def wake_ups(logs: Iterable[EventLog]) -> list[list[Any]]:
    """Return one message for each replica that watches any of these logs."""
    news: dict[str, list[str]] = {}
    for each in logs:
        if each.watchers:
            now = clock.now()
            for replica in each.watching(now):
                news.setdefault(replica, []).append(each.stream_id)
    return [
        ["PUBLISH", control_channel(name), "wake " + " ".join(ids)] for name, ids in news.items()
    ]

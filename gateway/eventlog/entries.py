"""Entries: where one is in a log, and what follows. Pure.

The id of an event is `<epoch>-<seq>`; one entry of the log holds events that arrived together and
has the id of the last. Within an epoch the seq has no holes, so a reader can tell "nothing yet"
from "not there any more": what follows an event id is known only if the id itself is.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

from gateway.limits.ledger import Spent
from gateway.sse import after

WEIGHT = 200  # Bytes that an entry takes in memory beside its frames.

_MAX_ID = 2**63


class EventId(NamedTuple):
    """A place in a log: just after the event with this id."""

    epoch: int
    seq: int

    @classmethod
    def parse(cls, text: str) -> "EventId | None":
        """Return the id that a text is, None if it is not one of ours."""
        epoch, dash, seq = text.partition("-")
        if not (dash and epoch.isdecimal() and seq.isdecimal() and text.isascii()):
            return None
        if len(epoch) > 19 or len(seq) > 19:
            return None
        event_id = cls(int(epoch), int(seq))
        return event_id if str(event_id) == text and max(event_id) < _MAX_ID else None

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


NOTHING = EventId(0, 0)  # Before anything was ever logged.
END = EventId(_MAX_ID - 1, _MAX_ID - 1)  # After all that is logged now.


class EntryBatch(NamedTuple):
    """A number of events that arrived together; `state` is the end, in the last entry only."""

    last: EventId
    number: int
    frames: bytes
    state: str = ""

    def after(self, event_id: EventId) -> bytes:
        """Return the frames after an event id, which may be inside the entry."""
        if event_id.epoch != self.last.epoch or event_id.seq <= self.last.seq - self.number:
            return self.frames
        if event_id >= self.last:
            return b""
        return after(self.frames, b"%d-%d" % event_id)


class EntryBatches(Sequence[EntryBatch]):
    """The entries of one log, kept so that they cost the garbage collector nothing.

    It looks again and again at every tuple but an exact one of numbers and bytes: with many logs in
    memory that stopped the process for a tenth of a second at a time.
    """

    def __init__(self, entries: Iterable[EntryBatch] = ()) -> None:
        self._items: list[tuple[int, int, int, bytes, str]] = []
        self.replace(entries)

    def append(self, entry: EntryBatch) -> None:
        """Add one."""
        self._items.append((*entry.last, entry.number, entry.frames, entry.state))

    def replace(self, entries: Iterable[EntryBatch]) -> None:
        """Hold these instead."""
        self._items[:] = [(*each.last, each.number, each.frames, each.state) for each in entries]

    def cut(self, count: int) -> None:
        """Let go of the first ones."""
        del self._items[:count]

    def frames(self, index: int) -> bytes:
        """Return the frames of one."""
        return self._items[index][3]

    @property
    def ended(self) -> bool:
        """Whether the last one ends the stream."""
        return bool(self._items) and bool(self._items[-1][4])

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> EntryBatch: ...

    @overload
    def __getitem__(self, index: slice) -> list[EntryBatch]: ...

    def __getitem__(self, index: int | slice) -> EntryBatch | list[EntryBatch]:
        if isinstance(index, slice):
            return [_entry(*item) for item in self._items[index]]
        return _entry(*self._items[index])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _entry(epoch: int, seq: int, number: int, frames: bytes, state: str) -> EntryBatch:
    return EntryBatch(EventId(epoch, seq), number, frames, state)


def weight(entries: Sequence[EntryBatch]) -> int:
    """Return the bytes that entries take in memory, about."""
    return sum(len(entry.frames) + WEIGHT for entry in entries)


class Cursor(NamedTuple):
    """Where to go on reading: an index into the entries, and what to drop before it shows more."""

    at: int
    after: EventId | None = None


def seek(entries: Sequence[EntryBatch], event_id: EventId, ended: bool) -> Cursor | None:
    """Return where a reader at `event_id` goes on, None if the log cannot tell what follows it."""
    index = bisect_right(entries, event_id, key=lambda entry: entry.last)
    before = entries[index - 1].last if index else None
    if before == event_id:
        return Cursor(index)
    if index < len(entries):
        entry = entries[index]
        inside = entry.last.seq - entry.number <= event_id.seq
        return Cursor(index, event_id) if inside and entry.last.epoch == event_id.epoch else None
    ahead = before is not None and before.epoch == event_id.epoch
    return Cursor(index, event_id) if ahead and not ended else None


def start_of(entries: Sequence[EntryBatch]) -> EventId:
    """Return the id before the first event's."""
    for entry in entries:
        if entry.number:
            return EventId(entry.last.epoch, entry.last.seq - entry.number)
    return entries[-1].last if entries else EventId(0, 0)


class End(NamedTuple):
    """A stream's last entry."""

    state: str
    id: str
    number: int
    frames: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """What ends a stream after `last_id`: the owner's end, or another if a cancel came first."""

    last_id: str
    end: End
    if_cancelled: End
    result: bytes
    spent: Spent | None = None  # What it took, to be booked with it.
    webhook: bool = False  # Whether somebody is to be told of it.

    def always(self, end: End) -> "Seal":
        """Return the same with this end, whether or not a cancel comes first."""
        return replace(self, end=end, if_cancelled=end)

"""Reader: a log as it is read back from Redis, a bounded number of bytes at a time.

An entry holds what arrived together: a few bytes, or megabytes. A reply is in Redis's memory until
it is sent, beside what everybody's streams need there; so it is bounded in bytes, not in entries.

A log that ended may have been packed since: what is read is the same, whichever form it has.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.errors import Unavailable
from gateway.eventlog.entries import (
    END,
    NOTHING,
    WEIGHT,
    EntryBatch,
    EntryBatches,
    EventId,
    weight,
)
from gateway.eventlog.packs import PACKED, unpacked
from gateway.store.client import RedisClient
from gateway.store.keys import channel_key, log_key, log_keys

PAGE = 128 * 1024  # Bytes read at once, or one entry if that is larger.

_OF_CHANNEL = 32 * 1024  # Bytes of a channel read at once: its viewers hold what they read.
_MOST = 500  # Entries fetched at once.
_PACKS = 2


class Page(NamedTuple):
    """A part of a log; first, without frames, what precedes the event id asked for, if any.

    If there is more in the log than that, `last` is its last entry, and `base` what precedes it.
    """

    entries: EntryBatches
    more: bool
    last: EntryBatch | None = None
    base: EventId | None = None

    @property
    def size(self) -> int:
        """The bytes it takes here."""
        return WEIGHT + weight(self.entries)  # Also one of a log that is gone takes some.


def likely(size: int) -> int:
    """Return how many entries to ask for that may be of this size."""
    return max(1, min(_MOST, PAGE // (size + WEIGHT)))


async def read(
    store: RedisClient,
    stream_ids: Sequence[str],
    after: Sequence[EventId | None],
    counts: Sequence[int],
) -> list[list[EntryBatch]]:
    """Return the next entries of several logs, so many of each at most; raises Unavailable.

    Of one that was packed nothing is found.
    """
    replies = await store.read(
        ["XRANGE", log_key(stream_id), f"({event_id}" if event_id else "-", "+", "COUNT", count]
        for stream_id, event_id, count in zip(stream_ids, after, counts, strict=True)
    )
    return [_entries(reply, None) for reply in replies]


async def read_rest(
    store: RedisClient, stream_id: str, after: EventId | None, count: int
) -> tuple[list[EntryBatch], bool]:
    """Return what follows in a log, whichever form it has, and whether there may be more.

    Of one that was not packed so many entries at most. Raises Unavailable.
    """
    limits = zip(log_keys(stream_id), (count, _PACKS), strict=True)
    start = f"({after}" if after else "-"
    replies = await store.read(["XRANGE", key, start, "+", "COUNT", most] for key, most in limits)
    entries = [each for reply in replies for each in _entries(reply, after)]
    known = bool(entries) and entries[0].last == after
    return entries[known:], len(replies[0]) == count or len(replies[1]) == _PACKS


async def read_page(
    store: RedisClient, stream_id: str, at: EventId | None, size: int = PAGE
) -> Page:
    """Return a log from an event id on, or from its start; raises Unavailable."""
    args = [str(at) if at else "", size, WEIGHT]
    entries, more, *rest = await store.script("read", log_keys(stream_id), args, large=True)
    page = Page(EntryBatches(_entries(entries, at)), bool(more))
    if not rest:
        return page
    last, *before = _entries(rest[0], None)
    return page._replace(last=last, base=before[0].last if before else None)


async def read_channel(store: RedisClient, channel: str, at: EventId | None) -> Page:
    """Return a channel's log from an event id on, or only where it ends; raises Unavailable.

    The `base` of a page without entries is where the channel ended before that was read.
    """
    if at != END:
        page = await read_page(store, channel, at, _OF_CHANNEL)
        if page.entries:
            return page
    (last,) = await last_of(store, [channel])
    if at == END:
        return Page(EntryBatches([EntryBatch(last or NOTHING, 0, b"")]), more=False)
    page = await read_page(store, channel, at, _OF_CHANNEL)
    return page if page.entries else page._replace(base=last)


async def last_of(store: RedisClient, channels: Sequence[str]) -> list[EventId | None]:
    """Return the ids of the last messages of channels, None where none is known."""
    replies = await store.calls(["HGET", channel_key(each), "id"] for each in channels)
    return [EventId.parse(reply.decode()) if reply else None for reply in replies]


async def read_all(store: RedisClient, stream_id: str) -> list[EntryBatch]:
    """Return all entries of one log; raises Unavailable, also if it begins anew meanwhile."""
    page = await read_page(store, stream_id, None)
    entries = list(page.entries)
    while page.more:
        page = await read_page(store, stream_id, entries[-1].last)
        if not page.entries or page.entries[0].last != entries[-1].last:
            raise Unavailable("store_unavailable", "The log began anew while it was read.")
        entries += page.entries[1:]
    return entries


def _entries(items: list[Any], at: EventId | None) -> list[EntryBatch]:
    """Return what was read, packs opened; first, without frames, the last one not after `at`."""
    entries: list[EntryBatch] = []
    for entry_id, fields in items:
        entries += _entry(entry_id, fields)
    index = bisect_right(entries, at, key=lambda entry: entry.last) if at else 0
    if not index:
        return entries
    return [entries[index - 1]._replace(frames=b""), *entries[index:]]


def _entry(entry_id: bytes, fields: list[bytes]) -> list[EntryBatch]:
    epoch, _, seq = entry_id.partition(b"-")
    number, frames, *more = fields
    event_id = EventId(int(epoch), int(seq))
    if number == PACKED:
        known = not frames  # It is told only that the log knows this id.
        return [EntryBatch(event_id, 0, b"")] if known else unpacked(event_id, frames, int(more[1]))
    state = more[1].decode() if more and more[0] == b"end" else ""
    return [EntryBatch(event_id, int(number), frames, state)]

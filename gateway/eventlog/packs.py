"""Packs: the compact form of a log that has ended: many entries in one, compressed. Pure.

A pack has entries that follow each other, with their borders, so whoever reads a log gets the
same ones from either form. It is bounded by what they take in memory, as all of it is opened for a
single event.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gateway.eventlog.entries import WEIGHT, EntryBatch, EventId

PACKED = b"packed"  # In the place of the number of events.

_ROOM = 128 * 1024  # Bytes that the entries of a pack take in memory: a page is no larger for it.
_LEVEL = 1  # Higher ones take twice the time for a twentieth of the size.


class Pack(NamedTuple):
    """Entries up to `last`, which take `size` bytes in memory; without data, one as it was."""

    last: EventId
    size: int = 0
    data: bytes = b""


def packs_of(entries: Iterable[EntryBatch]) -> Iterator[Pack]:
    """Yield a log as packs, each made when it is asked for: that takes a part of a millisecond."""
    group: list[EntryBatch] = []
    size = 0
    for entry in entries:
        more = len(entry.frames) + WEIGHT
        if group and (size + more > _ROOM or not _follows(entry, group[-1])):
            yield _pack(group, size)
            group, size = [], 0
        if entry.state:  # Stays as it is: whoever looks at a log's last entry looks for it.
            yield from [_pack(group, size)] if group else []
            yield Pack(entry.last)
            return
        group.append(entry)
        size += more


def _follows(entry: EntryBatch, before: EntryBatch) -> bool:
    epoch, seq = entry.last
    return before.last == (epoch, seq - entry.number)


def _pack(group: list[EntryBatch], size: int) -> Pack:
    if len(group) == 1:  # It may be large, too.
        return Pack(group[0].last)
    borders = [b"%d %d" % (each.number, len(each.frames)) for each in group]
    raw = b"%b\n%b" % (b" ".join(borders), b"".join(each.frames for each in group))
    return Pack(group[-1].last, size, zlib.compress(raw, _LEVEL))


def unpacked(last: EventId, data: bytes, size: int) -> list[EntryBatch]:
    """Return the entries of a pack; raises ValueError if they are not of this size."""
    engine = zlib.decompressobj()
    raw = engine.decompress(data, size)  # No more than it: borders are shorter than their weight.
    if not engine.eof:
        raise ValueError("a pack of a log holds more than it says")
    head, _, frames = raw.partition(b"\n")
    borders = list(map(int, head.split()))
    numbers, lengths = borders[::2], borders[1::2]
    entries, start, seq = [], 0, last.seq - sum(numbers)
    for number, length in zip(numbers, lengths, strict=True):
        seq += number
        entries.append(EntryBatch(EventId(last.epoch, seq), number, frames[start : start + length]))
        start += length
    return entries

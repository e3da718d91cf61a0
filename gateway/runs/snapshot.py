"""Snapshot: what a log tells of its completion so far.

Telling takes time: each event's JSON is decoded. So an answer remembers how far it has read, those
who ask for the same one at once share the work, and nobody else's stream waits for it.
"""

import asyncio
import json
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from gateway import clock
from gateway.errors import Unavailable
from gateway.eventlog.entries import EntryBatch, EntryBatches, EventId
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.pages import Turns
from gateway.eventlog.reader import PAGE, read_page
from gateway.runs.record import Record
from gateway.sse import OURS, Event, Parser
from gateway.store.client import RedisClient
from gateway.upstream.protocols.table import logged_protocol

_AT_ONCE = 2  # Answers that are worked on at the same time, each of another subject.
_PAUSE = 0.002  # Seconds of work after which others have their turn.
_PIECE = 32 * 1024  # Bytes parsed at once.
_MOST = 256  # Answers that are kept.
_IDLE = 60.0  # Seconds that an answer is kept which nobody asks for.
_PATIENCE = 3.0  # Seconds that somebody waits for room.


class CompletionSnapshot:
    """What a log tells since its last `reset`: its completion's state and text, the last id.

    The text is JSON without its quotes: half a surrogate pair is no UTF-8 by itself.
    """

    def __init__(self, dialect: str, request: bytes = b"") -> None:
        self.protocol = logged_protocol(dialect)
        self._request = request
        self.completion = self.protocol.completion(request)
        self.text = bytearray()  # Grows only: who has an older length may go on to read it.
        self.last: EventId | None = None
        self.last_id: str | None = None
        self.covered = ""  # The id of the last event before the end.
        self.began = ""  # That of the last `reset`: what is before it is of no answer.
        self.count = 0  # The entries it has seen.
        self.asked = clock.now()
        self.lock = asyncio.Lock()
        self._answer = self.protocol.text()
        self._since = self.asked

    async def see(self, entries: Iterable[EntryBatch]) -> None:
        """Take note of what follows; a long one lets others have their time."""
        for entry in entries:
            parser = Parser(limit=sys.maxsize)
            for start in range(0, len(entry.frames), _PIECE):
                for event in parser.feed(entry.frames[start : start + _PIECE]):
                    self._see(event)
                    await self._pause()
            self.last, self.count = entry.last, self.count + 1

    def _see(self, event: Event) -> None:
        if event.name == b"reset":
            self.completion, self.text = self.protocol.completion(self._request), bytearray()
            self._answer = self.protocol.text()
            self.began = event.id.decode()
        elif event.name not in OURS:
            self.completion.see(event)
            text = self._answer.text_of(event)
            if self._answer.anew:
                self.text = bytearray()
            if text:
                written = json.dumps(text, ensure_ascii=False)[1:-1]
                self.text += written.encode("utf-8", "backslashreplace")
        self.last_id = event.id.decode()
        if event.name not in (b"failure", b"end"):
            self.covered = self.last_id

    async def _pause(self) -> None:
        if clock.now() - self._since > _PAUSE:
            await asyncio.sleep(0)
            self._since = clock.now()


async def snapshot_of(
    entries: Iterable[EntryBatch], dialect: str, request: bytes
) -> CompletionSnapshot:
    """Return what the whole log of a request tells."""
    answer = CompletionSnapshot(dialect, request)
    await answer.see(entries)
    return answer


class CompletionSnapshots:
    """The answers that were asked for lately, of `room` bytes at most."""

    def __init__(self, store: RedisClient, fanout: Fanout, room: int) -> None:
        self._store = store
        self._fanout = fanout
        self._room = room
        self._kept: OrderedDict[str, CompletionSnapshot] = OrderedDict()
        self._alive: weakref.WeakSet[CompletionSnapshot] = (
            weakref.WeakSet()
        )  # Some are still being sent.
        self._turns = Turns(_AT_ONCE, 1)

    async def of(self, record: Record) -> CompletionSnapshot:
        """Return what the log of a record tells now; raises Unavailable."""
        while True:
            answer = self._kept.get(record.stream_id) or await self._new(record)
            async with answer.lock:
                if self._kept.get(record.stream_id) is answer:
                    answer.asked = clock.now()
                    self._kept.move_to_end(record.stream_id)
                    if await self._bring_up(answer, record):
                        return answer

    async def _new(self, record: Record) -> CompletionSnapshot:
        end = clock.now() + _PATIENCE
        while self._full():
            if clock.now() > end:
                raise Unavailable("overloaded")
            await asyncio.sleep(0.1)
        answer = self._kept.setdefault(record.stream_id, CompletionSnapshot(record.protocol))
        self._alive.add(answer)
        return answer

    def _full(self) -> bool:
        """Let go of what is old, or too much; say whether too much is left, as it is in use."""
        for stream_id in list(self._kept):  # Those first that nobody asked for the longest.
            old = clock.now() - self._kept[stream_id].asked > _IDLE
            if not old and len(self._kept) < _MOST and self._size() < self._room:
                break
            if not self._kept[stream_id].lock.locked():
                del self._kept[stream_id]
        return self._size() >= self._room

    def _size(self) -> int:
        return sum(len(each.text) for each in self._alive)

    async def _bring_up(self, answer: CompletionSnapshot, record: Record) -> bool:
        """Let an answer see what it has not; return whether its log is still the one it saw."""
        more = not record.end_id or record.end_id != answer.last_id
        try:
            while more:
                async with self._turns.of(record.subject):
                    found = await self._next(answer, record.stream_id)
                    if found is None:
                        self._kept.pop(record.stream_id, None)
                        return False
                    entries, more = found
                    await answer.see(entries)
        except asyncio.CancelledError:
            self._kept.pop(record.stream_id, None)  # It may have seen half an entry.
            raise
        return True

    async def _next(
        self, answer: CompletionSnapshot, stream_id: str
    ) -> tuple[Sequence[EntryBatch], bool] | None:
        """Return entries that an answer has not seen, and whether there are more; None if what it
        has seen is not what precedes them."""
        tail = self._fanout.get(stream_id)
        if tail is not None and tail.local:
            return _in_memory(answer, tail.entries)
        page = await read_page(self._store, stream_id, answer.last)
        if answer.last is None:
            return page.entries, page.more
        if not page.entries or page.entries[0].last != answer.last:
            return None
        return page.entries[1:], page.more


def _in_memory(
    answer: CompletionSnapshot, log: EntryBatches
) -> tuple[Sequence[EntryBatch], bool] | None:
    seen, size, entries = answer.count, 0, []
    if seen and (seen > len(log) or log[seen - 1].last != answer.last):
        return None
    while seen < len(log) and size < PAGE:
        entries.append(log[seen])
        size += len(log.frames(seen))
        seen += 1
    return entries, seen < len(log)

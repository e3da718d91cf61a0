"""Viewer: one open response to one reader of a stream, as a cursor and a wait for more.

It is an index into the tail's entries, not a queue: a slow one costs nothing but the socket's
buffer, and is dropped at the write time-out. What a viewer gets next is decided by `Viewer.take`
without awaiting, so between "there is nothing" and the wait no wake-up can be lost.

One who is further behind than the tail goes takes pages of the log, until it has caught up.
"""

import asyncio
import json
from collections.abc import Callable, Sequence

from gateway import clock
from gateway.eventlog.entries import (
    END,
    NOTHING,
    Cursor,
    EntryBatch,
    EntryBatches,
    EventId,
    seek,
    start_of,
)
from gateway.eventlog.reader import Page
from gateway.eventlog.tail import Tail
from gateway.sse import HEARTBEAT, encode

_SLICE = 16 * 1024  # Bytes handed to a viewer's socket at once: a stuck one holds a few of these.


class Viewer:
    """One open response: a cursor into a tail, or into a page, and a wait for more.

    One idea: each step of the cursor depends on where it stands, and none may await; there are
    thousands of them, and a second object for each would cost as much as all of its fields.
    """

    # fmt: off
    __slots__ = (
        "_after", "_at", "_behind", "_gap", "_heard", "_heartbeat_due", "_held", "_index",
        "_judged", "_offset", "_page", "_spoke", "_waiter", "_wanted", "abort", "gone",
        "sending_since", "tail", "write",
    )
    # fmt: on

    def __init__(self, tail: Tail, event_id: EventId | None) -> None:
        self.gone = False
        self.sending_since: float | None = None
        self.abort: Callable[[], None] | None = None
        self.write: Callable[[bytes], bool] | None = None  # To the socket, if it has room.
        self._held = b""
        self.tail = tail
        self._heard = clock.now()
        self._spoke = False  # To, since the last tick: a clock costs more than a flag.
        self._heartbeat_due = False
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = event_id
        self._gap = False
        self._offset = 0  # Into the entry at the index: of a large one a slice at a time is sent.
        self._page: Page | None = None  # Only as long as something is taken from it.
        self._after: EventId | None = None
        self._at = event_id
        self._go_on(event_id)

    def _go_on(self, event_id: EventId | None) -> None:
        """Stand after an event: in the tail, or in a page where the tail has no more of it."""
        self._at = event_id
        self._page = None
        self._index, self._after = 0, None
        self._behind = not self.tail.covers(event_id)
        self._judged = not self._behind
        if self._judged and event_id is not None and event_id != self.tail.base:
            self._stand(seek(self.tail.entries, event_id, self.tail.ended), event_id)

    def _stand(self, cursor: Cursor | None, event_id: EventId) -> None:
        if cursor is None:
            self.miss(event_id)
        else:
            self._index, self._after = cursor

    @property
    def finished(self) -> bool:
        """Whether everything to the end was taken, or the connection is to end all the same."""
        if self.gone:  # After a whole event, if the rest of it can be had.
            return not (self._held or self._offset) or self.lagging
        done = self._index >= len(self.tail.entries) and self.tail.ended
        return done and not (self._gap or self._held or self._behind)

    @property
    def has_more(self) -> bool:
        """Whether another `take` may give something at once."""
        if self._held or (self._heartbeat_due and not self._offset):
            return True
        if self._behind:
            return not self.lagging
        return self._index < len(self.tail.entries)

    @property
    def behind(self) -> bool:
        """Whether it reads pages instead of the tail."""
        return self._behind

    @property
    def lagging(self) -> bool:
        """Whether it needs a page that is not here."""
        return self._behind and self._source() is None

    @property
    def at(self) -> EventId | None:
        """The event id from which on it needs a page."""
        return self._at

    def turn(self, page: Page) -> None:
        """Go on with a page that was read for it."""
        self._page = page

    @property
    def passed(self) -> int:
        """How many entries of the tail it needs no more: all, as long as it reads pages."""
        return len(self.tail.entries) if self._behind else self._index

    def shift(self, count: int) -> None:
        """Let go of the tail's first entries; who stands among them goes on in a page."""
        if self._behind or self._index >= count:
            self._index -= 0 if self._behind else count
            return
        before = self.tail.entries[self._index - 1].last if self._index else self.tail.base
        self._at, self._index, self._after = self._after or before, 0, None
        self._behind, self._judged = True, False
        self._awake()

    def take(self) -> bytes:
        """Return the next frames, or a heartbeat if one is due; b"" if there is nothing yet."""
        if self._held:
            held, self._held = self._held, b""
            return held
        entries = self.tail.entries
        if self._index == len(entries) - 1 and self._after is None and not self._gap:
            frames = entries.frames(self._index)
            if len(frames) <= _SLICE and not self._behind:
                self._index += 1  # What happens at nearly every event.
                return frames or self._beat()
        return self._collect() or self._beat()

    def _beat(self) -> bytes:
        return HEARTBEAT if self._heartbeat_due and not self._offset else b""

    def sending(self) -> None:
        """Note that bytes are on their way to the reader, who may not take them."""
        self._page = None  # However long that takes: others need the room.
        self.sending_since = clock.now()

    def sent(self) -> None:
        """Note that the reader heard something."""
        self.sending_since = None
        self._heartbeat_due = False
        self._spoke = True

    def _source(self) -> EntryBatches | None:
        """Return where it stands, None if that is not here."""
        if not self._behind:
            return self.tail.entries
        if self._page is None and self.tail.pages is not None:
            self._page = self.tail.pages.get(self.tail.stream_id, self._at)
        return self._page.entries if self._page is not None else None

    def _collect(self) -> bytes:
        self._judge()
        source = self._source()
        if source is None:
            return b""
        parts = [self._take_gap(source)] if self._gap else []
        room, inside = _SLICE, bool(self._offset)
        while room > 0 and self._index < len(source):
            frames = source.frames(self._index)
            if self._after is not None:
                self._offset = self._skip(source[self._index], self._after)
                if self._gap:  # It waited ahead of the log, and the log went another way.
                    break
            rest = len(frames) - self._offset
            if room < min(rest, _SLICE):
                break  # Only what is larger than a slice is cut.
            part = frames[self._offset : _end(frames, self._offset, room)]
            parts.append(part)
            room -= len(part)
            self._offset += len(part)
            if self._offset == len(frames):
                self._index, self._offset = self._index + 1, 0
                if inside and self.gone:
                    break
        if self._behind and self._index >= len(source):
            self._turn_over()
        chunk = b"".join(parts)
        return chunk if chunk or not (self._gap and self._source()) else self._collect()

    def _skip(self, entry: EntryBatch, after: EventId) -> int:
        """Return how many bytes of an entry are of an event or before it."""
        if entry.last <= after:
            if entry.last == after:
                self._after = None  # It has caught up; what follows may be of the next epoch.
            return len(entry.frames)
        if entry.last.epoch != after.epoch:
            self.miss(after)
            return 0
        self._after = None
        return len(entry.frames) - len(entry.after(after))

    def _judge(self) -> None:
        """Find its place in the page that was read for it."""
        if self._judged or self._source() is None or self._page is None:
            return
        page, self._judged = self._page, True
        if not page.entries:
            self.break_off()  # The log is gone; what becomes of them is told as they come back.
        elif self._at is not None:
            ended = not page.more and page.entries.ended
            self._stand(seek(page.entries, self._at, ended), self._at)

    def _turn_over(self) -> None:
        """Go on after a page: in the tail if that has what follows, else in another one."""
        assert self._page is not None
        page, tail = self._page, self.tail
        if not page.entries:
            return
        last = self._after or page.entries[-1].last
        if not page.more and tail.pages is not None:
            tail.pages.drop(tail.stream_id, self._at)  # There may be more by now.
        if not tail.local and tail.covers(last) and tail.extend(page.entries):
            asyncio.get_running_loop().call_soon(tail.wake)  # It was read before the tail was.
        self._go_on(last)

    def _take_gap(self, entries: Sequence[EntryBatch]) -> bytes:
        """Return the one event that is not in the log: what was asked for cannot be had."""
        if not entries:
            return b""
        self._gap = False
        start = start_of(entries)
        data = json.dumps({"from": str(self._wanted), "to": str(start)})
        return encode(data.encode(), str(start).encode(), b"gap")

    def miss(self, seen: EventId | None) -> None:
        """Go on with a gap: what was seen up to here is in no log any more."""
        if self._offset:
            self.break_off()  # The rest of what it is in the midst of is not to be had.
        self._gap, self._wanted = True, seen
        self._go_on(None)

    def wait(self) -> "asyncio.Future[None]":
        """Return what is done once there may be something to take; one at a time."""
        # Not a coroutine: its frame would be kept for as long as a stream is silent.
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def wake(self) -> None:
        """End a wait; or send what is new from here, which spares the task a wake-up an event."""
        if self._waiter is None or self._waiter.done():
            return
        if self.write is not None and not self.gone:
            chunk = self.take()
            if not chunk and not self.finished and not self._behind:
                return
            if chunk and self.write(chunk):
                self.sent()
                if self._index == len(self.tail.entries) and not self.finished:
                    return
            else:
                self._held = chunk
        self._awake()

    def _awake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """Let the response end after a whole event."""
        self.gone = True
        self.wake()

    def break_off(self) -> None:
        """Let the response end at once: an event that is not whole counts for nothing."""
        self._held, self._offset = b"", 0
        self.gone = True
        self._awake()

    def tick(self, now: float, heartbeat: float, write_timeout: float) -> None:
        """Make a heartbeat due, or cut off a reader that reads nothing."""
        if self.sending_since is not None:
            if now - self.sending_since > write_timeout:
                self.gone = True
                if self.abort is not None:
                    self.abort()
        elif self._spoke:
            self._spoke, self._heard = False, now
        elif now - self._heard >= heartbeat:
            self._heartbeat_due = True
            self.wake()


class ChannelViewer(Viewer):
    """A viewer of a channel, from an event on, or from where the channel ends now."""

    __slots__ = ()

    def __init__(self, tail: Tail, event_id: EventId | None) -> None:
        super().__init__(tail, tail.last if event_id == END else event_id)
        if event_id is not None and tail.last is not None and tail.last < event_id < END:
            self.miss(event_id)  # The log is another: to wait for it to get there misses messages.

    def sending(self) -> None:
        """Note that bytes are on their way; a page read again may begin elsewhere, so it stays."""
        self.sending_since = clock.now()

    def _judge(self) -> None:
        page = self._page
        end = (page.base if page else None) or NOTHING
        if self._judged or page is None or page.entries or end == NOTHING != self.tail.base:
            super()._judge()
            self._check_rest()
            return
        missed = self._wanted if self._gap else self._at
        self._go_on(end)  # All there was before has run out.
        if missed is not None:
            self._gap, self._wanted = True, missed

    def _check_rest(self) -> None:
        """Go if the message that it is in the midst of ran out: its rest is not to be had."""
        source = self._source()
        if not self._offset or source is None:
            return
        if self._index >= len(source) or len(source.frames(self._index)) < self._offset:
            self.break_off()
            self._go_on(self._at)

    def _take_gap(self, entries: Sequence[EntryBatch]) -> bytes:
        if self._wanted == NOTHING and entries and start_of(entries).seq == 0:
            self._gap = False  # What came first is all there.
            return b""
        return super()._take_gap(entries)


def _end(frames: bytes, start: int, room: int) -> int:
    """Return where to cut frames: after a whole event, unless not even one fits."""
    if len(frames) - start <= room:
        return len(frames)
    blank = frames.rfind(b"\n\n", start, start + room)
    return start + room if blank < 0 else blank + 2

"""Tail: one stream as this replica's viewers see it, and a wait for more.

A viewer is an index into the tail's entries, not a queue: a slow one costs nothing but the socket's
buffer, and is dropped at the write time-out. What a viewer gets next is decided by `Viewer.take`
without awaiting, so between "there is nothing" and the wait no wake-up can be lost.
"""

import asyncio
import json
from collections.abc import Callable, Iterable

from gateway.positions import Cursor, Entries, Entry, Position, seek, start_of
from gateway.sse import HEARTBEAT, encode

_CHUNK = 256 * 1024  # Bytes handed to a viewer's socket at once.


class Tail:
    """What is logged so far of one stream; `local` if this replica runs it."""

    def __init__(self, stream_id: str, *, local: bool, owner: str = "") -> None:
        self.stream_id = stream_id
        self.local = local
        self.owner = owner
        self.choices = 1  # That were asked for, as far as it is known here.
        self.entries = Entries()
        self.viewers: set[Viewer] = set()
        self.idle_since = _now()

    @property
    def last(self) -> Position | None:
        """The position after everything known."""
        return self.entries[-1].last if self.entries else None

    @property
    def ended(self) -> bool:
        """Whether the stream's last event is here."""
        return self.entries.ended

    def extend(self, entries: Iterable[Entry]) -> bool:
        """Add entries read from Redis, those already here left out; say whether any was new."""
        before, last = len(self.entries), self.last
        for entry in entries:
            if last is None or entry.last > last:
                self.entries.append(entry)
                last = entry.last
        return len(self.entries) > before

    def replace(self, entries: list[Entry]) -> None:
        """Begin anew: the log is another than the one that was seen, and viewers are told so."""
        for viewer in self.viewers:
            viewer.miss(self.last)
        self.entries.replace(entries)

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
        self.write: Callable[[bytes], bool] | None = None  # To the socket, if it has room.
        self._held = b""
        self.tail = tail
        self._heard = _now()
        self._spoke = False  # To, since the last tick: a clock costs more than a flag.
        self._heartbeat_due = False
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = position
        cursor = Cursor(0) if position is None else seek(tail.entries, position, tail.ended)
        self._gap = cursor is None
        self._index, self._after = cursor or Cursor(0)

    @property
    def finished(self) -> bool:
        """Whether everything to the end was taken, or the connection is to end all the same."""
        if self.gone:
            return True
        done = self._index >= len(self.tail.entries) and self.tail.ended
        return done and not self._gap and not self._held

    @property
    def has_more(self) -> bool:
        """Whether another `take` may give something at once."""
        return bool(self._held or self._heartbeat_due or self._index < len(self.tail.entries))

    def take(self) -> bytes:
        """Return the next frames, or a heartbeat if one is due; b"" if there is nothing yet."""
        if self._held:
            held, self._held = self._held, b""
            return held
        entries = self.tail.entries
        if self._index == len(entries) - 1 and self._after is None and not self._gap:
            self._index += 1  # What happens at nearly every event.
            return entries.frames(self._index - 1) or self._beat()
        parts = [self._take_gap()] if self._gap else []
        size = 0
        while self._index < len(entries) and size < _CHUNK:
            if self._after is None:
                frames = entries.frames(self._index)
            else:
                frames = self._next(entries[self._index], self._after)
            if self._gap:  # It waited ahead of the log, and the log went another way.
                break
            self._index += 1
            parts.append(frames)
            size += len(frames)
        chunk = b"".join(parts)
        if not chunk and self._gap and entries:
            return self.take()
        return chunk or self._beat()

    def _beat(self) -> bytes:
        return HEARTBEAT if self._heartbeat_due else b""

    def sending(self) -> None:
        """Note that bytes are on their way to the reader, who may not take them."""
        self.sending_since = _now()

    def sent(self) -> None:
        """Note that the reader heard something."""
        self.sending_since = None
        self._heartbeat_due = False
        self._spoke = True

    def _next(self, entry: Entry, after: Position) -> bytes:
        if entry.last <= after:
            if entry.last == after:
                self._after = None  # It has caught up; what follows may be of the next epoch.
            return b""
        if entry.last.epoch != after.epoch:
            self.miss(after)
            return b""
        self._after = None
        return entry.after(after)

    def _take_gap(self) -> bytes:
        """Return the one event that is not in the log: what was asked for cannot be had."""
        if not self.tail.entries:
            return b""
        self._gap = False
        start = start_of(self.tail.entries)
        data = json.dumps({"from": str(self._wanted), "to": str(start)})
        return encode(data.encode(), str(start).encode(), b"gap")

    def miss(self, seen: Position | None) -> None:
        """Go on with a gap: what was seen up to here is in no log any more."""
        self._gap, self._index, self._wanted, self._after = True, 0, seen, None

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
            if not chunk and not self.finished:
                return
            if chunk and self.write(chunk):
                self.sent()
                if self._index == len(self.tail.entries) and not self.finished:
                    return
            else:
                self._held = chunk
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
        elif self._spoke:
            self._spoke, self._heard = False, now
        elif now - self._heard >= heartbeat:
            self._heartbeat_due = True
            self.wake()


def _now() -> float:
    return asyncio.get_running_loop().time()

"""Tail: one stream as this replica's viewers see it.

Of a stream that this replica runs it has all entries. Of any other it has the last ones: a viewer
who is further behind takes them from pages of the log, until it has caught up.
"""

from collections.abc import Iterable
from typing import Protocol

from gateway import clock
from gateway.eventlog.entries import WEIGHT, EntryBatch, EntryBatches, EventId, weight
from gateway.eventlog.pages import Pages
from gateway.eventlog.reader import Page

_ENOUGH = 16 * 1024  # Bytes kept of a stream run elsewhere for those who come back.
_WINDOW = 128 * 1024  # Bytes kept of it for viewers who are a little behind.


class Watcher(Protocol):
    """Who looks at a tail."""

    @property
    def behind(self) -> bool:
        """Whether they read pages instead."""

    @property
    def passed(self) -> int:
        """How many of its entries they need no more."""

    def shift(self, count: int) -> None:
        """Hear that its first entries go."""

    def miss(self, seen: EventId | None) -> None:
        """Hear that what was seen up to here is in no log any more."""

    def wake(self) -> None:
        """Look again."""

    def leave(self) -> None:
        """Go, after a whole event."""

    def break_off(self) -> None:
        """Go at once."""

    def tick(self, now: float, heartbeat: float, write_timeout: float) -> None:
        """Look at the time."""


class Tail:
    """What is logged so far of one stream; `local` if this replica runs it.

    `base` is the event id before the first entry that is here, None if that begins the log.
    """

    start: EventId | None = None  # From where on a log is read first.

    def __init__(
        self,
        stream_id: str,
        *,
        local: bool,
        owner: str = "",
        subject: str = "",
        pages: Pages | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.local = local
        self.owner = owner
        self.subject = subject
        self.issued = 0  # When it was asked for, in milliseconds of Redis's clock.
        self.pages = pages
        self.base: EventId | None = None
        self.choices = 1  # That were asked for, as far as it is known here.
        self.entries = EntryBatches()
        self.viewers: set[Watcher] = set()
        self.idle_since = clock.now()
        self._weight = 0
        self._light = _WINDOW  # The weight above which it is to be looked at again.

    @property
    def last(self) -> EventId | None:
        """The id of the last event that is known."""
        return self.entries[-1].last if self.entries else None

    @property
    def announced(self) -> bool:
        """Whether somebody elsewhere is to know that it is watched."""
        return bool(self.owner)

    @property
    def ended(self) -> bool:
        """Whether the stream's last event is here."""
        return self.entries.ended

    @property
    def typical(self) -> int:
        """The size of an entry, as far as one can tell from the last."""
        return len(self.entries.frames(-1)) if self.entries else 0

    def covers(self, event_id: EventId | None) -> bool:
        """Whether what follows an event id is here, as far as it is known."""
        return self.base is None or (event_id is not None and event_id >= self.base)

    def begin(self, page: Page) -> None:
        """Hold the whole log, if the page is that, else its end."""
        self.base = page.base if page.last else None
        self.entries.replace([page.last] if page.last else page.entries)
        self.weigh()

    def extend(self, entries: Iterable[EntryBatch]) -> bool:
        """Add entries read from Redis, those already here left out; say whether any was new."""
        before, last = len(self.entries), self.last
        for entry in entries:
            if last is None or entry.last > last:
                self.entries.append(entry)
                self._weight += len(entry.frames) + WEIGHT
                last = entry.last
        return len(self.entries) > before

    def replace(self, page: Page) -> None:
        """Begin anew: the log is another than the one that was seen, and viewers are told so."""
        last = self.last
        if self.pages is not None:
            self.pages.forget(self.stream_id)
        self.begin(page)
        for viewer in self.viewers:
            viewer.miss(last)

    def weigh(self) -> None:
        """Find out how much there is to hold, of a stream that runs elsewhere from now on."""
        self._weight = weight(self.entries)
        self._light = 0 if self._weight > _WINDOW else _WINDOW

    def trim(self) -> None:
        """Let go of what the viewers have passed, and of more if that is too much."""
        if self._weight <= self._light or self.pages is None:
            return
        passed = min((each.passed for each in self.viewers), default=len(self.entries))
        count, left = 0, self._weight
        while count < len(self.entries) - 1 and left > (_ENOUGH if count < passed else _WINDOW):
            left -= len(self.entries.frames(count)) + WEIGHT
            count += 1
        self._weight = left
        self._light = left + _ENOUGH
        if count:
            for viewer in self.viewers:
                viewer.shift(count)
            self.base = self.entries[count - 1].last
            self.entries.cut(count)

    def wake(self) -> None:
        """Let every viewer look again."""
        for viewer in self.viewers:
            viewer.wake()

    def drop(self) -> int:
        """End the connections of all viewers, each after a whole event; return how many."""
        for viewer in self.viewers:
            viewer.leave()
        return len(self.viewers)

    def break_off(self) -> None:
        """End the connections of all viewers at once: what they are in the midst of is not here."""
        for viewer in self.viewers:
            viewer.break_off()

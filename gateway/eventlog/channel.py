"""Channel: a log that many write and that never ends, as this replica's viewers see it.

Its messages run out one by one, and the oldest go as new ones come. So nothing that was shown is
kept here: a tail begins where the log ends, and who asks for what is before that takes it from
pages, which Redis makes without what has run out. In an epoch the ids have no holes; one between
what was seen and what is read are messages that went before anybody here saw them.
"""

from collections.abc import Iterable

from gateway.eventlog.entries import END, NOTHING, EntryBatch, EventId
from gateway.eventlog.reader import Page
from gateway.eventlog.tail import Tail

_TYPICAL = 1024  # Bytes of a message, where none tells.


class ChannelTail(Tail):
    """What came lately, until all viewers here have it; first its last event, without frames."""

    start = END

    @property
    def announced(self) -> bool:
        """Whether somebody elsewhere is to know that it is watched: whoever writes."""
        return True

    @property
    def typical(self) -> int:
        """The size of an entry, as far as one can tell."""
        return max(_TYPICAL, super().typical)

    def begin(self, page: Page) -> None:
        """Stand at the end of the log that a page is of."""
        end = page.last or (page.entries[-1] if page.entries else None)
        self._stand_at(end.last if end else NOTHING)

    def _stand_at(self, event_id: EventId) -> None:
        self.base = event_id
        self.entries.replace([EntryBatch(event_id, 0, b"")])
        self.weigh()

    def extend(self, entries: Iterable[EntryBatch]) -> bool:
        """Add entries read from Redis, those already here left out; say whether any was new."""
        last = self.last
        news = [each for each in entries if last is None or each.last > last]
        if not news or last is None or _follows(news[0], last):
            return super().extend(news)
        self._stand_at(news[-1].last)
        for viewer in self.viewers:
            if not viewer.behind:  # Its page tells the others.
                viewer.miss(last)
        return True

    def trim(self) -> None:
        """Let go of what all viewers have passed, and of more if that is too much."""
        passed = min((each.passed for each in self.viewers), default=len(self.entries))
        if passed > 0:
            for viewer in self.viewers:
                viewer.shift(passed - 1)
            self.base = self.entries[passed - 1].last
            rest = self.entries[passed:]
            self.entries.replace([EntryBatch(self.base, 0, b""), *rest])
            self.weigh()
        super().trim()


def _follows(entry: EntryBatch, last: EventId) -> bool:
    """Whether nothing is missing between an event and the first entry after it."""
    seen = last.seq if entry.last.epoch == last.epoch else 0
    return entry.last.seq - entry.number <= seen

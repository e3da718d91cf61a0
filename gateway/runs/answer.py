"""Answer: the events of an upstream's answer, as a log has them."""

from collections.abc import Iterable, Iterator

from gateway.eventlog.entries import EntryBatch
from gateway.sse import OURS, Event, parse


def answer_events(entries: Iterable[EntryBatch], more: bytes = b"") -> Iterator[Event]:
    """Yield the upstream's events since the last `reset`; `more` are frames that follow.

    None is parsed before it is asked for.
    """
    events = [event for entry in entries for event in parse(entry.frames)] + parse(more)
    resets = [number for number, event in enumerate(events) if event.name == b"reset"]
    for event in events[resets[-1] if resets else 0 :]:
        if event.name not in OURS:
            yield event

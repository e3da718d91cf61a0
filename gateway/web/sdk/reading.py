"""Reading: a stream as an SDK is to have it: the upstream's events, and whether they are all."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.sse import OURS, RESERVED, Event, Parser
from gateway.upstream.protocols.api import Api
from gateway.upstream.protocols.problems import CANCELLED, Problem, problem_of
from gateway.upstream.protocols.table import logged_protocol

VOID = Problem(502, "begun_anew", "The answer was begun anew: what was said so far is void.")
NO_PLACE = Problem(400, "bad_position", "The stream has no such place.")

_PREFIX = b"upstream-"
_KEPT_NAMES = frozenset(_PREFIX + each for each in OURS | RESERVED)


class Reading:
    """Frames of a log in, an upstream's own events out; its last one once the end is known.

    An upstream may say `[DONE]` of what is not whole, and who has heard that looks no further.
    `restarts`: an answer that is begun anew may be. `fresh`: it is read from its start.
    """

    def __init__(self, api: Api, dialect: str, *, restarts: bool, fresh: bool = True) -> None:
        self.over = False
        self.problem: Problem | None = None  # Why it is not whole, once it is over.
        self.anew = (
            False  # Whether what was returned before is void; who has seen it takes it back.
        )
        self.raised = False  # Whether its upstream's own error says so already.
        self._api = api
        self._protocol = logged_protocol(dialect)
        self._restarts = restarts
        self._unseen = fresh  # Whether the caller has nothing of it that could be void.
        self._parser = Parser(limit=sys.maxsize)  # A large event comes in slices.
        self._closing: Event | None = None
        self._last: Event | None = None
        self._failure: dict[str, Any] | None = None

    def feed(self, frames: bytes) -> list[Event]:
        """Return the events that these frames complete."""
        told: list[Event] = []
        for event in self._parser.feed(frames):
            if event.name not in OURS:
                self._see(event, told)
            elif event.name == b"failure":
                self._failure = json.loads(event.data)
            elif event.name == b"end":
                told += self._end(json.loads(event.data)["state"])
            else:
                self._void(event.name, told)
            if self.over:
                break
        self._unseen = self._unseen and not told
        return told

    def _see(self, event: Event, told: list[Event]) -> None:
        if event.name in _KEPT_NAMES:
            event = event._replace(name=event.name.removeprefix(_PREFIX))
        self._last = event
        if self._protocol.closes(event):
            self._closing = event
        else:
            told.append(event)

    def _end(self, state: str) -> Iterable[Event]:
        self.over = True
        if state == "done":
            return self._api.end(self._closing)
        self.problem = CANCELLED if state == "cancelled" else problem_of(self._failure)
        self.raised = self._last is not None and self._api.raises(self._last)
        return self._api.bad_end(self._closing) if self._closing else ()

    def _void(self, name: bytes, told: list[Event]) -> None:
        told.clear()
        self._closing = self._last = None
        self.anew = True
        if not (self._restarts or self._unseen):
            self.over, self.problem = True, NO_PLACE if name == b"gap" else VOID


class Position:
    """Which of a stream's events a caller is shown: not those that it has."""

    def __init__(self, api: Api, *, usage: bool, had: int = 0, beyond: int = -1) -> None:
        self.next = 0  # The number of the next event.
        self.told = False  # Whether the last event was told: who has more hears nothing of it.
        self._api = api
        self._usage = usage
        self._left = had  # Events that it has, by its own count.
        self._beyond = beyond  # The number of the last that it has.

    @property
    def missed(self) -> bool:
        """Whether the stream has not come to where the caller says it is."""
        return self._left > 0 or self.next <= self._beyond

    def shown(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield those that it has not."""
        api = self._api
        for event in events:
            number = api.number(event, self.next)
            self.next = number + 1
            self.told = not (self._left or number <= self._beyond)
            if number <= self._beyond or (not self._usage and api.is_usage(event)):
                continue
            if self._left:
                self._left -= api.counts(event)
            else:
                yield event

"""Kept responses: those made in the background, which go on without a connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field

from gateway.demo.pretend.base import Event, Refused, Terms
from gateway.demo.pretend.responses import Response
from gateway.demo.pretend.sending import paced
from gateway.demo.pretend.text import Object
from gateway.tasks import Tasks

MOST = 1000  # Responses.
MOST_BYTES = 64 << 20  # Of all their events.
KEPT_FOR = 3600  # Seconds since it was asked for, be it over or not.


@dataclass(slots=True)
class Asks:
    """How often a response was asked for after its making, refused or not."""

    attaches: int = 0
    looks: int = 0
    cancels: int = 0


class KeptResponse:
    """A response that goes on, and its events so far."""

    def __init__(self, response: Response, terms: Terms, begun: float) -> None:
        self.response = response
        self.terms = terms
        self.begun = begun
        self.asks = Asks()
        self.size = 0
        self.over = False
        self.stop: Callable[[], object] = self.end
        self._events: list[Event] = []
        self._changed = asyncio.Event()

    def append(self, event: Event) -> None:
        """Keep one more event, and show it to all who follow."""
        self._events.append(event)
        self.size += len(event.data)
        self._wake()

    def fail(self) -> None:
        """End it as failed; no event tells of that, for which there may be no room."""
        self.response.status = "failed"
        self.end()

    def end(self) -> None:
        """Let those who follow it go: no more events come."""
        self.over = True
        self._wake()

    def cancel(self) -> None:
        """Stop it where it is; no event tells of that. Of one that is over nothing changes."""
        if not self.over:
            self.response.status = "cancelled"
            self.end()
            self.stop()

    async def after(self, number: int) -> AsyncIterator[Event]:
        """Yield the events after a number, -1 for all, also those to come."""
        index = number + 1
        while True:
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self.over:
                return
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@dataclass(slots=True)
class KeptResponses:
    """All that are kept; the oldest that is over makes room for a new one."""

    clock: Callable[[], float] = time.monotonic
    counted: Asks = field(default_factory=Asks)
    _kept: dict[str, KeptResponse] = field(default_factory=dict)
    _bytes: int = 0
    _tasks: Tasks = field(default_factory=Tasks)

    def keep(self, response: Response, terms: Terms) -> KeptResponse:
        """Begin a response that goes on by itself; raises Refused where too many do."""
        self._forget_old()
        if len(self._kept) >= MOST and not self._make_room():
            raise Refused(429, "Too many background responses are running.")
        kept = KeptResponse(response, terms, self.clock())
        self._kept[response.id] = kept
        kept.stop = self._tasks.spawn(self._play(kept)).cancel
        return kept

    def attached(self, id_: str) -> KeptResponse:
        """Return one whose events are asked for; raises Refused where they are no more."""
        self.counted.attaches += 1
        kept = self._found(id_)
        kept.asks.attaches += 1
        if not kept.response.streams:
            raise Refused(400, "This response was not made with stream=true.", "stream")
        if self.clock() - kept.begun >= kept.response.attach_for:
            words = f"Response with id '{id_}' is too old: it can no longer be streamed."
            raise Refused(400, words, "stream")
        return kept

    def looked_at(self, id_: str) -> Object:
        """Return how one is; raises Refused."""
        self.counted.looks += 1
        kept = self._found(id_)
        kept.asks.looks += 1
        return kept.response.object()

    def cancelled(self, id_: str) -> Object:
        """Stop one and return how it is; raises Refused."""
        self.counted.cancels += 1
        kept = self._found(id_)
        kept.asks.cancels += 1
        kept.cancel()
        return kept.response.object()

    def forget(self, id_: str) -> None:
        """Stop one and keep it no longer; raises Refused."""
        self._found(id_)
        self._drop(id_)

    def tell(self) -> Object:
        """Return how often each was asked for, and its status."""
        return {
            id_: {"status": kept.response.status, **asdict(kept.asks)}
            for id_, kept in self._kept.items()
        }

    def _found(self, id_: str) -> KeptResponse:
        self._forget_old()
        if id_ not in self._kept:
            raise Refused(404, f"Response with id '{id_}' not found.")
        return self._kept[id_]

    def _forget_old(self) -> None:
        oldest = self.clock() - KEPT_FOR
        for id_ in [id_ for id_, kept in self._kept.items() if kept.begun < oldest]:
            self._drop(id_)

    def _make_room(self) -> bool:
        over = next((id_ for id_, kept in self._kept.items() if kept.over), None)
        if over is not None:
            self._drop(over)
        return over is not None

    def _drop(self, id_: str) -> None:
        kept = self._kept.pop(id_)
        kept.cancel()
        self._bytes -= kept.size

    def _append(self, kept: KeptResponse, event: Event) -> bool:
        """Keep an event if there is room for it."""
        while self._bytes + len(event.data) > MOST_BYTES:
            if not self._make_room():
                return False
        kept.append(event)
        self._bytes += len(event.data)
        return True

    async def _play(self, kept: KeptResponse) -> None:
        try:
            async with (
                asyncio.timeout(KEPT_FOR),
                aclosing(paced(kept.response, kept.terms)) as events,  # type: ignore[type-var]
            ):
                async for event in events:
                    if not self._append(kept, event):
                        kept.fail()
                        return
        except TimeoutError:
            kept.fail()
        kept.end()

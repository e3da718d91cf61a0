"""Parts: what a connection that carries several logs shows of each, and whose turn it is.

A part is an ordinary viewer, or what is said in the place of a stream that there is not. They take
turns of a slice each. One that has nothing waits and is woken; one that is behind has a page read
for it while the others go on, one page for a connection at a time.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gateway.auth.tickets import Ticket
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.runs.endings import failure
from gateway.runs.redemption import NothingMore, Opened
from gateway.sse import HEARTBEAT, Renaming, encode
from gateway.tasks import Tasks
from gateway.upstream.protocols.table import logged_protocol
from gateway.web.event_stream import PlainText, made
from gateway.web.openings import Openings
from gateway.web.positions import Mark, Positions
from gateway.web.responses import Retry

logger = logging.getLogger("gateway.web.parts")

_AT_ONCE = 8  # Tickets that one connection opens at the same time.
_TRIES = 3  # Before a replica that cannot open a ticket sends its viewer on, maybe to another.
_PAUSE = 0.1  # Seconds at least until a ticket is tried again, however short the grace.
_ELSEWHERE = frozenset(("overloaded", "newer_record"))


class Asked(NamedTuple):
    """What a connection is to carry beside its channel, and how."""

    subject: str
    tickets: Sequence[Ticket]
    snapshot: bool = False
    text: bool = False


class Part:
    """One log of a connection: a viewer of it, after `before`; or without a viewer that alone."""

    def __init__(
        self,
        number: int,
        opened: Opened | None,
        before: Iterable[bytes] = (),
    ) -> None:
        self.number = number
        self.viewer = opened.viewer if opened else None
        self._opened = opened
        self._before: Iterator[bytes] | None = iter(before)
        self._plain: PlainText | None = None
        self._renaming = Renaming(b"%d" % number if number else b"")

    @property
    def whole(self) -> bool:
        """Whether no event of it is half sent."""
        return self._renaming.whole

    @property
    def finished(self) -> bool:
        """Whether nothing more comes of it."""
        return self._before is None and (self.viewer is None or self.viewer.finished)

    @property
    def has_more(self) -> bool:
        """Whether another `take` may give something at once."""
        return self._before is not None or (self.viewer is not None and self.viewer.has_more)

    @property
    def lagging(self) -> bool:
        """Whether it needs a page that is not here."""
        return self._before is None and self.viewer is not None and self.viewer.lagging

    async def take(self, fanout: Fanout) -> bytes:
        """Return its next slice as it is logged; b"" if there is nothing yet."""
        if self._before is not None:
            if piece := next(self._before, b""):
                return piece
            self._before = None
        if self.viewer is None or self.viewer.finished:
            return b""
        chunk = self.viewer.take()
        if chunk == HEARTBEAT and self.number:
            self.viewer.sent()  # The channel's is that of the connection.
            return b""
        if self._plain is not None and chunk:
            chunk = await made(self._plain.frames, chunk, fanout.work)
        return chunk

    async def more(self, fanout: Fanout) -> None:
        """Return once there may be more of an event that is half sent."""
        if self.viewer is not None and self.lagging:
            await fanout.turn(self.viewer)
        elif self.viewer is not None and not self.has_more:
            await self.viewer.wait()

    def renamed(self, chunk: bytes, positions: Positions) -> Iterator[bytes]:
        """Yield a slice as it is to be sent; the positions go along with its events."""

        def renew(name: bytes, event_id: bytes) -> bytes:
            text = event_id.decode()
            ended = name == b"end" and self.number
            place = Mark.ENDED if ended else EventId.parse(text) or Mark(text)
            return positions.moved(self.number, place)

        return iter((chunk,)) if chunk == HEARTBEAT else self._renaming.feed(chunk, renew)

    async def as_text(self, fanout: Fanout) -> None:
        """Show only the text of its answer from here on."""
        if self._opened is not None:
            tail = self._opened.viewer.tail
            protocol = logged_protocol(self._opened.dialect)
            self._plain = PlainText(protocol.text(await fanout.begun_with(tail), tail.choices))

    def close(self, fanout: Fanout) -> None:
        """Free its viewer and its seat, once."""
        if self._opened is not None:
            fanout.detach(self._opened.viewer)
            self._opened.seat()
            self._opened = None


class Parts:
    """The parts of one connection, the channel first; `over` once it is to end."""

    def __init__(
        self,
        fanout: Fanout,
        openings: Openings,
        retry: Retry,
        asked: Asked,
        positions: Positions,
        channel: Part,
    ) -> None:
        self.over = False
        self.channel = channel
        self._fanout = fanout
        self._openings = openings
        self._retry = retry
        self._asked = asked
        self._positions = positions
        self._open = {0: channel}
        self._ready = deque([channel])
        self._behind: deque[Part] = deque()
        self._paged: Part | None = None  # The one that a page is read for, or waits for.
        self._more = asyncio.Event()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._tasks = Tasks()

    def begin(self) -> None:
        """Begin to open the tickets."""
        for number, _ in enumerate(self._asked.tickets, 1):
            if self._positions[number] is not Mark.ENDED:
                self._spawn(self._add(number))

    async def next(self) -> Part | None:
        """Return the part whose turn it is, None once the connection is over."""
        while not self.over:
            if self._ready:
                return self._ready.popleft()
            self._more.clear()
            await self._more.wait()
        return None

    def back(self, part: Part) -> None:
        """Take a part back that had its turn."""
        if part is self._paged:
            self._paged = None
        if part.finished:
            self._finished(part)
        elif part.lagging:
            self._behind.append(part)
        elif part.has_more:
            self._ready.append(part)
        elif part.viewer is not None:
            part.viewer.wait().add_done_callback(lambda _: self._wake(part))
        if self._behind and self._paged is None:
            self._paged = self._behind.popleft()
            self._spawn(self._read_for(self._paged))

    def leave(self) -> None:
        """End the connection, after a whole event."""
        self.over = True
        for part in self._open.values():
            if part.viewer is not None:
                part.viewer.leave()
        self._more.set()

    async def close(self) -> None:
        """Free all that its parts have."""
        try:
            await self._tasks.stop()
        finally:
            for part in self._open.values():
                part.close(self._fanout)

    def _wake(self, part: Part) -> None:
        self._ready.append(part)
        self._more.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.spawn(work).add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        """End a connection of which a part would be missing from now on: it comes back."""
        if not task.cancelled() and (error := task.exception()):
            logger.error("a part of a connection broke", exc_info=error)
            self.leave()

    async def _read_for(self, part: Part) -> None:
        """Have a page read for a part, which holds it until its turn: so that is the next one."""
        await part.more(self._fanout)
        self._ready.appendleft(part)
        self._more.set()

    def _finished(self, part: Part) -> None:
        if not part.whole or part is self.channel:
            self.leave()  # Half an event is on its way; or the replica drains, or its user left.
            return
        self._close(part.number)
        gone = part.viewer is not None and part.viewer.gone
        if gone and self._positions[part.number] is not Mark.ENDED:
            self._spawn(self._add(part.number, again=True))
        else:
            self._positions[part.number] = Mark.ENDED

    def _close(self, number: int) -> None:
        if part := self._open.pop(number, None):
            part.close(self._fanout)

    async def _add(self, number: int, *, again: bool = False) -> None:
        """Open a ticket, as often as it takes; of what this replica cannot do others may be able.

        An EventSource of its own would do the same.
        """
        left = _TRIES
        while left:
            if again:
                await asyncio.sleep(max(_PAUSE, self._retry.delay()))
            try:
                async with self._turns:
                    part = await self._part(number)
                self._wake(part)
                return
            except Unavailable as error:
                again = True
                left -= error.code in _ELSEWHERE
        self.leave()

    async def _part(self, number: int) -> Part:
        """Return the part of a ticket, or what is said where there is none; raises Unavailable."""
        place = self._positions[number]
        if isinstance(place, Mark):
            return Part(number, None, [_end(place)])
        try:
            return await self._opened(number, "" if place is None else str(place))
        except Rejected as error:
            refusal = error
        except Unavailable:
            raise
        except Exception:
            logger.exception("a ticket could not be opened")
            self._close(number)
            refusal = Rejected("internal")
        mark = Mark.EXPIRED if refusal.code == "ticket_expired" else Mark.FAILED
        return Part(number, None, [_failure(refusal, mark), _end(mark)])

    async def _opened(self, number: int, wanted: str) -> Part:
        asked = self._asked
        ticket = asked.tickets[number - 1]
        opening = await self._openings.open(ticket, asked.subject, wanted, snapshot=asked.snapshot)
        if isinstance(opening, NothingMore):
            raise Rejected("log_expired", "Ask for a new ticket.")
        part = self._open[number] = Part(number, *opening)
        if asked.text:
            await part.as_text(self._fanout)
        return part


def _failure(error: Rejected, mark: Mark) -> bytes:
    """Return the event of a ticket that cannot be opened; its id says that the end is due."""
    retryable = error.code != "ticket_not_found"
    told = failure(error.code, error.detail or error.title, retryable=retryable)
    return encode(json.dumps(told, separators=(",", ":")).encode(), mark.encode(), b"failure")


def _end(mark: Mark) -> bytes:
    state = "expired" if mark is Mark.EXPIRED else "failed"
    told = {"state": state, "finish_reason": None, "usage": None, "tokens": None}
    data = json.dumps(told, separators=(",", ":")).encode()
    return encode(data, Mark.ENDED.encode(), b"end")

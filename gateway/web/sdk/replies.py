"""Replies: a stream as an SDK reads it: as events, as one object, or as far as it has come.

The head waits: for the first event, or for what went wrong, so that an upstream's status arrives as
a status. Of a stream it waits no longer than for the first heartbeat, as a proxy would take a long
silence for a dead server; of an object there is nothing to send before it is whole.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from gateway.eventlog.fanout import Fanout
from gateway.runs.redemption import Opened
from gateway.sse import HEARTBEAT, Event, encode, lines
from gateway.upstream.protocols.api import Api, json_of
from gateway.upstream.protocols.problems import CANCELLED, Problem
from gateway.web.event_stream import EventStream, made
from gateway.web.responses import STREAM_HEADERS, Headers
from gateway.web.sdk.errors import failed
from gateway.web.sdk.reading import NO_PLACE, Position, Reading

SENT_AWAY = Problem(503, "sent_away", "The connection ends here; the stream goes on.", again=True)

_SLICE = 64 * 1024  # Bytes of an object that are sent at once.
_OBJECT_HEADERS: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Shown(NamedTuple):
    """What is told of a stream that is shown to somebody, and to whom it matters."""

    first: Callable[[Event], Awaitable[None]]  # Called with its first event, before it is sent.
    head: Callable[[], Awaitable[None]]  # Called before a head is that ends the asking.


async def _noted(_: Event) -> None:
    """Its first event was noted as it was asked for."""


async def _free() -> None:
    """Nothing is paid for by who asks again."""


UNNOTED = Shown(_noted, _free)  # Of what was begun before.


class Reply(EventStream):
    """One caller's response; who inherits says what is sent."""

    def __init__(
        self, fanout: Fanout, opened: Opened, api: Api, reading: Reading, shown: Shown
    ) -> None:
        super().__init__(fanout, opened, b"")
        self.raw_headers = []  # What is added for whatever the answer turns out to be.
        self.api = api
        self.reading = reading
        self.shown = shown

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = await self._tell(send)
        if problem is not None:
            if not problem.again:  # Who asks the same later is to have another answer.
                await self.shown.head()
            answer = failed(self.api, problem)
            answer.raw_headers += self.raw_headers
            await answer(scope, receive, send)

    async def _tell(self, send: Send) -> Problem | None:
        """Send the answer; or return what went wrong before anything was sent."""
        raise NotImplementedError

    async def next_events(self, *, waits: bool = True) -> list[Event] | None:
        """Return what comes next, nothing for a heartbeat; None where no more will, or is there."""
        viewer, reading = self.viewer, self.reading
        while not (viewer.finished or reading.over):
            chunk = viewer.take()
            if chunk == HEARTBEAT:
                return []
            if chunk:
                if events := await made(reading.feed, chunk, self.fanout.work):
                    return events
            elif viewer.lagging:
                await self.fanout.turn(viewer)
            elif not viewer.has_more:
                if not waits:
                    return None
                await viewer.wait()
        return None

    @property
    def problem(self) -> Problem | None:
        """Why the answer is not whole, after its last event."""
        return self.reading.problem if self.reading.over else SENT_AWAY

    async def send_piece(self, send: Send, body: bytes) -> None:
        """Send a part of the body; a caller who does not read is cut off."""
        self.viewer.sending()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self.viewer.sent()


class StreamReply(Reply):
    """The events, from where the caller is; one that is not whole ends with an error."""

    def __init__(
        self,
        fanout: Fanout,
        opened: Opened,
        api: Api,
        reading: Reading,
        position: Position,
        shown: Shown,
    ) -> None:
        super().__init__(fanout, opened, api, reading, shown)
        self._position = position
        self._begun = self._headed = False

    async def _tell(self, send: Send) -> Problem | None:
        while (events := await self.next_events()) is not None:
            if events and not self._begun:
                self._begun = True
                await self.shown.first(events[0])
            shown = b"".join([_framed(each) for each in self._position.shown(events)])
            if shown or not events:
                await self._head(send)
                await self.send_piece(send, shown or HEARTBEAT)
        problem = self.problem
        if self.reading.over and self._position.missed:
            problem = NO_PLACE
        if problem is not None and not self._headed:
            return problem
        await self._head(send)
        if problem is not None and not (self.reading.raised and self._position.told):
            event = self.api.error_event(problem, self._position.next)
            await self.send_piece(send, _framed(event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    async def _head(self, send: Send) -> None:
        if not self._headed:
            await self.shown.head()
            self._headed = True
            headers = [*STREAM_HEADERS, *self.raw_headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})


class ObjectReply(Reply):
    """The whole answer, as if it had never been streamed."""

    def __init__(
        self, fanout: Fanout, opened: Opened, api: Api, reading: Reading, shown: Shown
    ) -> None:
        super().__init__(fanout, opened, api, reading, shown)
        self._whole = api.whole()
        self._begun = False

    async def _tell(self, send: Send) -> Problem | None:
        while (events := await self.next_events()) is not None:
            if self.reading.anew:
                self.reading.anew, self._whole = False, self.api.whole()
                self._begun = False  # It has another id now.
            if events and not self._begun:
                self._begun = True
                await self.shown.first(events[0])
            for event in events:
                self._whole.see(event)
            self.viewer.sent()  # Nothing is, but the next heartbeat is to wake us again.
        if self.problem is not None:
            return self.problem
        await self.shown.head()
        await self._send_object(send, json_of(self._whole.answer()))
        return None

    async def _send_object(self, send: Send, body: bytes) -> None:
        length = [(b"content-length", b"%d" % len(body))]
        headers = [*_OBJECT_HEADERS, *length, *self.raw_headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(body), _SLICE):
            await self.send_piece(send, body[start : start + _SLICE])
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StateReply(ObjectReply):
    """The answer as far as it has come, or as it ended; `cancelled`: its log may not say so yet."""

    def __init__(
        self, fanout: Fanout, opened: Opened, api: Api, reading: Reading, *, cancelled: bool
    ) -> None:
        super().__init__(fanout, opened, api, reading, UNNOTED)
        self._cancelled = cancelled

    async def _tell(self, send: Send) -> Problem | None:
        while (events := await self.next_events(waits=False)) is not None:
            for event in events:
                self._whole.see(event)
            self.viewer.sent()
        problem = CANCELLED if self._cancelled else self.reading.problem
        answer = self.api.ended(self._whole.answer(), problem)
        if not answer:
            return problem or SENT_AWAY
        await self._send_object(send, json_of(answer))
        return None


def _framed(event: Event) -> bytes:
    """Return an event as it is sent; one of ours has no id, so that nobody goes on from there."""
    if event.id:
        return encode(event.data, event.id, event.name)
    return lines(event.data, event.name) + b"\n"

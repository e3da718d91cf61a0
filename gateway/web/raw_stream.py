"""Raw stream: the text of an answer as the body of a response, for who reads it with fetch.

There is no event to tell of a failure in, so what is not whole never ends cleanly: before the first
text it is a refusal, after it the connection is broken off, which the reader of a body is told.
"""

import asyncio
import json
import sys
from typing import Any, ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import Rejected, Unavailable
from gateway.eventlog.fanout import Fanout
from gateway.runs.redemption import Opened
from gateway.sse import HEARTBEAT, OURS, Event, Parser
from gateway.upstream.protocols.base import AnswerText
from gateway.web.event_stream import MUCH, EventStream, made, utf8
from gateway.web.responses import STREAM_HEADERS, Headers, Retry, rejected, unanswered, unavailable


class RawText:
    """Frames to text, as it was written; half a surrogate pair waits for its other half.

    Text that was sent, or that somebody has who has `begun`, cannot be taken back: what would is
    told by `broken`.
    """

    def __init__(self, answer: AnswerText, *, begun: bool) -> None:
        self.state = ""  # What the stream ended with.
        self.failure: dict[str, Any] = {}
        self.broken = False
        self._answer = answer
        self._begun = begun
        self._parser = Parser(limit=sys.maxsize)  # A large event comes in slices.
        self._half = ""

    def text_of(self, frames: bytes) -> bytes:
        """Return the text of frames; of what comes after it began anew nothing."""
        text = ""
        for event in self._parser.feed(frames):
            if event.name in OURS:
                text = self._ours(event, text)
            else:
                more = self._answer.text_of(event)
                text = (self._anew() if self._answer.anew else text) + more
            if self.broken:
                return b""
        return self._whole(text)

    def rest(self) -> bytes:
        """Return what waited for more, at the end."""
        half, self._half = self._half, ""
        return self.written(half)

    def unfinished(self, text: str) -> str:
        """Return the end of a text that waits for what follows it."""
        return text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""

    def written(self, text: str) -> bytes:
        """Return a text as it is sent."""
        return utf8(text)

    def _ours(self, event: Event, text: str) -> str:
        if event.name == b"failure":
            self.failure = json.loads(event.data)
        elif event.name == b"end":
            self.state = json.loads(event.data)["state"]
        else:
            return self._anew()
        return text

    def _anew(self) -> str:
        self.broken, self._half = self._begun, ""
        return ""

    def _whole(self, text: str) -> bytes:
        """Return what can be sent of a text now."""
        text = self._half + text
        self._half = self.unfinished(text)
        self._begun = self._begun or bool(text)
        return self.written(text[: len(text) - len(self._half)])


class RawStream(EventStream):
    """One viewer's response; its head waits for the first text, or for what there is instead."""

    head: ClassVar[Headers] = [(b"content-type", b"text/plain; charset=utf-8"), *STREAM_HEADERS[1:]]
    made_of: ClassVar[type[RawText]] = RawText

    __slots__ = ("_more", "_retry", "_started")

    def __init__(self, fanout: Fanout, opened: Opened, retry: Retry, *, more: bool) -> None:
        super().__init__(fanout, opened, b"", text=True)
        self.raw_headers = []  # What is added for whatever the answer turns out to be.
        self._retry = retry
        self._more = more  # Whether its caller has the text up to somewhere.
        self._started = False

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.protocol is not None
        raw = self.made_of(await self.begun_text(self.protocol), begun=self._more)
        await self._send_text(raw, send)
        if raw.state == "done":
            await self._send(raw.rest(), send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self._started:
            refusal = self._refusal(raw)
            refusal.raw_headers += self.raw_headers
            await refusal(scope, receive, send)
        elif closed := scope.get("extensions", {}).get("gateway.closed"):
            await closed.hang_up()
        else:
            raise ConnectionAbortedError("The answer is not whole.")  # Its server closes then.

    async def _send_text(self, raw: RawText, send: Send) -> None:
        viewer = self.viewer
        while not (viewer.finished or raw.broken):
            chunk = viewer.take()
            if chunk == HEARTBEAT:
                viewer.sent()  # None can be sent between the parts of a text.
            elif chunk:
                text = await made(raw.text_of, chunk, self.fanout.work)
                if text:
                    await self._send(text, send)
                if len(chunk) >= MUCH:
                    await asyncio.sleep(0)
            elif viewer.lagging:
                await self.fanout.turn(viewer)
            elif not viewer.has_more:
                await viewer.wait()

    async def _send(self, text: bytes, send: Send) -> None:
        if not self._started:
            self._started = True
            headers = [*self.head, *self.raw_headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.viewer.sending()
        await send({"type": "http.response.body", "body": text, "more_body": True})
        self.viewer.sent()

    def _refusal(self, raw: RawText) -> Response:
        """Return why there is no text, or none after what the caller has."""
        if raw.broken:
            return rejected(Rejected("log_expired", "The answer began anew: read all of it."))
        if raw.state:
            return unanswered(raw.state, raw.failure)
        error = Unavailable("draining") if self.fanout.closing else Unavailable("not_yet")
        return unavailable(error, self._retry, names_stream=False)

"""Event stream: one viewer's response, as it is or with text as its data.

A stream is plain ASGI `send`, one join per wake: that spares the memory of a Response class and its
task group.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from gateway.errors import Unavailable
from gateway.eventlog.fanout import Fanout
from gateway.runs.redemption import Opened
from gateway.sse import HEARTBEAT, OURS, Event, Parser, encode
from gateway.upstream.protocols.base import AnswerText, Protocol
from gateway.upstream.protocols.table import logged_protocol
from gateway.web.responses import STREAM_HEADERS, LongText

T = TypeVar("T")

MUCH = 8 * 1024  # Bytes after which others have their turn.

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\r\ud800-\udbff]\\Z")


class EventStream:
    """One viewer's response, from its cursor to the end of the stream."""

    status_code = 200

    __slots__ = (
        *("_before", "_first", "_plain", "_seat", "fanout", "protocol", "viewer"),
        "raw_headers",
    )

    def __init__(
        self,
        fanout: Fanout,
        opened: Opened,
        first: bytes,
        *,
        text: bool = False,
        before: Iterable[bytes] = (),
    ) -> None:
        self.raw_headers = list(STREAM_HEADERS)
        self.fanout = fanout
        self.viewer, self._seat, dialect = opened
        self._first = first
        self._before = before  # An event that stands for those up to where the viewer begins.
        self.protocol = logged_protocol(dialect) if text else None
        self._plain: PlainText | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames as they come; a viewer who leaves or does not read ends it."""
        viewer = self.viewer
        extensions = scope.get("extensions", {})
        viewer.abort = extensions.get("gateway.abort")
        closed = extensions.get("gateway.closed")
        leaving = None if closed else asyncio.create_task(left(receive, viewer.leave))
        if closed:
            closed.add(viewer.leave)
            scope["headers"].clear()  # Nobody asks any more; a browser's are some kilobytes.
        try:
            await self._respond(scope, receive, send)
        finally:
            if closed:
                closed.discard(viewer.leave)
            if leaving:
                leaving.cancel()
            self.fanout.detach(viewer)
            self._seat()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.protocol is not None:
            self._plain = PlainText(await self.begun_text(self.protocol))
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send_before(send)  # Nothing else is written before it is through.
        if self._plain is None:
            self.viewer.write = scope.get("extensions", {}).get("gateway.write")
        await self._send_all(send)

    async def begun_text(self, protocol: Protocol) -> AnswerText:
        """Return the text of the answer from where the viewer begins."""
        tail = self.viewer.tail
        return protocol.text(await self.fanout.begun_with(tail), tail.choices)

    async def _send_all(self, send: Send) -> None:
        viewer = self.viewer
        # The head of the first block, at once: it flushes the headers without an event of its own.
        chunk = self._first + (viewer.take() if self._plain is None else b"")
        while not viewer.finished or chunk:
            if chunk:
                viewer.sending()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                viewer.sent()
            elif viewer.lagging:
                await self.fanout.turn(viewer)
            elif not viewer.has_more:
                await viewer.wait()
            if len(chunk) >= MUCH:
                await asyncio.sleep(0)  # A socket that takes megabytes must not keep the others.
            chunk = b"" if viewer.finished else viewer.take()
            if self._plain is not None and chunk and chunk != HEARTBEAT:
                chunk = await made(self._plain.frames, chunk, self.fanout.work)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_before(self, send: Send) -> None:
        for piece in self._before:
            self.viewer.sending()
            body = self._first + piece
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.viewer.sent()
            self._first = b""
        self._before = ()


@contextmanager
def readable(fanout: Fanout, opened: Opened) -> Iterator[None]:
    """Let go of a viewer of what this replica turns out not to be able to read."""
    try:
        yield
    except Unavailable:
        fanout.detach(opened.viewer)
        opened.seat()
        raise


class SnapshotEvent:
    """The event `snapshot`, in pieces; its id is the position that it covers."""

    def __init__(self, data: LongText, event_id: str) -> None:
        self.id = event_id
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        head, tail = encode(b"\0", self.id.encode(), b"snapshot").split(b"\0")
        yield head
        yield from self._data
        yield tail


async def made(make: Callable[[bytes], T], chunk: bytes, work: asyncio.Lock) -> T:
    """Return what a chunk is made into; what takes its time lets others have theirs."""
    if len(chunk) < MUCH:
        return make(chunk)
    async with work:  # One at a time, however many read a whole log at once.
        await asyncio.sleep(0)
        return make(chunk)


async def left(receive: Receive, leave: Callable[[], None]) -> None:
    """Call `leave` once the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


class PlainText:
    """Frames with only the answer's text as data, all unnamed; ids and our own events stay.

    An upstream may cut a surrogate pair or a CR LF in two. An event that ends so waits for the next
    one and goes out under its id, so a resume between the two loses neither half.
    """

    def __init__(self, answer: AnswerText) -> None:
        self._answer = answer
        self._parser = Parser(limit=sys.maxsize)  # A large event comes in slices.
        self._waiting: Event | None = None
        self._text = ""

    def frames(self, frames: bytes) -> bytes:
        """Return what to send for these; b"" if there is nothing yet."""
        parts: list[bytes] = []
        for event in self._parser.feed(frames):
            if event.name in OURS:
                parts += [self._flush(), encode(event.data, event.id, event.name)]
            elif text := self._answer.text_of(event):
                self._text += text
                self._waiting = event
                if not _HALF.search(self._text):
                    parts.append(self._flush())
        return b"".join(parts)

    def _flush(self) -> bytes:
        if self._waiting is None:
            return b""
        text = self._text.replace("\r\n", "\n").replace("\r", "\n")
        frame = encode(utf8(text), self._waiting.id)
        self._waiting, self._text = None, ""
        return frame


def utf8(text: str) -> bytes:
    """Return a text of which halves of surrogate pairs may have come one by one."""
    return _PAIR.sub(_character, text).encode("utf-8", "replace")


def _character(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")

"""Responses: what goes over the wire, as ASGI callables: streams, refusals, come-back-laters.

A browser's EventSource gives up for ever on anything but 200, so what will pass is 200 with a
`retry:` line and a close. A stream is plain ASGI `send`, one join per wake: that spares the
memory of a Response class and its task group.
"""

import asyncio
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.chat import Voice
from gateway.errors import Passing, Refusal
from gateway.records import Created
from gateway.sse import HEARTBEAT, OURS, Event, Parser, encode, retry
from gateway.tails import Tails
from gateway.viewer import Viewer

Headers = list[tuple[bytes, bytes]]

_MUCH = 8 * 1024  # Bytes after which others have their turn.
_SLICE = 16 * 1024  # Bytes of a long reply that are sent at once.

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Retry:
    """Jittered reconnection times, a third of the grace at most: a reload must not look like a
    viewer who left."""

    def __init__(self, grace: float) -> None:
        self._longest = int(min(3.0, grace / 3) * 1000)

    def line(self) -> bytes:
        """Return a `retry:` line, another for every connection: they must not come in step."""
        return retry(random.randint(max(1, self._longest // 3), max(1, self._longest)))

    def seconds(self) -> int:
        """Return a value for Retry-After."""
        return random.randint(1, max(1, self._longest // 1000))


class EventStream:
    """One viewer's response, from its cursor to the end of the stream."""

    status_code = 200

    # fmt: off
    __slots__ = (
        "_first", "_plain", "_tails", "_text", "_viewer", "on_close", "raw_headers",
    )
    # fmt: on

    def __init__(self, tails: Tails, viewer: Viewer, first: bytes, *, text: bool = False) -> None:
        self.raw_headers = list(_STREAM_HEADERS)
        self._tails = tails
        self._viewer = viewer
        self._first = first
        self._text = text
        self._plain: PlainText | None = None
        self.on_close: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames as they come; a viewer who leaves or does not read ends it."""
        viewer = self._viewer
        extensions = scope.get("extensions", {})
        viewer.abort = extensions.get("gateway.abort")
        closed = extensions.get("gateway.closed")
        leaving = None if closed else asyncio.create_task(_left(receive, viewer))
        if closed:
            closed.add(viewer.leave)
            scope["headers"].clear()  # Nobody asks any more; a browser's are some kilobytes.
        try:
            if self._text:
                self._plain = PlainText(await self._tails.voice(viewer.tail))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if self._plain is None:
                viewer.write = extensions.get("gateway.write")
            await self._send_all(send)
        finally:
            if closed:
                closed.discard(viewer.leave)
            if leaving:
                leaving.cancel()
            self._tails.detach(viewer)
            if self.on_close is not None:
                self.on_close()

    async def _send_all(self, send: Send) -> None:
        viewer = self._viewer
        # The head of the first block, at once: it flushes the headers without an event of its own.
        chunk = self._first + (viewer.take() if self._plain is None else b"")
        while not viewer.finished or chunk:
            if chunk:
                viewer.sending()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                viewer.sent()
            elif viewer.lagging:
                await self._tails.turn(viewer)
            elif not viewer.has_more:
                await viewer.wait()
            if len(chunk) >= _MUCH:
                await asyncio.sleep(0)  # A socket that takes megabytes must not keep the others.
            chunk = b"" if viewer.finished else viewer.take()
            if self._plain is not None and chunk and chunk != HEARTBEAT:
                chunk = await self._plainly(self._plain, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _plainly(self, plain: "PlainText", chunk: bytes) -> bytes:
        if len(chunk) < _MUCH:
            return plain.frames(chunk)
        async with self._tails.work:  # One at a time, however many read a whole log at once.
            await asyncio.sleep(0)
            return plain.frames(chunk)


async def _left(receive: Receive, viewer: Viewer) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            viewer.leave()
            return


_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\r\ud800-\udbff]\\Z")


class PlainText:
    """Frames with only the answer's text as data, all unnamed; ids and our own events stay.

    An upstream may cut a surrogate pair or a CR LF in two. An event that ends so waits for the next
    one and goes out under its id, so a resume between the two loses neither half.
    """

    def __init__(self, voice: Voice | None = None) -> None:
        self._voice = voice or Voice(0)
        self._parser = Parser(limit=sys.maxsize)  # A large event comes in slices.
        self._waiting: Event | None = None
        self._text = ""

    def frames(self, frames: bytes) -> bytes:
        """Return what to send for these; b"" if there is nothing yet."""
        parts: list[bytes] = []
        for event in self._parser.feed(frames):
            if event.name in OURS:
                parts += [self._flush(), encode(event.data, event.id, event.name)]
            elif text := self._voice.text_of(event.data):
                self._text += text
                self._waiting = event
                if not _HALF.search(self._text):
                    parts.append(self._flush())
        return b"".join(parts)

    def _flush(self) -> bytes:
        if self._waiting is None:
            return b""
        text = _PAIR.sub(_character, self._text).replace("\r\n", "\n").replace("\r", "\n")
        frame = encode(text.encode("utf-8", "replace"), self._waiting.id)
        self._waiting, self._text = None, ""
        return frame


def _character(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def reply(
    data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a JSON answer that nobody keeps."""
    return Response(
        json.dumps(data, separators=(",", ":")),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        "application/json",
    )


def issued(ticket: str, url: str, created: Created) -> Response:
    """Return the answer to who asked for a ticket."""
    data = {"ticket": ticket, "stream_url": url, "expires_in": created.seconds_left}
    return reply(data, 201 if created.made else 200, {"Location": url})


class LongReply:
    """A JSON object that nobody keeps, and of which one value is a long text; `text` is written as
    it is in JSON, without its quotes, and all who ask for it share it."""

    status_code = 200

    def __init__(
        self, data: dict[str, Any], name: str, text: bytearray, write_timeout: float
    ) -> None:
        head, tail = json.dumps({name: "", **data}, separators=(",", ":")).encode().split(b'""', 1)
        self._before, self._text, self._after = head + b'"', text, b'"' + tail
        self._size = len(text)  # It may grow while it is sent.
        self._write_timeout = write_timeout
        length = len(self._before) + self._size + len(self._after)
        self.raw_headers: Headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % length),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a slice at a time; a caller who does not read is cut off."""
        abort = scope.get("extensions", {}).get("gateway.abort")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for body in self._slices():
            try:
                async with asyncio.timeout(self._write_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except TimeoutError:
                if abort is None:
                    raise
                abort()
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _slices(self) -> Iterator[bytes]:
        yield self._before + bytes(self._text[: min(self._size, _SLICE)])
        for start in range(_SLICE, self._size, _SLICE):
            yield bytes(self._text[start : min(self._size, start + _SLICE)])
        yield self._after


def nothing_more() -> Response:
    """Return the one answer after which an EventSource stops for good."""
    return Response(None, 204, {"Cache-Control": "no-store"})


def refusal(error: Refusal) -> Response:
    """Return a refusal as a problem (RFC 9457) with its stable code."""
    return _problem(error.status, error.code, error.title, error.detail, error.headers)


def passing(error: Passing, times: Retry, names_stream: bool) -> Response:
    """Return what will pass: 200 and a retry to an EventSource's GET, 503 or 429 to others."""
    if names_stream:
        body = times.line() + b": %s\n" % error.code.encode()
        response = Response(body, 200)
        response.raw_headers = [
            *_STREAM_HEADERS,
            (b"content-length", b"%d" % len(body)),
        ]
        return response
    headers = {"Retry-After": str(times.seconds()), **error.headers}
    return _problem(error.status, error.code, error.title, error.detail, headers)


def _problem(status: int, code: str, title: str, detail: str, headers: dict[str, str]) -> Response:
    problem = {"type": "about:blank", "title": title, "status": status, "code": code}
    if detail:
        problem["detail"] = detail
    return Response(
        json.dumps(problem),
        status,
        {"Cache-Control": "no-store", **headers},
        "application/problem+json",
    )


Answer = Response | LongReply | EventStream

"""Responses: what goes over the wire, as ASGI callables: replies, refusals, come-back-laters.

A browser's EventSource gives up for ever on anything but 200, so what will pass is 200 with a
`retry:` line and a close.
"""

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.config.user_limits import UNBOUNDED, Bounds
from gateway.errors import Rejected, Unavailable
from gateway.runs.record import Created
from gateway.sse import comment, retry

Headers = list[tuple[bytes, bytes]]

_NOTHING: dict[str, str] = {}
_SLICE = 16 * 1024  # Bytes of a long reply that are sent at once.

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


def as_raw(headers: Mapping[str, str]) -> Headers:
    """Return headers as ASGI has them."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


class Retry:
    """Jittered reconnection times, a third of the grace at most: a reload must not look like a
    viewer who left."""

    def __init__(self, grace: Callable[[], float]) -> None:
        self._grace = grace

    @property
    def _longest(self) -> int:
        return int(min(3.0, self._grace() / 3) * 1000)

    def line(self) -> bytes:
        """Return a `retry:` line, another for every connection: they must not come in step."""
        return retry(self._milliseconds())

    def delay(self) -> float:
        """Return the seconds that an EventSource would wait."""
        return self._milliseconds() / 1000

    def _milliseconds(self) -> int:
        return random.randint(max(1, self._longest // 3), max(1, self._longest))

    def seconds(self) -> int:
        """Return a value for Retry-After."""
        return random.randint(1, max(1, self._longest // 1000))


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


def issued(ticket: str, url: str, created: Created, bounds: Bounds = UNBOUNDED) -> Response:
    """Return the answer to who asked for a ticket, and what is left of their `bounds`."""
    data = {"ticket": ticket, "stream_url": url, "expires_in": created.seconds_left}
    left = left_headers(created, bounds)
    return reply(data, 201 if created.made else 200, {"Location": url, **left})


def left_headers(created: Created, bounds: Bounds) -> dict[str, str]:
    """Return what tells who has asked for a stream what is left of their `bounds`."""
    return created.left.headers(bounds) if created.left else {}


class LongText:
    """A JSON object of which one value is a long text, in pieces; `text` is written as it is in
    JSON, without its quotes, and all who ask for it share it: who does not read holds no copy."""

    def __init__(self, data: dict[str, Any], name: str, text: bytearray) -> None:
        head, tail = json.dumps({name: "", **data}, separators=(",", ":")).encode().split(b'""', 1)
        self._before, self._text, self._after = head + b'"', text, b'"' + tail
        self._size = len(text)  # It may grow while it is sent.

    def __len__(self) -> int:
        return len(self._before) + self._size + len(self._after)

    def __iter__(self) -> Iterator[bytes]:
        yield self._before + bytes(self._text[: min(self._size, _SLICE)])
        for start in range(_SLICE, self._size, _SLICE):
            yield bytes(self._text[start : min(self._size, start + _SLICE)])
        yield self._after


class LongReply:
    """A long object that nobody keeps."""

    status_code = 200

    def __init__(self, body: LongText, write_timeout: float) -> None:
        self._body = body
        self._write_timeout = write_timeout
        self.raw_headers: Headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % len(body)),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a slice at a time; a caller who does not read is cut off."""
        abort = scope.get("extensions", {}).get("gateway.abort")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for body in self._body:
            try:
                async with asyncio.timeout(self._write_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except TimeoutError:
                if abort is None:
                    raise
                abort()
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def nothing_more() -> Response:
    """Return the one answer after which an EventSource stops for good."""
    return Response(None, 204, {"Cache-Control": "no-store"})


def rejected(error: Rejected) -> Response:
    """Return a refusal as a problem (RFC 9457) with its stable code."""
    more = {"reason": error.reason} if error.reason else {}
    return _problem(error.status, error.code, error.title, error.detail, error.headers, more)


def unavailable(error: Unavailable, times: Retry, names_stream: bool) -> Response:
    """Return what will pass: 200 and a retry to an EventSource's GET, 503 or 429 to others."""
    if names_stream:
        body = times.line() + comment(error.code.encode())
        response = Response(body, 200)
        response.raw_headers = [
            *STREAM_HEADERS,
            (b"content-length", b"%d" % len(body)),
        ]
        return response
    headers = {"Retry-After": str(times.seconds()), **error.headers}
    return _problem(error.status, error.code, error.title, error.detail, headers)


def unanswered(state: str, failure: dict[str, Any]) -> Response:
    """Return why a stream that ended in a `state` has no text, or no more than was had."""
    more = {"state": state}
    words = str(failure.get("message", ""))
    title = "The stream ended before its answer was whole"
    return _problem(502, str(failure.get("code", state)), title, words, {}, more)


def _problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: dict[str, str],
    more: dict[str, str] = _NOTHING,
) -> Response:
    problem = {"type": "about:blank", "title": title, "status": status, "code": code, **more}
    if detail:
        problem["detail"] = detail
    return Response(
        json.dumps(problem),
        status,
        {"Cache-Control": "no-store", **headers},
        "application/problem+json",
    )

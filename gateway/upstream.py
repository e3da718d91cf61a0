"""Upstream: asking for a completion, and understanding just enough of the answer.

The bytes go to the viewers untouched. What is read from them is the end and the price, and only
from events whose bytes say that they hold one: no JSON is decoded for the rest.

The end of a connection is not the end of a completion. That is a finish reason, or `[DONE]`, which
some servers never send.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx

from gateway.errors import UpstreamFailure
from gateway.presets import Preset
from gateway.sse import Event
from gateway.transport import Body, Message, Reply, Transport

DONE = b"[DONE]"
_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "sse-ticket-gateway",
}
_BODY_WAIT = 2.0  # Seconds for the body of a refusal.
_BODY_SHOWN = 64 * 1024  # Bytes read of a refusal.
_SECRET = 8  # Characters; what is shorter is a word.
_MESSAGE = 500  # Characters of it that a page gets to see.
_TELLING = re.compile(rb'"(?:finish_reason|usage|error)"\s*:\s*[^\sn]')
_ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


class Reading:
    """What a streamed chat completion has told so far."""

    def __init__(self, choices: int = 1) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.closed = False
        self.pieces = 0
        self._choices = choices
        self._finished: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether the upstream said that the completion is whole."""
        return self.error is None and (self.closed or len(self._finished) >= self._choices)

    def see(self, event: Event) -> None:
        """Take note of one event."""
        data = event.data
        if data == DONE:
            self.closed = True
            return
        self.pieces += b'"content"' in data
        if _TELLING.search(data):
            self._read(_decoded(data))

    def _read(self, chunk: dict[str, Any]) -> None:
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in _choices_of(chunk):
            reason, index = choice.get("finish_reason"), choice.get("index", 0)
            if reason and isinstance(index, int):
                if reason == "error":  # Some say so instead of, or beside, an error object.
                    self._fail(choice.get("error") or chunk.get("error") or {})
                self._finished.add(index)
                if index == 0:
                    self.finish_reason = str(reason)
        if chunk.get("error"):
            self._fail(chunk["error"])

    def _fail(self, error: Any) -> None:
        if not self.finished:  # After a clean finish nothing can undo it.
            self.error = error if isinstance(error, dict) else {"message": str(error)}

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, or a guess where the upstream never told it: a piece is a token."""
        if self.usage is not None or not self.pieces:
            return self.usage
        return {"completion_tokens": self.pieces, "estimated": True}


def text_of(data: bytes) -> str:
    """Return the text that an event adds to choice 0; "" for anything else."""
    if b'"content"' not in data:
        return ""
    for choice in _choices_of(_decoded(data)):
        delta = choice.get("delta")
        if choice.get("index", 0) == 0 and isinstance(delta, dict):
            content = delta.get("content")
            return content if isinstance(content, str) else ""
    return ""


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(data, parse_constant=lambda _: None)  # NaN would not be JSON for a page.
    except (ValueError, RecursionError):
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _choices_of(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


class Asks(Protocol):
    """What a run gets its answer from: a new request, or the rest of one that was sent before."""

    def ask(self, preset: Preset, request: bytes) -> AbstractAsyncContextManager["Chunks"]:
        """Yield the chunks of an answer; raises UpstreamFailure, also from them."""


class Upstream:
    """Asks for completions; one instance, and one pool of connections, a process."""

    def __init__(self) -> None:
        self._transport = Transport()
        self._messages: dict[int, tuple[Preset, Message]] = {}  # Of the presets, by identity.

    def ask(self, preset: Preset, request: bytes) -> "Asking":
        """Return the context of one request: its body's chunks; raises UpstreamFailure there.

        There is no time-out for the first byte or for silence here: the run's owner watches those.
        """
        return Asking(self, preset, request)

    async def send(self, preset: Preset, request: bytes) -> Reply:
        """Send one request; raises UpstreamFailure."""
        try:
            return await self._transport.send(self._message(preset), request, preset.connect)
        except _ERRORS as error:
            raise _unanswered(error) from error

    def reattach(self, preset: Preset, seen: Iterable[Event]) -> Asks | None:
        """Return the way to an answer's rest, at no further price; None if there is none.

        A chat completion is lost with its connection. One that is kept by the upstream, as a
        background response is, can be gone on with by whoever overrides this: `seen` are its events
        up to the last one logged, data byte for byte, so its id and the last number are among them.
        What is yielded must begin with the event after that; what is raised ends the stream.
        """
        return None

    def _message(self, preset: Preset) -> Message:
        known = self._messages.get(id(preset))
        if known is None:
            known = self._messages[id(preset)] = preset, Message.of(_request(preset, "POST"))
        return known[1]

    async def reach(self, preset: Preset) -> int:
        """Return the status of a request that asks for nothing; raises UpstreamFailure."""
        try:
            async with asyncio.timeout(preset.connect):
                sent = Message.of(_request(preset, "OPTIONS"))
                reply = await self._transport.send(sent, b"", preset.connect)
            await reply.body.aclose()
            return reply.status
        except _ERRORS as error:
            raise _unanswered(error) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def _request(preset: Preset, method: str) -> httpx.Request:
    headers = httpx.Headers(_HEADERS)
    if key := preset.api_key.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    headers.update(preset.headers)
    return httpx.Request(method, httpx.URL(preset.url), headers=headers)


class Asking:
    """One request, from its sending to the end of what reads it; an `async with` of its Chunks.

    No generator, and nothing of the response but its body: with thousands of silent streams it is
    what is kept that counts.
    """

    __slots__ = ("_body", "_preset", "_request", "_upstream")

    def __init__(self, upstream: Upstream, preset: Preset, request: bytes) -> None:
        self._upstream = upstream
        self._preset = preset
        self._request = request
        self._body: Body | None = None

    async def __aenter__(self) -> "Chunks":
        reply = await self._upstream.send(self._preset, self._request)
        self._body = reply.body
        try:
            return await _chunks(reply, self._preset)
        except BaseException:
            await reply.body.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        assert self._body is not None
        await self._body.aclose()


async def _chunks(reply: Reply, preset: Preset) -> "Chunks":
    """Return the body of a stream; raises UpstreamFailure if it is none."""
    response = httpx.Response(reply.status, headers=reply.headers, stream=reply.body)
    if response.status_code != 200:
        raise _refused(response, await _start_of(response, preset), preset)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise _no_stream(kind, await _start_of(response, preset), preset)
    encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
    return Chunks(reply.body, response.aiter_bytes() if encoded else None)


class Chunks:
    """The body of a stream, decoded if need be; raises UpstreamFailure where it breaks."""

    __slots__ = ("_body", "_decoded")

    def __init__(self, body: Body, decoded: AsyncIterator[bytes] | None) -> None:
        self._body = body
        self._decoded = decoded  # One for all calls: httpx lets a body be read by one only.

    async def each(self, handle: Callable[[bytes], bool]) -> bool:
        """Hand over what comes until `handle` says stop; return whether it did."""
        if self._decoded is not None:
            async for chunk in self:
                if handle(chunk):
                    return True
            return False
        try:
            return await self._body.each(handle)
        except _ERRORS as error:
            raise _broken() from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._decoded or self._body:
                yield chunk
        except _ERRORS as error:
            raise _broken() from error


def _broken() -> UpstreamFailure:
    return UpstreamFailure(
        "upstream_cut",
        "The connection to the upstream broke before the completion was whole.",
        state="truncated",
        retryable=True,
    )


async def _start_of(response: httpx.Response, preset: Preset) -> bytes:
    body = b""
    with suppress(*_ERRORS):  # What came is enough: the status tells the story.
        async with asyncio.timeout(min(_BODY_WAIT, preset.first_byte / 2)):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) >= _BODY_SHOWN:
                    break
    return body[:_BODY_SHOWN]


def _unanswered(error: Exception) -> UpstreamFailure:
    """Tell a connection that was never made from one that may have carried the request."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return UpstreamFailure(
            "upstream_unreachable",
            "The upstream could not be reached.",
            state="failed",
            retryable=True,
            sure=True,
        )
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError)):
        return UpstreamFailure(
            "upstream_misconfigured", "The upstream's address is wrong.", state="failed"
        )
    return UpstreamFailure(
        "upstream_cut",
        "The upstream took the request and closed the connection.",
        state="truncated",
        retryable=True,
    )


def _refused(response: httpx.Response, body: bytes, preset: Preset) -> UpstreamFailure:
    status = response.status_code
    again = status == 429 or status >= 500
    return UpstreamFailure(
        "upstream_refused",
        _message(body, preset) or f"The upstream answered {status}.",
        state="failed",
        status=status,
        retryable=again,
        sure=again,
        retry_after=_retry_after(response.headers),
    )


def _no_stream(kind: str, body: bytes, preset: Preset) -> UpstreamFailure:
    said = _message(body, preset) if kind == "application/json" else ""
    shown = kind or "something without a type"
    return UpstreamFailure(
        "upstream_not_a_stream",
        said or f"The upstream answered with {shown} instead of an event stream.",
        state="failed",
        status=200,
    )


def _message(body: bytes, preset: Preset) -> str:
    """Return an error body's message, bounded, and without our keys should it quote them."""
    error = _decoded(body).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    if not isinstance(error, str):
        text = body.decode("utf-8", "replace").strip()
        error = "" if text.startswith("<") else text
    for secret in (preset.api_key.get_secret_value(), *preset.headers.values()):
        if len(secret) >= _SECRET:
            error = error.replace(secret, "***").replace(secret.removeprefix("Bearer "), "***")
    return error[:_MESSAGE]


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds to wait (RFC 9110 §10.2.3: a number or a date), None if not told."""
    value = headers.get("retry-after", "").strip()
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None

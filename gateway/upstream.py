"""Upstream: asking for a completion, and the way to the bytes of its answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

import httpx

from gateway.failures import broken, no_stream, refused, unanswered
from gateway.presets import Preset
from gateway.sse import Event
from gateway.transport import Body, Message, Reply, Transport

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "sse-ticket-gateway",
}
_BODY_WAIT = 2.0  # Seconds for the body of a refusal.
_BODY_SHOWN = 64 * 1024  # Bytes read of a refusal.
_ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


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
            raise unanswered(error) from error

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
            raise unanswered(error) from error

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
        raise refused(response, await _start_of(response, preset), preset)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise no_stream(kind, await _start_of(response, preset), preset)
    encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
    chunks = Chunks(reply.body, response.aiter_bytes() if encoded else None)
    chunks.framed = not {"content-length", "transfer-encoding"}.isdisjoint(response.headers)
    return chunks


class Chunks:
    """The body of a stream, decoded if need be; raises UpstreamFailure where it breaks."""

    __slots__ = ("_body", "_decoded", "framed")

    def __init__(self, body: Body, decoded: AsyncIterator[bytes] | None) -> None:
        self.framed = False  # Whether HTTP tells the body's end: without, a cut may look like one.
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
            raise broken() from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._decoded or self._body:
                yield chunk
        except _ERRORS as error:
            raise broken() from error


async def _start_of(response: httpx.Response, preset: Preset) -> bytes:
    body = b""
    with suppress(*_ERRORS):  # What came is enough: the status tells the story.
        async with asyncio.timeout(min(_BODY_WAIT, preset.first_byte / 2)):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) >= _BODY_SHOWN:
                    break
    return body[:_BODY_SHOWN]

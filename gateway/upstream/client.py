"""Client: asking for a completion, and the way to the bytes of its answer."""

import asyncio
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import httpx

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.answers import ERRORS, Chunks, opened
from gateway.upstream.failures import unanswered
from gateway.upstream.transport import Body, Message, Reply, Transport

__all__ = ["Asking", "Chunks", "Upstream", "UpstreamRequest"]

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "sse-ticket-gateway",
}


class UpstreamRequest(Protocol):
    """What a run gets its answer from: a new request, or the rest of one that was sent before."""

    def ask(self, preset: Preset, request: bytes) -> AbstractAsyncContextManager[Chunks]:
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
        except ERRORS as error:
            raise unanswered(error) from error

    def reattach(self, preset: Preset, seen: Iterable[Event]) -> UpstreamRequest | None:
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
        except ERRORS as error:
            raise unanswered(error) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def _request(preset: Preset, method: str) -> httpx.Request:
    headers = httpx.Headers(_HEADERS)
    if key := preset.api_key.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    # As bytes: httpx takes a text for ASCII.
    latin = {name: value.encode("latin-1") for name, value in preset.headers.items()}
    headers.update({name.encode(): value for name, value in latin.items()})
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

    async def __aenter__(self) -> Chunks:
        reply = await self._upstream.send(self._preset, self._request)
        self._body = reply.body
        try:
            return await opened(reply, self._preset)
        except BaseException:
            await reply.body.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        assert self._body is not None
        await self._body.aclose()

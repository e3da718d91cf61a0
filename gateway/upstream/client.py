"""Client: asking for a completion, and the way to the bytes of its answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol, TypeVar

import httpx

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.sse import Event
from gateway.tasks import Tasks
from gateway.upstream.answers import ERRORS, Chunks, opened, whole
from gateway.upstream.failures import unanswered
from gateway.upstream.protocols.base import NONE, HttpRequest, Rest
from gateway.upstream.protocols.table import protocol_of
from gateway.upstream.transport import Body, Message, Reply, Transport

T = TypeVar("T")

logger = logging.getLogger("gateway.upstream.client")

__all__ = ["Asking", "Chunks", "Upstream", "UpstreamRequest"]

_OK, _AWAY = 200, 500
_LATER = frozenset({408, 425, 429})  # Others below 500 are the last word, as of what has ended.
_SHORT = 10.0  # Seconds for an answer that is no completion.
_STOPS = (0.0, 0.5, 2.0)  # Seconds before each time that an upstream is told to stop.
_LAST = 5.0  # Seconds in which upstreams are told to stop at the end of the process.
_HEADS = 256  # Heads of requests that are kept ready.


class UpstreamRequest(Protocol):
    """What a run gets its answer from: a new request, or the rest of one that was sent before."""

    @property
    def last(self) -> int:
        """The number of the last event that is logged of the answer, NONE of a new one."""

    def ask(self, preset: Preset, request: bytes) -> AbstractAsyncContextManager[Chunks]:
        """Yield the chunks of an answer; raises UpstreamFailure, also from them."""

    def reattach(self, preset: Preset, seen: Iterable[Event]) -> "UpstreamRequest | None":
        """Return the way to an answer's rest, None if there is none."""

    def looks(self, preset: Preset, seen: Iterable[Event]) -> "Awaitable[bool] | None":
        """Return what asks whether a silent answer goes on, None if nobody can be asked."""


class Upstream:
    """Asks for completions; one instance, and one pool of connections, a process."""

    last = NONE

    def __init__(self) -> None:
        self._transport = Transport()
        self._tasks = Tasks()
        self._messages: dict[tuple[Any, ...], Message] = {}

    def ask(self, preset: Preset, request: bytes) -> "Asking":
        """Return the context of one request: its body's chunks; raises UpstreamFailure there.

        There is no time-out for the first byte or for silence here: the run's owner watches those.
        """
        return Asking(self, preset, request)

    def reattach(self, preset: Preset, seen: Iterable[Event]) -> UpstreamRequest | None:
        """Return the way to an answer's rest, as its protocol knows it; None if there is none."""
        protocol = protocol_of(preset)
        rest = _understood(protocol.rest, preset, seen) if protocol.keeps(preset) else None
        return None if rest is None else Reattached(self, rest)

    def looks(self, preset: Preset, seen: Iterable[Event]) -> Awaitable[bool] | None:
        """Return what asks whether a silent answer goes on, None if nobody can be asked."""
        look = _understood(protocol_of(preset).look, preset, seen)
        return None if look is None else self._goes_on(preset, look)

    async def _goes_on(self, preset: Preset, look: HttpRequest) -> bool:
        with suppress(UpstreamFailure, TimeoutError):
            status, body = await self._told(preset, look)
            return status == _OK and protocol_of(preset).goes_on(body)
        return False

    def abandon(self, preset: Preset, seen: Iterable[Event]) -> None:
        """Tell the upstream to stop an answer that it keeps, in a task of its own.

        Without us it would go on with it, and be paid for.
        """
        keeps = protocol_of(preset).keeps(preset)
        if keeps and (stop := _understood(protocol_of(preset).stop, preset, seen)):
            self._tasks.spawn(self._stop(preset, stop))

    async def _stop(self, preset: Preset, stop: HttpRequest) -> None:
        for pause in _STOPS:  # Again only where it may not have heard it, or says so.
            await asyncio.sleep(pause)
            with suppress(UpstreamFailure, TimeoutError):
                status, _ = await self._told(preset, stop)
                if status < _AWAY and status not in _LATER:
                    return
        logger.warning("an upstream may go on with an answer: it could not be told to stop")

    async def _told(self, preset: Preset, request: HttpRequest) -> tuple[int, bytes]:
        """Return an answer that is no stream; raises UpstreamFailure, TimeoutError."""
        async with asyncio.timeout(preset.connect + _SHORT):
            reply = await self.send(preset, request)
            try:
                return reply.status, await whole(reply)
            finally:
                await reply.body.aclose()

    async def send(self, preset: Preset, request: bytes | HttpRequest) -> Reply:
        """Send a prepared request, or one that its protocol made; raises UpstreamFailure."""
        try:
            return await self._transport.send(*self._message(preset, request), preset.connect)
        except ERRORS as error:
            raise unanswered(error) from error

    def _message(self, preset: Preset, request: bytes | HttpRequest) -> tuple[Message, bytes]:
        if isinstance(request, bytes):
            request = protocol_of(preset).request(preset, request)
        head = request[:3]
        known = self._messages.get(head)
        if known is None:
            if len(self._messages) >= _HEADS:  # A protocol may put what a page says into its URL.
                self._messages.clear()
            known = self._messages[head] = Message.of(_without_body(request))
        return known, request.body

    async def reach(self, preset: Preset) -> int:
        """Return the status of a request that asks for nothing; raises UpstreamFailure."""
        try:
            async with asyncio.timeout(preset.connect):
                options = protocol_of(preset).request(preset, b"")._replace(method="OPTIONS")
                sent = Message.of(_without_body(options))
                reply = await self._transport.send(sent, b"", preset.connect)
            await reply.body.aclose()
            return reply.status
        except ERRORS as error:
            raise unanswered(error) from error

    async def close(self) -> None:
        """Close all connections, once what is abandoned was told so, or could not be in time."""
        await self._tasks.over(_LAST)
        await self._transport.aclose()


def _understood(
    ask: Callable[[Preset, Iterable[Event]], T | None], preset: Preset, seen: Iterable[Event]
) -> T | None:
    """Return what a protocol makes of what is logged: it is somebody else's, and may be odd."""
    try:
        return ask(preset, seen)
    except Exception:
        logger.exception("what is logged of an answer is not understood")
        return None


def _without_body(request: HttpRequest) -> httpx.Request:
    return httpx.Request(request.method, httpx.URL(request.url), headers=[*request.headers])


class Reattached:
    """The rest of an answer: what was asked for is sent no more."""

    def __init__(self, upstream: Upstream, rest: Rest) -> None:
        self._upstream = upstream
        self._request, self.last = rest
        self.reattach, self.looks = upstream.reattach, upstream.looks

    def ask(self, preset: Preset, request: bytes) -> "Asking":
        """Return the context of the rest's chunks; raises UpstreamFailure there."""
        return Asking(self._upstream, preset, self._request)


class Asking:
    """One request, from its sending to the end of what reads it; an `async with` of its Chunks.

    No generator, and nothing of the response but its body: with thousands of silent streams it is
    what is kept that counts.
    """

    __slots__ = ("_body", "_preset", "_request", "_upstream")

    def __init__(self, upstream: Upstream, preset: Preset, request: bytes | HttpRequest) -> None:
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

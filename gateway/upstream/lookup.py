"""Lookup: small questions to other servers, and what they are told.

Of a question the whole answer is waited for; of what is told the status counts.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import httpx

from gateway.errors import GatewayError
from gateway.tasks import Tasks
from gateway.upstream.connection import fields
from gateway.upstream.transport import Message, Reply, Transport

T = TypeVar("T")

_REST = 0.5  # Seconds that the rest of an answer has whose status is known,
_MOST_REST = 64 * 1024  # and its bytes.
_TRIES = 2  # A server may close a kept connection while a question is on its way.
_SURE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)
_ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


class NoAnswer(GatewayError):
    """A server did not answer, or with too much; the message is for operators."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool  # Not cut, and readable as it is.

    def lines(self, name: str) -> list[str]:
        """Return the lines of a header that are not empty; `name` is in lower case."""
        return [
            value.strip().decode("latin-1")  # As characters, the last byte of "à" is a space too.
            for key, value in self.headers
            if key.decode("latin-1").lower() == name and value.strip()
        ]


class Lookup:
    """Asks over connections of its own; no redirect is followed, no cookie kept."""

    def __init__(self) -> None:
        self._transport = Transport()
        self._tasks = Tasks()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin what goes on if who waits for it leaves, until `close`."""
        return self._tasks.spawn(work)

    async def get(
        self, url: str, headers: Sequence[tuple[str, str]], *, seconds: float, limit: int
    ) -> Answer:
        """Return the answer, of its body `limit` bytes at most; raises NoAnswer."""
        try:
            message = _message("GET", url, headers)
            async with asyncio.timeout(seconds):
                return await _read(await self._sent(message, seconds), limit)
        except TimeoutError:
            raise NoAnswer(f"no answer in {seconds:g} s") from None
        except _ERRORS as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error

    async def tell(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, seconds: float
    ) -> Answer:
        """POST what may arrive twice; return the answer without its body. Raises NoAnswer."""
        try:
            async with asyncio.timeout(seconds):
                reply = await self._sent(_message("POST", url, headers), seconds, body)
        except TimeoutError:
            raise NoAnswer(f"no answer in {seconds:g} s") from None
        except _ERRORS as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        # Most have no body, or a short one that is here by now: then the connection is good for
        # another. Any other is closed, however much is still to come.
        with suppress(TimeoutError, *_ERRORS):
            async with asyncio.timeout(_REST):
                await _read(reply, _MOST_REST)
        await reply.body.aclose()
        return Answer(reply.status, reply.headers, b"", whole=False)

    async def _sent(self, message: Message, seconds: float, body: bytes = b"") -> Reply:
        for _ in range(_TRIES - 1):
            try:
                return await self._transport.send(message, body, seconds)
            except _SURE:
                raise
            except httpx.TransportError:
                continue
        return await self._transport.send(message, body, seconds)

    async def close(self) -> None:
        """End all that is going on, and close the connections."""
        await self._tasks.stop()
        await self._transport.aclose()


def _message(method: str, url: str, headers: Sequence[tuple[str, str]]) -> Message:
    host = httpx.URL(url).netloc
    asked = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Message.of(httpx.Request(method, url, headers=[(b"host", host), *asked]))


async def _read(reply: Reply, limit: int) -> Answer:
    body = bytearray()
    try:
        async for chunk in reply.body:
            body += chunk
            if len(body) > limit:
                break
    finally:
        await reply.body.aclose()
    whole = len(body) <= limit and not fields(reply.headers, b"content-encoding")
    return Answer(reply.status, reply.headers, bytes(body[:limit]), whole)

"""Lines: how a chat reaches a gateway: one that runs somewhere, or one made for a question, here.

Both ask, follow and stop in the same words; an answer is events as `format=text` has them.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol
from urllib.parse import urljoin

import httpx
from pydantic import SecretStr

from gateway.app import Gateway
from gateway.config.settings import Settings
from gateway.errors import Rejected, Unavailable, one_line
from gateway.runs.redemption import NothingMore
from gateway.sse import Event, Parser
from gateway.web.event_stream import EventStream

Show = Callable[[Event], None]

_ME = "chat"  # The subject of questions that are asked here.
_LARGEST = 64 << 20  # Bytes of one event.
_TIMES = httpx.Timeout(20, read=60)  # Seconds; heartbeats come every 15.
_TRIES = 30  # In a row that bring nothing, until a gateway is given up.
_PAUSE = 1.0  # Seconds between them.
_COMES_BACK = frozenset((429, 500, 502, 503, 504))


class Refused(Exception):
    """There is no answer, or no more of it; `code` is the gateway's."""

    def __init__(self, code: str, words: str = "") -> None:
        super().__init__(words or code)
        self.code = code


class Line(Protocol):
    """A way to a gateway; what cannot be had raises Refused."""

    async def ask(self, body: dict[str, Any]) -> str:
        """Ask, and return where the answer will be."""

    async def follow(self, where: str, show: Show) -> None:
        """Show an answer from its start to its `end`, whatever becomes of connections."""

    async def stop(self, where: str) -> None:
        """Stop an answer: its `end` says so."""


class Here:
    """A gateway in this process, which must run; it has nobody else's streams."""

    def __init__(self, gateway: Gateway, preset: str) -> None:
        supervisor = gateway.supervisor
        self._gateway = gateway
        self._redemption = supervisor.redemption
        self._cancellation = supervisor.cancellation
        self._preset = preset

    async def ask(self, body: dict[str, Any]) -> str:
        """Return the ticket of a question."""
        try:
            return (await self._gateway.ticket(_ME, body, self._preset)).ticket
        except (Rejected, Unavailable) as error:
            raise _refused(error) from None

    async def follow(self, where: str, show: Show) -> None:
        """Redeem a ticket, and show its stream."""
        parser = Parser(_LARGEST)

        async def send(message: MutableMapping[str, Any]) -> None:
            for event in parser.feed(message.get("body", b"")):
                show(event)

        try:
            ticket = self._gateway.tickets.verify(where)
            opened = await self._redemption.open(ticket, _ME, "")
        except (Rejected, Unavailable) as error:
            raise _refused(error) from None
        if isinstance(opened, NothingMore):
            raise Refused("log_expired")
        stream = EventStream(self._gateway.fanout, opened, b"", text=True)
        await stream({"type": "http"}, _nobody_leaves, send)

    async def stop(self, where: str) -> None:
        """Cancel its stream."""
        ticket = self._gateway.tickets.verify(where)
        await self._cancellation.cancel(await self._redemption.record(ticket, _ME))


class There:
    """A gateway at a URL, asked as a page would with these headers."""

    def __init__(self, http: httpx.AsyncClient, url: str, preset: str) -> None:
        self._http = http
        self._tickets = f"{url.rstrip('/')}/tickets/{preset}"

    async def ask(self, body: dict[str, Any]) -> str:
        """Return the URL of its stream; a POST whose answer was lost is not asked twice."""
        key = {"Idempotency-Key": secrets.token_urlsafe(16)}
        try:
            answer = await self._http.post(self._tickets, json=body, headers=key)
        except httpx.TransportError:
            await asyncio.sleep(_PAUSE)
            answer = await self._once(self._http.post(self._tickets, json=body, headers=key))
        if not answer.is_success:
            raise _problem(answer)
        return urljoin(self._tickets, str(answer.json()["stream_url"]))

    async def follow(self, where: str, show: Show) -> None:
        """Show a stream, and come back after every cut with the last id."""
        last, tries = "", 0
        while tries < _TRIES:
            seen = ""
            with suppress(httpx.TransportError):
                async for event in self._events(where, last):
                    seen = event.id.decode()
                    show(event)
                    if event.name == b"end":
                        return
            last, tries = seen or last, 0 if seen else tries + 1
            await asyncio.sleep(_PAUSE)
        raise Refused("unreachable", f"no answer from {self._tickets}")

    async def _events(self, where: str, last: str) -> AsyncIterator[Event]:
        parser = Parser(_LARGEST)
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        async with self._http.stream("GET", f"{where}&format=text", headers=headers) as answer:
            if answer.status_code in _COMES_BACK:
                return
            if answer.status_code == 204:
                raise Refused("log_expired", "the answer is not kept any more")
            if answer.status_code != 200:
                await answer.aread()
                raise _problem(answer)
            async for chunk in answer.aiter_raw():
                for event in parser.feed(chunk):
                    yield event

    async def stop(self, where: str) -> None:
        """Ask for its end."""
        answer = await self._once(self._http.delete(where))
        if not answer.is_success:
            raise _problem(answer)

    async def _once(self, asked: Awaitable[httpx.Response]) -> httpx.Response:
        try:
            return await asked
        except httpx.TransportError as error:
            words = f"no answer from {self._tickets}: {error or type(error).__name__}"
            raise Refused("unreachable", words) from None


@asynccontextmanager
async def here(settings: Settings, preset: str) -> AsyncIterator[Line]:
    """Run a gateway of these settings for a question: it has its own store, and no socket."""
    own = {"redis_url": "", "secrets": (SecretStr(secrets.token_urlsafe(32)),), "drain": 0.1}
    gateway = Gateway(settings.model_copy(update=own), authenticate=lambda headers, cookies: None)
    async with gateway.running():
        yield Here(gateway, preset)


@asynccontextmanager
async def there(url: str, preset: str, headers: dict[str, str]) -> AsyncIterator[Line]:
    """Reach the gateway at a URL."""
    async with httpx.AsyncClient(headers=headers, timeout=_TIMES) as http:
        yield There(http, url, preset)


async def _nobody_leaves() -> MutableMapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def _refused(error: Rejected | Unavailable) -> Refused:
    return Refused(error.code, error.detail or error.title)


def _problem(answer: httpx.Response) -> Refused:
    """Return what an answer refuses, in the words of a gateway or of a proxy before it."""
    told: Any = None
    with suppress(ValueError):
        told = answer.json()
    if not isinstance(told, dict) or not isinstance(told.get("code"), str):
        return Refused(f"status_{answer.status_code}", one_line(answer.text)[:200])
    return Refused(told["code"], one_line(str(told.get("detail") or told.get("title"))))

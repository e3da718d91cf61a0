"""Wire: what comes from the server: a whole answer, or a stream while it is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.conformance.events import Event, Parser, bare

STREAM = "text/event-stream"
FINAL = frozenset({"done", "cancelled", "truncated", "stalled", "failed", "interrupted", "expired"})


class Unkept(Exception):
    """A promise that is not kept, and what came instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; a stream that was opened by mistake is not read."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def object(self) -> dict[str, Any]:
        """Its JSON object; raises Unkept."""
        try:
            found = json.loads(self.content)
        except ValueError:
            raise Unkept(f"{self.status} has no JSON: {self.content[:80]!r}") from None
        if not isinstance(found, dict):
            raise Unkept(f"{self.status} has no JSON object: {self.content[:80]!r}")
        return found

    def __str__(self) -> str:
        """Say what it is, for who reads why a promise is not kept."""
        kind = self.headers.get("content-type", "no type")
        return f"{self.status} ({kind}) {self.content[:120].decode('utf-8', 'replace')}"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket and the URLs that it opens."""

    value: str
    stream: str
    cancel: str
    completion: str


class Stream:
    """An event stream while it is read: its bytes and its events so far."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.raw = b""
        self.events: list[Event] = []
        self._parser = Parser()
        self._chunks = response.aiter_raw()

    async def until(self, enough: Callable[["Stream"], object]) -> "Stream":
        """Read until there is enough; raises Unkept if it ends before."""
        while not enough(self):
            if not await self._more():
                raise Unkept(f"the stream closed after {len(self.events)} event(s): {self.tail!r}")
        return self

    async def rest(self) -> "Stream":
        """Read to the close."""
        while await self._more():
            pass
        return self

    async def _more(self) -> bool:
        try:
            chunk = await anext(self._chunks, None)
        except httpx.RemoteProtocolError as error:
            raise Unkept(f"the connection broke after {self.tail!r}: {error}") from None
        if chunk is None:
            return False
        self.raw += chunk
        self.events += self._parser.feed(chunk)
        return True

    @property
    def tail(self) -> bytes:
        """The last bytes, to be shown."""
        return self.raw[-120:]

    @property
    def bare(self) -> bytes:
        """All bytes but those that differ between two viewers."""
        return bare(self.raw)

    @property
    def ids(self) -> list[str]:
        """The ids in order."""
        return [event.id for event in self.events]

    @property
    def names(self) -> list[str]:
        """The names in order; "" is `message`."""
        return [event.name for event in self.events]

    @property
    def end(self) -> dict[str, Any]:
        """The data of `end`; raises Unkept if it is not the last event."""
        if self.names[-1:] != ["end"]:
            raise Unkept(f"status {self.status}, and the last event is no end: {self.tail!r}")
        return _object(self.events[-1].data)

    @property
    def failure(self) -> dict[str, Any]:
        """The data of `failure`; raises Unkept if it does not come just before `end`."""
        if self.names[-2:] != ["failure", "end"]:
            raise Unkept(f"no failure stands before the end: {self.names[-3:]}")
        return _object(self.events[-2].data)


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream that was read to its end, what was asked, and where it can be read again."""

    body: dict[str, Any]
    ticket: Ticket
    stream: Stream


def is_stream(headers: httpx.Headers) -> bool:
    """Whether a type is that of an event stream."""
    return bool(headers.get("content-type", "").partition(";")[0].strip().lower() == STREAM)


def _object(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unkept(f"its data is no JSON object: {data[:80]!r}")
    return found

"""A page that follows its channel and several streams over one connection."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

import httpx

from gateway.sse import Event, Parser
from tests.support import Served, read, until


class Page:
    """As an EventSource it keeps what came and its last id; `urls` are of the streams, in order."""

    def __init__(self, subject: str, urls: Sequence[str], **query: str) -> None:
        self.events: list[Event] = []
        self.last_id = ""
        self.connects = 0
        self.subject = subject
        self.tickets = [url.partition("ticket=")[2] for url in urls]
        self._query = query

    @property
    def url(self) -> str:
        """What it asks for."""
        tickets = [("ticket", each) for each in self.tickets]
        return f"/events?{urlencode([*tickets, *self._query.items()])}"

    def of(self, number: int) -> list[tuple[bytes, bytes]]:
        """Return the names and data of the events of a ticket, of the channel's for 0."""
        if number == 0:
            return [(e.name, e.data) for e in self.events if not e.name[:1].isdigit()]
        mine, prefix = b"%d" % number, b"%d." % number
        return [
            (b"" if each.name == mine else each.name.removeprefix(prefix), each.data)
            for each in self.events
            if each.name == mine or each.name.startswith(prefix)
        ]

    def ended(self, count: int | None = None) -> bool:
        """Whether each of the first tickets has had its end."""
        numbers = range(1, (len(self.tickets) if count is None else count) + 1)
        names = {each.name for each in self.events}
        return all(b"%d.end" % number in names for number in numbers)

    async def look(
        self,
        gate: Served,
        enough: Callable[[], bool] = lambda: False,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Follow until the connection ends or it is enough: what came after that is lost again.

        Nothing is read `before` something else is through.
        """
        headers = {**gate.cookie(self.subject), "Accept": "text/event-stream"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        parser, rest = Parser(limit=1 << 26), b""
        async with gate.http.stream("GET", self.url, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200, await answer.aread()
            if before is not None:
                await before()
            async for chunk in answer.aiter_raw():
                self.connects += chunk.startswith(b"retry:")
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    self.events += parser.feed(block + b"\n\n")
                    self.last_id = block.rpartition(b"id: ")[2].decode() or self.last_id
                    if enough():
                        return

    @asynccontextmanager
    async def on(self, gate: Served) -> AsyncIterator["Page"]:
        """Follow for the length of the block, from when it is open."""
        before = self.connects
        task = asyncio.create_task(self.look(gate))
        try:
            await until(lambda: self.connects > before or task.done(), "it is open")
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def follow(
        self, gates: Sequence[Served], done: Callable[[], bool], chance: random.Random
    ) -> None:
        """Follow on one replica after another, cut after a few events each, until it is done."""
        while not done():
            left = chance.choice([1, 1, 2, 5, 20, 200])
            goal = len(self.events) + left
            with suppress(httpx.TransportError):
                await self.look(chance.choice(gates), lambda: done() or len(self.events) >= goal)  # noqa: B023


async def whole(gate: Served, url: str, subject: str, query: str = "") -> list[tuple[bytes, bytes]]:
    """Return what `GET /stream` shows of a stream, from its start to its end."""
    got = await read(gate.http, url + query, headers=gate.cookie(subject))
    assert got.names[-1:] == ["end"], got.names[-3:]
    return [(each.name, each.data) for each in got.events]

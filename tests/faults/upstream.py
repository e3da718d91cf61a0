"""Upstream: a completion endpoint that counts its calls and fails as the schedule says.

It runs on the harness's own loop, one raw socket a call. The ticket's number is in the prompt and
the replica's name is its API key, so every call is known by both. A request for a response begins
one that is kept (see `kept`), and can be asked for again, looked at and cancelled by its id.
"""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from tests.faults.kept import Kept, KeptPlay
from tests.faults.plays import Call, Play
from tests.faults.schedule import Answer

_PATH = "/v1/chat/completions"


class Upstream:
    """Answers what the answers say; `calls` has every call, `done` what faults it has played."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.calls: dict[int, list[Call]] = {}
        self.kept: dict[str, Kept] = {}
        self.played: dict[str, int] = {}
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._one(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: what is no stream leaves it open for the next request."""
        play = None
        while play is None:
            play = await self._next(reader, writer)
        playing = asyncio.ensure_future(play.play())
        leaving = asyncio.ensure_future(_gone(reader))
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            leaving.cancel()
            with suppress(ConnectionError, asyncio.CancelledError):
                await playing
            play.call.outcome = play.call.outcome or "left"
            play.call.ended = time.monotonic()

    async def _next(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Play | None:
        """Answer one request, or return what streams its answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        replica = _header(head, b"authorization").removeprefix("Bearer ")
        body = await reader.readexactly(int(_header(head, b"content-length") or 0))
        path, _, query = head.split()[1].decode().partition("?")
        name, _, act = path.removeprefix(_PATH).strip("/").partition("/")
        if name:
            return await self._about(self.kept[name], replica, act, query, writer)
        return await self._create(json.loads(body), replica, writer)

    async def _create(
        self, body: dict[str, Any], replica: str, writer: asyncio.StreamWriter
    ) -> Play | None:
        said = body["input"] if "input" in body else body["messages"][-1]["content"]
        ticket = int(said.split()[-1])
        earlier, answer = self.calls.setdefault(ticket, []), self.answers[ticket]
        call = Call(ticket, len(earlier), replica, time.monotonic(), kept="input" in body)
        earlier.append(call)
        if call.number < len(answer.refusals):
            await Play(self.played, call, answer, writer).refuse(answer.refusals[call.number])
            call.ended = time.monotonic()
            return None
        if not call.kept:
            return Play(self.played, call, answer, writer)
        kept = Kept(call, answer)
        self.kept[kept.name] = kept
        return KeptPlay(self.played, kept, writer)

    async def _about(
        self, kept: Kept, replica: str, act: str, query: str, writer: asyncio.StreamWriter
    ) -> Play | None:
        """Show the rest of an answer, or tell how it is."""
        if "stream=true" in query:
            kept.call.others.append(replica)
            after = int(query.partition("starting_after=")[2])
            return KeptPlay(self.played, kept, writer, after)
        if act == "cancel":
            kept.cancel()
        what = act or "look"
        self.played[what] = self.played.get(what, 0) + 1
        told = b'{"status":"%s"}' % kept.status.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))
        await writer.drain()
        return None


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name + b": "):
            return line.split(b": ", 1)[1].decode()
    return ""


async def _gone(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read()

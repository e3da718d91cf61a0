"""World: one gateway, and a way to it for each client and each of four things that may happen.

The upstream answers at once, so nothing here depends on how fast anybody is: what a way has passed
on, and which requests came over it, is the same on any machine.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from gateway.app import Gateway
from gateway.demo.page import STATIC
from gateway.demo.upstream import UpstreamOptions, answer, upstream
from tests.clients import node_modules
from tests.sdk_clients import TOKEN, presets
from tests.support import Served, ask, client, served, settings

PAGES = Path(__file__).parent.parent / "pages"
SCENES = ("cut", "end", "error", "204")
PIECES = 200
TEXT = "".join(answer(ask()["messages"], PIECES))
FAULTS = {"error": "error:20"}

# Bytes of an answer after which it is cut, once: by then each API has told some text.
_BODY = {b"text/event-stream": 1200, b"text/plain": 100}
_OF_STREAMS = (b"/stream?", b"/tickets", b"/v1/", b"/events?")


class Way:
    """A TCP proxy to the gateway: it notes requests and statuses, and may cut one answer short.

    The cut is a connection that closes in the middle of an answer, once its reader has `shown` some
    of it: a browser drops what it has not handed out yet when the rest fails.
    """

    def __init__(self, port: int, *, cuts: bool) -> None:
        self.requests: list[bytes] = []
        self.statuses: list[int] = []
        self.shown = asyncio.Event()
        self.cuts = cuts
        self._whole = not cuts  # Whether what comes now is passed on to its end.
        self.url = ""
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        asked = asyncio.Event()
        sending = asyncio.create_task(self._send(reader, back, asked))
        self._open.add(writer)
        try:
            with suppress(ConnectionError):
                await self._answer(there, writer, asked)
        finally:
            self._open.discard(writer)
            sending.cancel()
            back.close()
            writer.close()

    def cut(self) -> None:
        """Cut all connections now."""
        for writer in list(self._open):
            writer.close()

    async def _send(
        self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                path = data.split(b" ", 2)[1:2]
                if data[:1].isupper() and path and path[0].startswith(_OF_STREAMS):
                    self.requests.append(data)
                    asked.set()
                back.write(data)
            back.close()

    async def _answer(
        self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        """Pass answers on; `asked` says that the next one is of a stream."""
        head = b""
        while data := await there.read(65536):
            if asked.is_set():
                head += data
                if b"\r\n\r\n" in head:
                    asked.clear()
                    self.statuses.append(int(head.split(b" ", 2)[1]))
                    data, head = head, b""
                    size = next((_BODY[each] for each in _BODY if each in data), 0)
                    if size and not self._whole:
                        await self._cut_short(data, size, there, writer)
                        return
                else:
                    continue
            writer.write(data)
            await writer.drain()

    async def _cut_short(
        self, data: bytes, size: int, there: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._whole = True
        size += data.index(b"\r\n\r\n") + 4
        while len(data) < size and (more := await there.read(65536)):
            data += more
        writer.write(data[:size])
        await writer.drain()
        await self.shown.wait()


class Case(NamedTuple):
    """One client in one scene: its way, and what it asks there."""

    way: Way
    stream: str  # The path of a stream, "" for a client that POSTs.
    body: dict[str, Any]

    @property
    def url(self) -> str:
        """The URL of the stream."""
        return self.way.url + self.stream

    def page(self, name: str) -> str:
        """The URL of a page that reads it."""
        stream = f"stream={quote(self.stream)}&" if self.stream else ""
        return f"{self.way.url}/pages/{name}?{stream}body={quote(json.dumps(self.body))}"


class World:
    """The gateway, and what leads to it."""

    def __init__(self, gateway: Served, base: str, opened: AsyncExitStack) -> None:
        self.gateway = gateway
        self.base = base  # The upstream's URL.
        self._opened = opened

    async def way(self, *, cuts: bool = False) -> Way:
        """Open a way of its own."""
        way = Way(int(self.gateway.url.rpartition(":")[2]), cuts=cuts)
        server = await asyncio.start_server(way, "127.0.0.1", 0)
        self._opened.callback(server.close)
        way.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return way

    async def case(self, scene: str, *, posts: bool) -> Case:
        """Return what a client finds in a scene; what follows an end is asked of a stream."""
        fault: dict[str, Any] = {"pretend": {"fault": FAULTS[scene]}} if scene in FAULTS else {}
        body = ask(**fault)
        way = await self.way(cuts=scene == "cut")
        if posts and scene != "204":
            return Case(way, "", body)
        stream = await self.gateway.ticket(body)
        if scene == "204":
            seen = await self.gateway.read(stream)
            stream += f"&last_event_id={seen.last_id}"
        return Case(way, stream, body)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Run an upstream, and a gateway before it with the pages beside it."""
    options = UpstreamOptions(interval=0, tokens=PIECES)
    async with AsyncExitStack() as opened:
        base = await opened.enter_async_context(served(upstream(options)))
        given = {
            "presets": presets(base, retries=0, on_leave="finish"),
            "service_tokens": [TOKEN],
            "grace": 1,  # A third of it is the longest that a browser waits.
            "heartbeat": 0.2,
            "lease": 10,
            # However long a crowd of clients takes to begin, and to use its connections again.
            **dict.fromkeys(("start_by", "head_timeout", "idle_timeout"), 600),
        }
        gateway = Gateway(settings(**given))
        routes = [Route(f"/{each}/{{path:path}}", _file) for each in ("pages", "npm", "static")]
        app = gateway.with_routes(routes)
        url = await opened.enter_async_context(served(app, gateway))
        http = await opened.enter_async_context(client(url))
        yield World(Served(gateway, url, http), base, opened)


async def _file(request: Request) -> Response:
    """Serve a page, or what it imports."""
    folder = request.url.path.split("/")[1]
    base = {"pages": PAGES, "npm": node_modules(), "static": STATIC}[folder]
    return FileResponse(base / request.path_params["path"])

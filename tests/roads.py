"""A road between a client and a server, which a test may cut, or let die without a word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Road:
    """A TCP proxy; `url` is where clients reach the server by it."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self._port = port
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._dead: set[asyncio.StreamWriter] = set()
        self._over = asyncio.Event()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._open.values():
            writer.transport.abort()

    def die(self) -> None:
        """Swallow all that the server still sends over what is open; nobody is told."""
        self._dead.update(self._open.values())

    async def close(self) -> None:
        """End every connection."""
        self._over.set()
        self.cut()
        await asyncio.gather(*self._open)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection, until one of its ends closes it."""
        carrying = asyncio.current_task()
        assert carrying is not None
        self._open[carrying] = writer
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [self._send(reader, back), self._answer(there, writer), self._over.wait()]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in (back, writer):
                each.close()
            del self._open[carrying]

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if writer not in self._dead:
                    writer.write(data)
                    await writer.drain()
        if writer in self._dead:
            await self._over.wait()  # Its end is not told either.


@asynccontextmanager
async def road(url: str) -> AsyncIterator[Road]:
    """Build a road to a server."""
    built = Road(int(url.rpartition(":")[2]))
    server = await asyncio.start_server(built, "127.0.0.1", 0)
    built.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield built
    finally:
        server.close()
        await built.close()

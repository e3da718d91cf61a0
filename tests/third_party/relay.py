"""A relay before a server, which cuts its answers after so many bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on; `sent` counts those of answers, `most` is where each is cut."""

    def __init__(self, base: str) -> None:
        self.url = ""
        self.sent = 0
        self.most: int | None = None
        parts = urlsplit(base)
        self._address = parts.hostname, parts.port
        self._served: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        task.add_done_callback(self._served.discard)
        self.sent = 0
        answers, asks = await asyncio.open_connection(*self._address)
        asking = asyncio.create_task(_pass_on(reader, asks))
        try:
            await self._answer(answers, writer)
        except asyncio.CancelledError:
            pass  # The play is over; asyncio would log it as an error of ours.
        finally:
            asking.cancel()
            asks.transport.abort()
            writer.close()

    async def end(self) -> None:
        """End all connections."""
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                left = len(chunk) if self.most is None else self.most - self.sent
                writer.write(chunk[:left])
                await writer.drain()
                self.sent += len(chunk)
                if left < len(chunk):
                    return


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def relaying(base: str) -> AsyncIterator[Relay]:
    """Run a relay for the length of the block."""
    relay = Relay(base)
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.end()

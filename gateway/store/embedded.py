"""Embedded: the store of a process that others of the same machine share, over a socket file.

It speaks what Redis speaks, as far as the gateway asks for it: commands in, RESP 2 out. Nothing
survives the process, so it is for a demonstration.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.tasks import Tasks

_PIECE = 1 << 16  # Bytes.


@asynccontextmanager
async def served_at(path: Path) -> AsyncGenerator[str]:
    """Serve an empty store at a socket file that is made here, and yield its URL."""
    store, guests = FakeServer(), Tasks()

    def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = guests.spawn(_attend(store, reader, writer))
        guest.add_done_callback(lambda _: writer.close())  # Also where it never began.

    server = await asyncio.start_unix_server(attend, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        await guests.stop()


async def _attend(
    store: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass on what one connection says, and what it is told, until it goes."""
    link: Any = FakeAsyncRedisConnection(server=store, protocol=2)
    telling = None
    try:
        await link.connect()
        telling = asyncio.create_task(_tell(link, writer))
        while piece := await reader.read(_PIECE):
            await link.send_packed_command(piece, False)
    except (OSError, RedisError):
        return  # A replica that was killed says no farewell.
    finally:
        if telling is not None:
            telling.cancel()
            await asyncio.wait([telling])
        await link.disconnect()


async def _tell(link: Any, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while True:
            writer.write(encoded(await _reply(link)))
            await writer.drain()


async def _reply(link: Any) -> Any:
    try:
        return await link.read_response(timeout=None, disable_decoding=True)
    except ResponseError as error:
        return error


def encoded(reply: Any) -> bytes:
    """Return a reply as RESP 2."""
    if isinstance(reply, ResponseError):
        return b"-%s\r\n" % _words(reply).encode()
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list | tuple):
        return b"*%d\r\n%s" % (len(reply), b"".join(map(encoded, reply)))
    data = reply if isinstance(reply, bytes) else str(reply).encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def _words(error: ResponseError) -> str:
    """Return an error with its code in front, which the parser of redis-py has taken off."""
    if isinstance(error, NoScriptError):
        return f"NOSCRIPT {error}"
    words = str(error)
    return words if words.partition(" ")[0].isupper() else f"ERR {words}"

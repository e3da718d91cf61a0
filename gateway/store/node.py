"""Node: one Redis server, or an embedded one, and the connections to it.

There are four, however many viewers: for log and heartbeat, which must not wait behind a rush;
for everything short; for reading logs; and the control channel.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from gateway.errors import Unavailable
from gateway.store.connection import Command, PipelinedConnection
from gateway.store.outage import Outage, words_of
from gateway.store.pools import TIMEOUT

logger = logging.getLogger("gateway.store.node")

_CALM = 5.0  # Seconds in which Redis refuses nothing, until that is said.


def refusals() -> Outage:
    """Return what notes the commands that Redis refuses: a full one does, ten times a second."""
    return Outage(logger, "the store refuses commands", "the store refuses nothing any more", _CALM)


class Node:
    """One server; `on_trouble` hears what kept an append from it."""

    def __init__(self, pool: ConnectionPool, name: str = "", refused: Outage | None = None) -> None:
        self.name = name
        who = f"the store {name}".rstrip()
        outage = Outage(logger, f"{who} does not answer", f"{who} answers again")
        connection = partial(PipelinedConnection, pool, outage=outage)
        self.log = connection(timeout=TIMEOUT, idempotent=False)
        self.short = connection(timeout=TIMEOUT, idempotent=True)
        self.long = connection(timeout=2 * TIMEOUT, idempotent=True, together=64)
        self.refused = refused or refusals()
        self.answers = True  # As far as is known.
        self.promoted = float("-inf")  # When it was seen to have another one's place.
        self.on_trouble: Callable[[Exception], None] = lambda _: None
        self._pool = pool

    @property
    def generation(self) -> int:
        """The number of the connection that appends go over."""
        return self.log.generation

    @property
    def replaced(self) -> float:
        """When it last took the place of another server, or may have: a connection did."""
        return max(self.log.replaced, self.short.replaced, self.promoted)

    async def call(self, *command: Any) -> Any:
        """Send one command to this very server and return its reply; raises Unavailable."""
        try:
            (reply,) = await self.short.send([command])
        except (RedisError, OSError) as error:
            raise away(error) from error
        if isinstance(reply, ResponseError):
            raise Unavailable("store_unavailable", reason=str(reply)[:200])
        return reply

    async def append(self, commands: Sequence[Command], generation: int) -> list[Any]:
        """Send what must not be sent twice, nor on any other connection than the one checked.

        An error reply is None among the replies.
        """
        try:
            replies = await self.log.send_now(commands, generation)
        except (RedisError, OSError) as error:
            self.on_trouble(error)
            raise away(error) from error
        refused = [reply for reply in replies if isinstance(reply, ResponseError)]
        if not refused:
            if self.refused.open:
                self.refused.passed()
            return replies
        self.refused.failed(refused[0])
        for reply in refused:
            self.on_trouble(reply)
        return [None if isinstance(reply, ResponseError) else reply for reply in replies]

    async def listen(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        """Yield b"" once the channel is heard, its messages, and None where it is long silent.

        Raises RedisError also where Redis went without a word: nobody would hear it for hours;
        ResponseError where this user has no right to the channel.
        """
        async with Redis(connection_pool=self._pool).pubsub() as pubsub:
            async with asyncio.timeout(TIMEOUT):
                await pubsub.subscribe(channel)
            if await pubsub.get_message(timeout=TIMEOUT) is None:
                raise RedisConnectionError("no answer in time")
            yield b""
            asked = False
            while True:
                message = await pubsub.get_message(
                    ignore_subscribe_messages=True, timeout=TIMEOUT / 2
                )
                if message is None:
                    if asked:
                        raise RedisConnectionError("no answer in time")
                    await pubsub.ping()
                    yield None
                elif message["type"] == "message":
                    yield message["data"]
                asked = message is None

    async def close(self) -> None:
        """Close all connections; a later command opens new ones."""
        for connection in (self.log, self.short, self.long):
            await connection.close()
        await self._pool.disconnect()
        manager: Any = getattr(self._pool, "sentinel_manager", None)
        if manager is not None:
            await manager.aclose()


def away(error: Exception) -> Unavailable:
    """Return what a caller is told where Redis does not answer."""
    return Unavailable("store_unavailable", reason=words_of(error))

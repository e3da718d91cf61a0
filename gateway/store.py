"""Store: one Redis, its connections, key names and scripts.

Every command sent from here is idempotent: redis-py re-sends one whose connection broke, although
it may have run. Connections are few and do not grow with viewers: a bounded pool for commands, one
for the log's writer and one for the inbox.

All keys of a stream carry the tag {stream id} and so share a slot of a Cluster. Each key has a TTL.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from gateway.errors import Passing, SettingsError

log = logging.getLogger("gateway.store")

POOL = 16  # Connections for commands; more callers than this wait their turn.
TIMEOUT = 2.0  # Seconds for one reply: an EventSource must hear "come back" before it gives up.
MARKER = b"gw:marker"
BEATS = b"gw:beats"

_SCRIPTS = Path(__file__).parent / "lua"


def record_key(stream_id: str) -> str:
    """Return the key of a stream's record."""
    return f"gw:{{{stream_id}}}:record"


def log_key(stream_id: str) -> str:
    """Return the key of a stream's log."""
    return f"gw:{{{stream_id}}}:log"


def presence_key(stream_id: str) -> str:
    """Return the key that says that somebody on another replica watches a stream."""
    return f"gw:{{{stream_id}}}:presence"


def runs_key(replica: str) -> str:
    """Return the key of the set of streams that a replica runs."""
    return f"gw:runs:{replica}"


def cancels_key(replica: str) -> str:
    """Return the key of the set of streams that a replica is asked to cancel."""
    return f"gw:cancels:{replica}"


class Store:
    """The connections to one Redis, or an embedded one; errors are Passing `store_unavailable`."""

    def __init__(self, url: str = "") -> None:
        self.embedded = not url
        self._client, self._side = _clients(url)
        self._scripts = {
            path.stem: self._client.register_script(path.read_text("utf-8"))
            for path in sorted(_SCRIPTS.glob("*.lua"))
        }

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply."""
        try:
            return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def calls(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Send several commands in one round trip, not atomic, and return their replies."""
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute()
                return replies
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def atomically(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Send commands on keys of one slot; all of them run or none (MULTI), never a part."""
        try:
            async with self._side.pipeline(transaction=True) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute()
                return replies
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def script(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run one of `lua/*.lua` and return its reply."""
        try:
            return await self._scripts[name](keys=list(keys), args=list(args))
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def connection(self) -> AbstractConnection:
        """Return a connection of its own that never re-sends by itself; raises Passing."""
        try:
            pool = self._side.connection_pool
            connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
            return connection
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def release(self, connection: AbstractConnection) -> None:
        """Close such a connection: after a fault nobody knows what replies it still holds."""
        await connection.disconnect(nowait=True)
        await self._side.connection_pool.release(connection)

    async def messages(self, channel: str) -> AsyncIterator[bytes]:
        """Yield what is published to a channel, and b"" whenever something may have been missed."""
        while True:
            try:
                async with self._side.pubsub() as pubsub:
                    await pubsub.subscribe(channel)
                    yield b""
                    while True:
                        message = await pubsub.get_message(
                            ignore_subscribe_messages=True, timeout=TIMEOUT / 2
                        )
                        if message is not None:
                            yield message["data"]
            except (RedisError, OSError) as error:
                log.info("inbox lost: %s", error)
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._client, self._side):
            await client.aclose()
            await client.connection_pool.disconnect()


def unavailable(error: BaseException) -> Passing:
    """Translate what redis-py raises: whatever it is, it is not the caller's fault."""
    if isinstance(error, ResponseError):
        log.warning("the store refused a command: %s", error)
    return Passing("store_unavailable", f"{type(error).__name__}: {error}"[:200])


def _clients(url: str) -> tuple[Redis, Redis]:
    """Return the client for commands and the one whose connections are held for long."""
    if not url:
        server = FakeServer()
        return FakeAsyncRedis(server=server, protocol=2), FakeAsyncRedis(server=server, protocol=2)
    once_more = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    never = Retry(NoBackoff(), 0)
    if url.startswith("redis+sentinel://"):
        return _from_sentinel(url, once_more, POOL), _from_sentinel(url, never, 4)
    if url.split("://")[0] not in {"redis", "rediss", "unix"}:
        raise SettingsError(
            "GATEWAY_REDIS_URL: must start with redis://, rediss://, unix:// or redis+sentinel://"
        )
    try:
        return _from_url(url, once_more, POOL), _from_url(url, never, 4)
    except ValueError as error:
        raise SettingsError(f"GATEWAY_REDIS_URL: {error}") from None


def _options(retry: Retry) -> dict[str, Any]:
    return {
        "protocol": 2,  # Pinned: the shape of replies depends on it.
        "retry": retry,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "socket_keepalive": True,
    }


def _from_url(url: str, retry: Retry, connections: int) -> Redis:
    options = _options(retry)
    if url.startswith("unix://"):
        del options["socket_keepalive"]
    pool = BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=TIMEOUT, **options
    )
    return Redis(connection_pool=pool)


def _from_sentinel(url: str, retry: Retry, connections: int) -> Redis:
    """`redis+sentinel://[user:password@]host:port,host:port/master[/db]`."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    master, _, db = parts.path.strip("/").partition("/")
    try:
        nodes = [
            (host, int(port)) for host, _, port in (h.rpartition(":") for h in hosts.split(","))
        ]
        number = int(db or 0)
    except ValueError:
        nodes = []
    if not nodes or not master:
        raise SettingsError("GATEWAY_REDIS_URL: expected redis+sentinel://host:port,…/master")
    sentinel = Sentinel(nodes, sentinel_kwargs={"socket_timeout": TIMEOUT})  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(
        master,
        db=number,
        username=parts.username,
        password=parts.password,
        max_connections=connections,
        **_options(retry),
    )
    return client

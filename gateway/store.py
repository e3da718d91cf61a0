"""Store: one Redis, its connections, key names and scripts.

Every command sent from here may run twice without harm, but the log's appends, whose writer looks
what became of them. There are four connections, however many viewers: for the log and the beat,
which must not wait behind a rush; for everything short; for reading logs; and the inbox.

All keys of a stream carry the tag {stream id} and so share a slot of a Cluster. Each key has a TTL.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.errors import Passing, SettingsError
from gateway.line import Command, Line

log = logging.getLogger("gateway.store")

TIMEOUT = 2.0  # Seconds for one reply: an EventSource must hear "come back" before it gives up.
CONNECTIONS = 4
_COMPLAINTS = 1.0  # Seconds between two lines in the log about commands that Redis refuses.
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
        self._pool = _pool(url)
        self._log = Line(self._pool, timeout=TIMEOUT, once_more=False)
        self._short = Line(self._pool, timeout=TIMEOUT, once_more=True)
        self._long = Line(self._pool, timeout=2 * TIMEOUT, once_more=True, together=64)
        self._complain_at = 0.0
        texts = {path.stem: path.read_text("utf-8") for path in _SCRIPTS.glob("*.lua")}
        self._scripts = {
            name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()
        }

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply."""
        return (await self.calls([command]))[0]

    async def calls(self, commands: Iterable[Command]) -> list[Any]:
        """Send several commands in one round trip, not atomic, and return their replies."""
        return self._sound(await _on(self._short, commands))

    async def read(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls` for replies that may be large."""
        return self._sound(await _on(self._long, commands))

    async def urgent(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls`, but past the crowd: a rush of requests must not look like a death."""
        return self._sound(await _on(self._log, commands))

    @property
    def generation(self) -> int:
        """The number of the connection that appends go over."""
        return self._log.generation

    async def append(self, commands: Sequence[Command], generation: int) -> list[Any]:
        """Send what must not be sent twice, nor on any other connection than the one checked.

        An error reply is None among the replies.
        """
        try:
            replies = await self._log.send_now(commands, generation)
        except (RedisError, OSError) as error:
            raise _away(error) from error
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._complain(reply)
        return [None if isinstance(reply, ResponseError) else reply for reply in replies]

    async def atomically(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands on keys of one slot; all of them run or none (MULTI), never a part."""
        replies = await _on(self._log, [["MULTI"], *commands, ["EXEC"]])
        return self._sound(self._sound(replies)[-1])

    async def script(
        self, name: str, keys: Sequence[Any], args: Sequence[Any], *, of_log: bool = False
    ) -> Any:
        """Run one of `lua/*.lua` and return its reply; `of_log`: where appends go."""
        line = self._log if of_log else self._short
        digest, text = self._scripts[name]
        rest = [len(keys), *keys, *args]
        replies = await _on(line, [["EVALSHA", digest, *rest]])
        if isinstance(replies[0], NoScriptError):
            replies = await _on(line, [["EVAL", text, *rest]])
        return self._sound(replies)[0]

    async def messages(self, channel: str) -> AsyncIterator[bytes]:
        """Yield what is published to a channel, and b"" whenever something may have been missed."""
        while True:
            try:
                async with Redis(connection_pool=self._pool).pubsub() as pubsub:
                    async with asyncio.timeout(TIMEOUT):
                        await pubsub.subscribe(channel)
                    yield b""
                    async for data in _heard(pubsub):
                        yield data
            except (RedisError, OSError) as error:
                log.info("inbox lost: %s", error)
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close all connections."""
        for line in (self._log, self._short, self._long):
            await line.close()
        await self._pool.disconnect()
        manager: Any = getattr(self._pool, "sentinel_manager", None)
        if manager is not None:
            await manager.aclose()

    def _sound(self, replies: list[Any]) -> list[Any]:
        """Return the replies; raises Passing if Redis refused one: it is not the caller's fault."""
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._complain(reply)
                raise Passing("store_unavailable", str(reply)[:200])
        return replies

    def _complain(self, refusal: ResponseError) -> None:
        """Log a refusal, but not each: a full Redis has one for every stream, again and again."""
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAINTS
            log.warning("the store refused a command: %s", refusal)


async def _on(line: Line, commands: Iterable[Command]) -> list[Any]:
    try:
        return await line.send(commands)
    except (RedisError, OSError) as error:
        raise _away(error) from error


async def _heard(pubsub: PubSub) -> AsyncIterator[bytes]:
    """Yield what is published; raises RedisError also where Redis went without a word."""
    asked = False
    while True:
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=TIMEOUT / 2)
        if message is not None and message["type"] == "message":
            yield message["data"]
        elif message is None:
            if asked:
                raise RedisConnectionError("no answer in time")
            await pubsub.ping()
        asked = message is None


def _away(error: Exception) -> Passing:
    return Passing("store_unavailable", f"{type(error).__name__}: {error}"[:200])


def _pool(url: str) -> ConnectionPool:
    if not url:
        return ConnectionPool(
            connection_class=FakeAsyncRedisConnection, server=FakeServer(), protocol=2
        )
    if url.startswith("redis+sentinel://"):
        return _from_sentinel(url)
    if url.split("://")[0] not in {"redis", "rediss", "unix"}:
        raise SettingsError(
            "GATEWAY_REDIS_URL: must start with redis://, rediss://, unix:// or redis+sentinel://"
        )
    options = _options()
    if url.startswith("unix://"):
        del options["socket_keepalive"]
    try:
        return ConnectionPool.from_url(url, **options)
    except ValueError as error:
        raise SettingsError(f"GATEWAY_REDIS_URL: {error}") from None


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,  # Pinned: the shape of replies depends on it.
        "retry": Retry(NoBackoff(), 0),  # Who may send again, and when, is decided above.
        "socket_timeout": None,  # A line has its own; this one costs a task for every batch.
        "socket_connect_timeout": TIMEOUT,
        "socket_keepalive": True,
        "max_connections": 2 * CONNECTIONS,
    }


def sentinels(url: str) -> tuple[list[tuple[str, int]], str, int]:
    """Return the Sentinels, the master's name and the database that a URL names.

    It is `redis+sentinel://[user:password@]host:port,host:port/master[/db]`; raises SettingsError.
    """
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
    return nodes, master, number


def _from_sentinel(url: str) -> ConnectionPool:
    nodes, master, db = sentinels(url)
    parts = urlsplit(url)
    sentinel = Sentinel(nodes, sentinel_kwargs=_short(len(nodes)))  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(
        master, db=db, username=parts.username, password=parts.password, **_options()
    )
    return client.connection_pool


def _short(count: int) -> dict[str, Any]:
    """They are asked one after the other: one that hangs must leave time for the rest."""
    return {"socket_timeout": TIMEOUT / (count + 2), "retry": Retry(NoBackoff(), 0)}

"""Node: one Redis server, or an embedded one, and the connections to it.

There are four, however many viewers: for the log and the beat, which must not wait behind a rush;
for everything short; for reading logs; and the inbox.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from gateway.errors import Passing, SettingsError
from gateway.line import Command, Line

log = logging.getLogger("gateway.node")

TIMEOUT = 2.0  # Seconds for one reply: an EventSource must hear "come back" before it gives up.
CONNECTIONS = 4
_OF_SENTINELS = frozenset(("sentinel_username", "sentinel_password"))
_COMPLAINTS = 1.0  # Seconds between two lines in the log about commands that Redis refuses.


class Complaints:
    """Logs what Redis refuses, but not each: a full one refuses every stream, again and again."""

    def __init__(self) -> None:
        self._due = 0.0

    def note(self, refusal: ResponseError) -> None:
        """Log it, unless another was logged just now."""
        now = monotonic()
        if now >= self._due:
            self._due = now + _COMPLAINTS
            log.warning("the store refused a command: %s", refusal)


class Way(Protocol):
    """Where commands are sent: a line to one server, or a route to many."""

    async def send(self, commands: Iterable[Command]) -> list[Any]:
        """Return the replies, errors among them; raises RedisError."""


class Node:
    """One server; `on_trouble` hears what kept an append from it."""

    def __init__(self, pool: ConnectionPool, name: str = "") -> None:
        self.name = name
        self.log = Line(pool, timeout=TIMEOUT, once_more=False)
        self.short = Line(pool, timeout=TIMEOUT, once_more=True)
        self.long = Line(pool, timeout=2 * TIMEOUT, once_more=True, together=64)
        self.answers = True  # As far as is known.
        self.promoted = float("-inf")  # When it was seen to have another one's place.
        self.on_trouble: Callable[[Exception], None] = lambda _: None
        self._complaints = Complaints()
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
        """Send one command to this very server and return its reply; raises Passing."""
        try:
            (reply,) = await self.short.send([command])
        except (RedisError, OSError) as error:
            raise away(error) from error
        if isinstance(reply, ResponseError):
            raise Passing("store_unavailable", reason=str(reply)[:200])
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
            return replies
        self._complaints.note(refused[0])
        for reply in refused:
            self.on_trouble(reply)
        return [None if isinstance(reply, ResponseError) else reply for reply in replies]

    async def listen(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        """Yield b"" once the channel is heard, its messages, and None where it is long silent.

        Raises RedisError also where Redis went without a word: nobody would hear it for hours.
        """
        async with Redis(connection_pool=self._pool).pubsub() as pubsub:
            async with asyncio.timeout(TIMEOUT):
                await pubsub.subscribe(channel)
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
        for line in (self.log, self.short, self.long):
            await line.close()
        await self._pool.disconnect()
        manager: Any = getattr(self._pool, "sentinel_manager", None)
        if manager is not None:
            await manager.aclose()


class Single:
    """A Redis that is one server: every key is at home there."""

    books = ("",)
    markers = ("",)

    def __init__(self, url: str) -> None:
        self._node = Node(pool(url))
        self.masters: Sequence[Node] = (self._node,)
        self.log: Way = self._node.log
        self.short: Way = self._node.short
        self.long: Way = self._node.long

    def home(self, key: str) -> Node:
        """Return the server that has a key."""
        return self._node

    def marker_of(self, key: str) -> str:
        """Return the tag of the marker that lives where a key does."""
        return ""

    @property
    def generation(self) -> int:
        """A number that grows with each new connection that appends go over."""
        return self._node.generation

    def anyone(self) -> Node:
        """Return a server for what is no key's."""
        return self._node

    async def close(self) -> None:
        """Close all connections."""
        await self._node.close()


def away(error: Exception) -> Passing:
    """Return what a caller is told where Redis does not answer."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, MasterNotFoundError):  # Its own words show all its clients, at length.
        words = f"no Sentinel tells of the master: {str(error).rpartition(' - ')[2]}"
    return Passing("store_unavailable", reason=words[:200])


def pool(url: str) -> ConnectionPool:
    """Return the connections to one server; raises SettingsError. Nothing is opened yet."""
    if not url:
        return ConnectionPool(
            connection_class=FakeAsyncRedisConnection, server=FakeServer(), protocol=2
        )
    if url.startswith("redis+sentinel://"):
        return _from_sentinel(url)
    if url.split("://")[0] not in {"redis", "rediss", "unix"}:
        raise SettingsError(
            "GATEWAY_REDIS_URL: must start with redis://, rediss://, unix://, redis+sentinel:// "
            "or redis+cluster://"
        )
    options = _options()
    if url.startswith("unix://"):
        del options["socket_keepalive"]
    try:
        path = "" if url.startswith("unix://") else urlsplit(url).path.strip("/")
        if path and not path.isdecimal():
            raise ValueError(f"{path} is no number of a database")
        made = ConnectionPool.from_url(url, **options)
        made.make_connection()  # type: ignore[no-untyped-call]  # Says what no option is.
    except (TypeError, ValueError) as error:
        raise SettingsError(f"GATEWAY_REDIS_URL: {error}") from None
    return made


def addresses(hosts: str) -> list[tuple[str, int]]:
    """Return the parts of `host:port,host:port`, nothing if one of them is no address."""
    pairs = [each.rpartition(":") for each in hosts.split(",")]
    try:
        found = [(host.strip("[]"), int(port)) for host, _, port in pairs]
    except ValueError:
        return []
    return found if all(host for host, _ in found) else []


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

    It is `redis+sentinel://[user:password@]host:port,host:port/master[/db]`, and for Sentinels with
    a password of their own `?sentinel_username=…&sentinel_password=…`; raises SettingsError.
    """
    try:
        parts = urlsplit(url)
        unknown = parse_qs(parts.query, strict_parsing=bool(parts.query)).keys() - _OF_SENTINELS
    except ValueError as error:
        raise SettingsError(f"GATEWAY_REDIS_URL: {error}") from None
    if unknown:
        raise SettingsError(f"GATEWAY_REDIS_URL: unknown: {', '.join(sorted(unknown))}")
    nodes = addresses(parts.netloc.rpartition("@")[2])
    master, _, db = parts.path.strip("/").partition("/")
    if not nodes or not master or not (db or "0").isdecimal():
        raise SettingsError("GATEWAY_REDIS_URL: expected redis+sentinel://host:port,…/master")
    return nodes, master, int(db or 0)


def sentinel_url(url: str, host: str, port: int) -> str:
    """Return the address of one of the Sentinels that a URL names."""
    given = _of_sentinels(url)
    login = f"{quote(given.get('username', ''), '')}:{quote(given.get('password', ''), '')}@"
    return f"redis://{login * bool(given)}{f'[{host}]' if ':' in host else host}:{port}/"


def _from_sentinel(url: str) -> ConnectionPool:
    nodes, master, db = sentinels(url)
    parts = urlsplit(url)
    asked = {**_short(len(nodes)), **_of_sentinels(url)}
    sentinel = Sentinel(nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    login = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    given: dict[str, Any] = {name: value for name, value in login.items() if value}
    client: Redis = sentinel.master_for(master, db=db, **given, **_options())
    return client.connection_pool


def _of_sentinels(url: str) -> dict[str, str]:
    """Return the username and password of the Sentinels themselves, where they are given."""
    query = parse_qs(urlsplit(url).query)
    return {name.removeprefix("sentinel_"): values[-1] for name, values in query.items()}


def _short(count: int) -> dict[str, Any]:
    """They are asked one after the other: one that hangs must leave time for the rest."""
    return {"socket_timeout": TIMEOUT / (count + 2), "retry": Retry(NoBackoff(), 0)}

"""Store: one Redis, whether a single server or a Cluster: key names, scripts, ways to send.

Every command sent from here may run twice without harm. The log's appends may not, and go to its
server itself (`home`), whose writer looks what became of them.

All keys of a stream carry the tag {stream id} and so share a slot of a Cluster. Each key has a TTL.
What is no stream's is kept in books and markers: one of each in a single Redis, with an empty tag;
in a Cluster see `cluster`.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.cluster import Cluster
from gateway.errors import Passing
from gateway.line import Command
from gateway.node import Complaints, Node, Single, Way, away

log = logging.getLogger("gateway.store")

MARKER = "gw:marker"  # With the tag of a server.
BEATS = "gw:beats"  # With the tag of a book.

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


def runs_key(replica: str, book: str = "") -> str:
    """Return the key of the set of streams that a replica runs."""
    return f"gw:runs:{replica}{book}"


def cancels_key(replica: str, book: str = "") -> str:
    """Return the key of the set of streams that a replica is asked to cancel."""
    return f"gw:cancels:{replica}{book}"


class Store:
    """The way to all that Redis keeps; errors are Passing `store_unavailable`."""

    def __init__(self, url: str = "") -> None:
        clustered = url.partition("://")[0].endswith("+cluster")
        self.cluster = Cluster(url) if clustered else None
        self._redis: Single | Cluster = self.cluster or Single(url)
        self._complaints = Complaints()
        texts = {path.stem: path.read_text("utf-8") for path in _SCRIPTS.glob("*.lua")}
        self._scripts = {
            name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()
        }

    @property
    def books(self) -> Sequence[str]:
        """The tags of the copies of what replicas tell of each other; they never change."""
        return self._redis.books

    @property
    def markers(self) -> Sequence[str]:
        """The keys of the markers of all servers known."""
        return [MARKER + tag for tag in self._redis.markers]

    def marker_of(self, stream_id: str) -> str:
        """Return the key of the marker that dates the memory a stream is in."""
        return MARKER + self._redis.marker_of(record_key(stream_id))

    @property
    def generation(self) -> int:
        """A number that grows with each new connection that appends go over, to any server."""
        return self._redis.generation

    def home(self, stream_id: str) -> Node:
        """Return the server that has a stream; in a Cluster it may be another one later."""
        return self._redis.home(record_key(stream_id))

    def by_home(self, stream_ids: Iterable[str]) -> list[list[str]]:
        """Return the streams of each server: where one is away, the others must not wait."""
        groups: dict[Node, list[str]] = {}
        for each in stream_ids:
            groups.setdefault(self.home(each), []).append(each)
        return list(groups.values())

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply."""
        return (await self.calls([command]))[0]

    async def calls(self, commands: Iterable[Command]) -> list[Any]:
        """Send several commands in one round trip, not atomic, and return their replies."""
        return self._sound(await _on(self._redis.short, commands))

    async def attempt(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls`, but with the Passing of what failed in place of its reply."""
        given = list(commands)
        try:
            replies = await _on(self._redis.short, given)
        except Passing as error:
            return [error] * len(given)
        return [self._failure(each) if isinstance(each, Exception) else each for each in replies]

    async def read(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls` for replies that may be large."""
        return self._sound(await _on(self._redis.long, commands))

    async def urgent(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls`, but past the crowd: a rush of requests must not look like a death."""
        return self._sound(await _on(self._redis.log, commands))

    async def script(
        self,
        name: str,
        keys: Sequence[Any],
        args: Sequence[Any],
        *,
        of_log: bool = False,
        large: bool = False,
    ) -> Any:
        """Run one of `lua/*.lua` and return its reply, which may be `large`; `of_log`: where
        appends go."""
        short = self._redis.long if large else self._redis.short
        way = self._redis.log if of_log else short
        digest, text = self._scripts[name]
        rest = [len(keys), *keys, *args]
        replies = await _on(way, [["EVALSHA", digest, *rest]])
        if isinstance(replies[0], NoScriptError):
            replies = await _on(way, [["EVAL", text, *rest]])
        return self._sound(replies)[0]

    async def messages(self, channel: str) -> AsyncIterator[bytes]:
        """Yield what is published to a channel, and b"" whenever something may have been missed."""
        while True:
            node = self._redis.anyone()
            try:
                async with aclosing(node.listen(channel)) as messages:
                    async for message in messages:
                        if message is not None:
                            yield message
                        elif node is not self._redis.anyone():
                            break  # It left the Cluster, or does not answer.
            except (RedisError, OSError) as error:
                log.debug("inbox lost: %s", error)  # An outage, of which the beat tells, is many.
                node.on_trouble(error)
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close()

    def _sound(self, replies: list[Any]) -> list[Any]:
        """Return the replies; raises Passing if Redis refused one: it is not the caller's fault."""
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._failure(reply)
        return replies

    def _failure(self, error: Exception) -> Passing:
        if not isinstance(error, ResponseError):
            return away(error)
        self._complaints.note(error)
        return Passing("store_unavailable", reason=str(error)[:200])


async def _on(way: Way, commands: Iterable[Command]) -> list[Any]:
    try:
        return await way.send(commands)
    except (RedisError, OSError) as error:
        raise away(error) from error

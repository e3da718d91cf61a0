"""Client: one Redis, whether a single server or a Cluster: scripts, ways to send.

Every command sent from here may run twice without harm. The log's appends may not, and go to its
server itself (`node_for`), whose writer looks what became of them.

What is no stream's is kept in quorum copies and under dataset ids: one of each in a single Redis,
with an empty tag; in a Cluster see `topology`.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.errors import Unavailable
from gateway.store.connection import Command, CommandSender
from gateway.store.keys import DATASET_ID, record_key
from gateway.store.node import Node, away
from gateway.store.outage import Outage
from gateway.store.pools import TIMEOUT, Address
from gateway.store.topology import ClusterTopology, StandaloneTopology

logger = logging.getLogger("gateway.store.client")


_POLLED = "streams of other replicas are read once a second"
_REST = 30.0  # Seconds until a channel that was refused is tried again.
_SCRIPTS = Path(__file__).parent / "lua"

# ARGV: how many keys and arguments each has, then the arguments of all; KEYS are those of all.
_CHAIN = """\
local parts = {{{}}}
local key, arg, replies = 1, 2 * #parts + 1, {{}}
for i, part in ipairs(parts) do
  local keys, args = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local reply = part({{unpack(KEYS, key, key + keys - 1)}}, {{unpack(ARGV, arg, arg + args - 1)}})
  replies[i] = reply
  if type(reply) == 'table' and reply[1] == 0 then break end
  key, arg = key + keys, arg + args
end
return replies
"""


class Script(NamedTuple):
    """One of `lua/*.lua`, and what it is run with."""

    name: str
    keys: Sequence[Any]
    args: Sequence[Any]


class RedisClient:
    """The way to all that Redis keeps; errors are Unavailable `store_unavailable`."""

    def __init__(self, url: str = "") -> None:
        self.address = Address.of(url)
        self.cluster = ClusterTopology(self.address) if self.address.kind == "cluster" else None
        self._redis: StandaloneTopology | ClusterTopology = self.cluster or StandaloneTopology(
            self.address
        )
        self._refused = self._redis.refused
        self._mute = Outage(
            logger, f"no wake-ups ({_POLLED})", "wake-ups from other replicas are heard again"
        )
        self._scripts = {
            path.stem: _hashed(path.read_text("utf-8")) for path in _SCRIPTS.glob("*.lua")
        }
        self._chains: dict[tuple[str, ...], tuple[str, str]] = {}

    @property
    def quorum_tags(self) -> Sequence[str]:
        """The tags of the copies of what replicas tell of each other; they never change."""
        return self._redis.quorum_tags

    @property
    def dataset_keys(self) -> Sequence[str]:
        """The keys of the dataset ids of all servers known."""
        return [DATASET_ID + tag for tag in self._redis.dataset_tags]

    def dataset_key_of(self, stream_id: str) -> str:
        """Return the key of the dataset id of the server that has a stream."""
        return DATASET_ID + self._redis.dataset_tag_of(record_key(stream_id))

    @property
    def generation(self) -> int:
        """A number that grows with each new connection that appends go over, to any server."""
        return self._redis.generation

    @property
    def nodes(self) -> Sequence[Node]:
        """All servers that have streams, as far as is known."""
        return self._redis.masters

    def node_for(self, stream_id: str) -> Node:
        """Return the server that has a stream; in a Cluster it may be another one later."""
        return self._redis.node_for(record_key(stream_id))

    def node_of(self, key: str) -> Node:
        """Return the server that has a key; in a Cluster it may be another one later."""
        return self._redis.node_for(key)

    def replaced(self, key: str) -> float:
        """Return when the server that has a key took another's place, which may have had more."""
        return self.node_of(key).replaced

    def by_node(self, stream_ids: Iterable[str]) -> list[list[str]]:
        """Return the streams of each server: where one is away, the others must not wait."""
        groups: dict[Node, list[str]] = {}
        for each in stream_ids:
            groups.setdefault(self.node_for(each), []).append(each)
        return list(groups.values())

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply."""
        return (await self.calls([command]))[0]

    async def calls(self, commands: Iterable[Command]) -> list[Any]:
        """Send several commands in one round trip, not atomic, and return their replies."""
        return self._sound(await _on(self._redis.short, commands))

    async def attempt(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls`, but with the Unavailable of what failed in place of its reply."""
        given = list(commands)
        try:
            replies = await _on(self._redis.short, given)
        except Unavailable as error:
            return [error] * len(given)
        return [self._failure(each) if isinstance(each, Exception) else each for each in replies]

    async def read(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls` for replies that may be large."""
        return self._sound(await _on(self._redis.long, commands))

    async def urgent(self, commands: Iterable[Command]) -> list[Any]:
        """Do as `calls`, but past the crowd: a rush of requests must not look like a death."""
        return self._sound(await _on(self._redis.log, commands))

    async def publish(self, messages: Iterable[tuple[str, str]]) -> None:
        """Send words to channels. They may be lost, and so may the right to send any: whoever needs
        them looks for itself once a second."""
        with suppress(Unavailable):
            await _on(self._redis.short, [["PUBLISH", *each] for each in messages])

    async def hears(self, channel: str) -> None:
        """Return once a word sent to a channel was heard there; raises Unavailable."""
        try:
            async with (
                asyncio.timeout(2 * TIMEOUT),
                aclosing(self._redis.default_node().listen(channel)) as messages,
            ):
                await anext(messages)
                self._sound(await _on(self._redis.short, [["PUBLISH", channel, "heard"]]))
                while await anext(messages) != b"heard":
                    pass
        except (RedisError, OSError) as error:
            raise away(error) from error

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
        sender = self._redis.log if of_log else short
        return await self._run(sender, self._scripts[name], [len(keys), *keys, *args])

    async def chain(self, scripts: Sequence[Script], *, of_log: bool = False) -> list[Any]:
        """Run several as one, up to the first that returns {0…}; return the replies of those.

        In a Cluster all their keys have to be of one slot.
        """
        if len(scripts) == 1:
            return [await self.script(*scripts[0], of_log=of_log)]
        names = tuple(each.name for each in scripts)
        chained = self._chains.get(names)
        if chained is None:
            texts = [self._scripts[name][1] for name in names]
            chained = self._chains[names] = _hashed(chain_of(texts))
        keys = [key for each in scripts for key in each.keys]
        counts = [count for each in scripts for count in (len(each.keys), len(each.args))]
        args = [part for each in scripts for part in each.args]
        sender = self._redis.log if of_log else self._redis.short
        replies: list[Any] = await self._run(sender, chained, [len(keys), *keys, *counts, *args])
        return replies

    async def _run(self, sender: CommandSender, script: tuple[str, str], rest: list[Any]) -> Any:
        replies = await _on(sender, [["EVALSHA", script[0], *rest]])
        if isinstance(replies[0], NoScriptError):
            replies = await _on(sender, [["EVAL", script[1], *rest]])
        return self._sound(replies)[0]

    async def messages(self, channel: str) -> AsyncGenerator[bytes, None]:
        """Yield what is published to a channel, and b"" whenever something may have been missed."""
        while True:
            node = self._redis.default_node()
            try:
                async with aclosing(node.listen(channel)) as messages:
                    async for message in messages:
                        if self._mute.open:
                            self._mute.passed()
                        if message is not None:
                            yield message
                        elif node is not self._redis.default_node():
                            break  # It left the Cluster, or does not answer.
            except ResponseError as error:  # No right to channels, or no such command.
                self._mute.failed(error)
                await asyncio.sleep(_REST)
            except (RedisError, OSError) as error:
                logger.debug("the control channel is lost: %s", error)  # `Outage` says so once.
                node.on_trouble(error)
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close()

    def _sound(self, replies: list[Any]) -> list[Any]:
        """Return the replies; Unavailable if Redis refused one: not the caller's fault."""
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._failure(reply)
        if self._refused.open:
            self._refused.passed()
        return replies

    def _failure(self, error: Exception) -> Unavailable:
        if not isinstance(error, ResponseError):
            return away(error)
        self._refused.failed(error)
        return Unavailable("store_unavailable", reason=str(error)[:200])


def chain_of(texts: Iterable[str]) -> str:
    """Return the script that runs these in turn."""
    return _CHAIN.format(",\n".join(f"function(KEYS, ARGV)\n{each}\nend" for each in texts))


def _hashed(text: str) -> tuple[str, str]:
    return hashlib.sha1(text.encode()).hexdigest(), text


async def _on(sender: CommandSender, commands: Iterable[Command]) -> list[Any]:
    try:
        return await sender.send(commands)
    except (RedisError, OSError) as error:
        raise away(error) from error

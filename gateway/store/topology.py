"""Topology: the servers there are, and which of them has which slot of a Redis Cluster.

The map is redis-py's reckoning of slots over connections of our own, not its RedisCluster: that one
hides over which connection a command went, and sends again what may have run. It is learned from
any server that answers, and anew at a redirection or where a server fails.

A key without a stream in it (a dataset id, a quorum copy) gets a tag that puts it into a chosen
slot. Every master has a dataset id of its own, as it may lose its data alone. Its tag is drawn from
the slots the master has, so that a resharding may change it: a dataset id that is missing makes us
wait in vain, never give up too soon. The quorum copies have fixed slots, a third of all apart: all
replicas must look at the same ones.
"""

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway import clock
from gateway.store.connection import CommandSender
from gateway.store.node import Node, away, refusals
from gateway.store.pools import Address
from gateway.store.routing import ClusterRouter

logger = logging.getLogger("gateway.store.topology")

Range = tuple[int, int, Node, list[Node]]  # First and last slot, master, replicas.

SLOTS: int = REDIS_CLUSTER_HASH_SLOTS

_ASKED = 3  # Servers asked for the map at once: the first answer will do.
_REST = 0.1  # Seconds between two looks at the map.
_COPIES = 3  # Of what replicas tell of each other; two of them make a quorum.
_SCATTER = 40503  # Odd: an order of all slots in which neighbours are far apart.


@lru_cache(maxsize=1024)
def tag(slot: int) -> str:
    """Return the shortest number in braces that is in a slot."""
    number = 0
    while key_slot(b"%d" % number) != slot:
        number += 1
    return f"{{{number}}}"


class StandaloneTopology:
    """A Redis that is one server, which has every key."""

    quorum_tags = ("",)
    dataset_tags = ("",)

    def __init__(self, address: Address) -> None:
        self._node = Node(address.pool(), address.name)
        self.refused = self._node.refused
        self.masters: Sequence[Node] = (self._node,)
        self.log: CommandSender = self._node.log
        self.short: CommandSender = self._node.short
        self.long: CommandSender = self._node.long

    def node_for(self, key: str) -> Node:
        """Return the server that has a key."""
        return self._node

    def dataset_tag_of(self, key: str) -> str:
        """Return the tag of the dataset id of the server that has a key."""
        return ""

    @property
    def generation(self) -> int:
        """A number that grows with each new connection that appends go over."""
        return self._node.generation

    def default_node(self) -> Node:
        """Return a server for what is no key's."""
        return self._node

    async def close(self) -> None:
        """Close all connections."""
        await self._node.close()


class ClusterTopology:
    """All servers of a Cluster, each found by its keys; see `StandaloneTopology` for one server."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.refused = refusals()
        self._nodes: dict[str, Node] = {}
        self._slots: list[Node | None] = []
        self._ranges: list[Range] = []
        self._masters: list[Node] = []
        self._dataset_tags: dict[Node, str] = {}
        self._default: Node | None = None
        self._moved_to: Node | None = None  # Who got a slot last: others may not have heard of it.
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed = float("-inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._seeds = [self._node(host, port) for host, port in address.hosts]
        self.quorum_tags = tuple(tag((2 * n + 1) * SLOTS // (2 * _COPIES)) for n in range(_COPIES))
        # A log that is half moved must not hold up the others of its server.
        self.log: CommandSender = ClusterRouter(self, "log", idempotent=False, retry_timeout=0.1)
        self.short: CommandSender = ClusterRouter(self, "short", idempotent=True, retry_timeout=1.0)
        self.long: CommandSender = ClusterRouter(self, "long", idempotent=True, retry_timeout=1.0)

    # Who has what

    def node_for(self, key: str) -> Node:
        """Return the server that has a key, as far as is known."""
        return self.node_of_slot(key_slot(key.encode()))

    def node_of_slot(self, slot: int) -> Node:
        """Return the server that has a slot; if nobody has it, one that can say so."""
        return (self._slots[slot] if self._slots else None) or self.default_node()

    def default_node(self) -> Node:
        """Return a server for what is no key's: the same one until it is in trouble."""
        if self._default is None:
            self._default = random.choice(self._masters or self._seeds)
        return self._default

    @property
    def generation(self) -> int:
        """A number that grows with each new connection that appends go over, to any server."""
        return sum(node.generation for node in self._nodes.values())

    @property
    def masters(self) -> list[Node]:
        """The servers that have slots, as far as is known."""
        return self._masters

    @property
    def dataset_tags(self) -> list[str]:
        """The tags of all masters' dataset ids."""
        return list(self._dataset_tags.values())

    def dataset_tag_of(self, key: str) -> str:
        """Return the tag of the dataset id of the server that has a key."""
        return self._dataset_tags.get(self.node_for(key), self.quorum_tags[0])

    async def shards(self) -> list[tuple[Node, list[Node]]]:
        """Return the masters, each with its replicas; raises Unavailable."""
        try:
            await self.refreshed()
        except (RedisError, OSError) as error:
            raise away(error) from error
        found = {master: replicas for _, _, master, replicas in self._ranges}
        return list(found.items())

    # Learning it

    async def ready(self) -> None:
        """Return once there is a map; raises RedisError."""
        if not self._slots:
            await self.refreshed()

    async def refreshed(self) -> None:
        """Learn the map anew; many who want it at once share one look. Raises RedisError."""
        if self._closed:
            raise RedisConnectionError("the store is closed")
        if self._refresh is None or self._refresh.done():
            self._refresh = self._spawn(self._look())
        await asyncio.shield(self._refresh)

    def moved(self, error: MovedError, redirecting: Node) -> None:
        """Take note of a slot's new node; there is more to learn where one has moved."""
        self._moved_to = self.named(error, redirecting)
        self._note_promoted([self._moved_to])
        if self._slots:
            self._slots[error.slot_id] = self._moved_to
        self._look_soon()

    def named(self, error: AskError, redirecting: Node) -> Node:
        """Return the server that a redirection names; without a host it is its own."""
        return self._node(error.host or redirecting.name.rpartition(":")[0], error.port)

    def trouble(self, node: Node) -> None:
        """Take note that a server does not answer: another may have its slots by now."""
        node.answers = False
        if node is self._default:
            others = [each for each in self._masters or self._seeds if each.answers]
            self._default = random.choice(others) if others else None
        self._look_soon()

    def _refused(self, node: Node, error: Exception) -> None:
        if isinstance(error, MovedError) and not isinstance(error, AskError):
            self.moved(error, node)
        elif not isinstance(error, ResponseError):
            self.trouble(node)

    def _look_soon(self) -> None:
        if not self._closed and (self._refresh is None or self._refresh.done()):
            self._refresh = self._spawn(self._look())

    async def _look(self) -> None:
        again = True
        while again:
            await asyncio.sleep(max(0.0, self._refreshed + _REST - clock.now()))
            try:
                self._learn(await self._told())
            finally:
                self._refreshed = clock.now()
            again = self._moved_to is not None  # A slot was seen to move meanwhile.

    async def _told(self) -> list[Range]:
        node, self._moved_to = self._moved_to, None
        if node is not None and node.answers:
            with suppress(RedisError, OSError):
                return await self._ask(node)
        nodes = list(dict.fromkeys([*self._masters, *self._seeds]))
        random.shuffle(nodes)
        nodes.sort(key=lambda node: not node.answers)
        error: Exception = RedisConnectionError("no server of the cluster is known")
        for start in range(0, len(nodes), _ASKED):
            try:
                return await _first([self._ask(each) for each in nodes[start : start + _ASKED]])
            except (RedisError, OSError) as failure:
                error = failure
        raise error

    async def _ask(self, node: Node) -> list[Range]:
        (reply,) = await node.short.send([["CLUSTER", "SLOTS"]])
        if isinstance(reply, Exception):
            raise reply
        if not reply:
            raise RedisConnectionError(f"{node.name} knows of no slots")
        return [
            (int(first), int(last), *self._shard(servers, node)) for first, last, *servers in reply
        ]

    def _shard(self, servers: list[Any], asked: Node) -> tuple[Node, list[Node]]:
        own = asked.name.rpartition(":")[0]
        found = [
            self._node(host.decode() if host else own, int(port)) for host, port, *_ in servers
        ]
        return found[0], found[1:]

    def _learn(self, ranges: list[Range]) -> None:
        slots: list[Node | None] = [None] * SLOTS
        for first, last, master, _ in ranges:
            slots[first : last + 1] = [master] * (last + 1 - first)
        if ranges != self._ranges:
            self._dataset_tags = _dataset_tags(slots)
        self._note_promoted(self._dataset_tags)
        # A redirection may have told more than that.
        demoted = [each for each in self._masters if each not in self._dataset_tags]
        self._slots, self._ranges, self._masters = slots, ranges, list(self._dataset_tags)
        if self._default not in self._dataset_tags:
            self._default = None
        for node in demoted:
            # Should it become a master again, it may know less: the same connection must not
            # make us believe that nothing happened.
            logger.info("%s is no master any more", node.name)
            self._spawn(node.close())

    def _note_promoted(self, nodes: Iterable[Node]) -> None:
        """Take note of servers that were no masters until now; those of the first map were."""
        for node in nodes if self._masters else ():
            if node not in self._masters:
                node.promoted = clock.now()

    def _node(self, host: str, port: int) -> Node:
        """Return a server by its address; a server that comes back is the same one."""
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if where not in self._nodes:
            node = Node(self._address.server(host, port), where, self.refused)
            node.on_trouble = partial(self._refused, node)
            self._nodes[where] = node
        return self._nodes[where]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.debug("the map of the cluster is not renewed: %s", error)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self._nodes.values():
            await node.close()


async def _first(asked: list[Coroutine[Any, Any, list[Range]]]) -> list[Range]:
    """Return the first answer of several; raises what the last one failed with."""
    tasks = [asyncio.create_task(each) for each in asked]
    error: Exception = RedisConnectionError("nobody was asked")
    try:
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except (RedisError, OSError) as failure:
                error = failure
        raise error
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _dataset_tags(slots: list[Node | None]) -> dict[Node, str]:
    """Return the tag of each master's dataset id."""
    chosen: dict[Node, int] = {}
    for number in range(SLOTS):
        slot = number * _SCATTER % SLOTS
        node = slots[slot]
        if node is not None and node not in chosen:
            chosen[node] = slot
    return {node: tag(slot) for node, slot in chosen.items()}

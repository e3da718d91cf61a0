"""Routing: sends each command of many to the server of a Redis Cluster that has its key.

Commands in a row on keys of one slot are one batch: they go together, in their order, and so do
those without a key of their own (TIME, PUBLISH) next to them. What a server refuses is sent on, and
no more than that: MOVED tells of a slot's new node, ASK of one that is moving just now, TRYAGAIN of
a script whose keys are half moved. All of it may run twice where a connection broke, but what
changes a log: that is sent again only where a server refused it.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError, TryAgainError

from gateway import clock
from gateway.store.connection import Command, CommandSender
from gateway.store.node import Node

_PAUSE = 0.03
_TURNS = 3  # Redirections in a row without a pause: servers may contradict each other for a while.
_KEYLESS = frozenset(
    (
        *("CLIENT", "CLUSTER", "CONFIG", "ECHO", "FLUSHALL", "INFO", "PING", "PUBLISH"),
        *("SAVE", "SCAN", "SCRIPT", "TIME"),
    )
)
_REFUSALS = (MovedError, AskError, TryAgainError)


class Topology(Protocol):
    """What a router must know of the Cluster."""

    def node_of_slot(self, slot: int) -> Node:
        """Return the server that has a slot."""

    def default_node(self) -> Node:
        """Return a server for what is no key's."""

    async def ready(self) -> None:
        """Return once it is known who has what; raises RedisError."""

    async def refreshed(self) -> None:
        """Learn anew who has what; raises RedisError."""

    def moved(self, error: MovedError, redirecting: Node) -> None:
        """Take note of a slot's new node."""

    def named(self, error: AskError, redirecting: Node) -> Node:
        """Return the server that a redirection names."""

    def trouble(self, node: Node) -> None:
        """Take note that a server does not answer."""


@dataclass(slots=True, eq=False)
class SlotBatch:
    """Commands that travel together; `asked` is where an ASK sent those that are `left`."""

    slot: int | None
    commands: list[Command]
    asked: Node | None = None
    tried: Node | None = None
    turns: int = 0
    replies: list[Any] = field(default_factory=list)
    left: list[int] | None = None  # The numbers of those that are to be sent, None: all.

    def node_for(self, topology: Topology) -> Node:
        """Return where it goes next."""
        if self.asked is not None:
            return self.asked
        return topology.default_node() if self.slot is None else topology.node_of_slot(self.slot)

    @property
    def packed(self) -> list[Command]:
        """The commands as they are sent: a server that is asked answers only who says so."""
        if self.left is None:
            return self.commands
        due = [self.commands[number] for number in self.left]
        return [part for each in due for part in (["ASKING"], each)] if self.asked else due

    def answer(self, replies: list[Any]) -> None:
        """Take the replies to what was sent."""
        if self.left is None:
            self.replies = replies
            return
        for number, reply in zip(self.left, replies[1::2] if self.asked else replies, strict=True):
            self.replies[number] = reply

    def fail(self, error: Exception) -> None:
        """Take an error for every reply."""
        self.answer([error] * len(self.packed))

    def leave_refused(self) -> bool:
        """Leave to be sent what a server sent elsewhere; return whether there is any.

        Of a slot that is moving each key is at one end. A command that has run must not run at the
        other: it would find its key missing, or make one there that could not be moved any more.
        """
        refused = [each for each in self._sent if isinstance(self.replies[each], _REFUSALS)]
        self.left = refused or self.left
        return bool(refused)

    def first(self, kind: type[Exception]) -> Any:
        """Return the first reply of a kind to what was sent, None if there is none."""
        replies = (self.replies[number] for number in self._sent)
        return next((reply for reply in replies if isinstance(reply, kind)), None)

    @property
    def failed(self) -> bool:
        """Whether no server has answered what was sent."""
        error = self.replies[self._sent[0]]
        return isinstance(error, RedisError | OSError) and not isinstance(error, ResponseError)

    @property
    def _sent(self) -> Sequence[int]:
        return range(len(self.commands)) if self.left is None else self.left


def split(commands: Iterable[Command]) -> list[SlotBatch]:
    """Return the commands as batches, in their order."""
    batches: list[SlotBatch] = []
    loose: list[Command] = []
    for command in commands:
        slot = slot_of(command)
        if slot is None:
            loose.append(command)
        elif batches and batches[-1].slot == slot:
            batches[-1].commands += [*loose, command]
            loose = []
        else:
            batches.append(SlotBatch(slot, [*loose, command]))
            loose = []
    if batches:
        batches[-1].commands += loose
    elif loose:
        batches.append(SlotBatch(None, loose))
    return batches


def slot_of(command: Command) -> int | None:
    """Return the slot of a command's first key, None if it has no key."""
    word = _word(command)
    if word in _KEYLESS:
        return None
    key = command[3] if word in {"EVAL", "EVALSHA"} else command[1]
    return int(key_slot(key if isinstance(key, bytes) else str(key).encode()))


def _word(command: Command) -> str:
    word = command[0]
    return str(word.decode() if isinstance(word, bytes) else word).upper()


class ClusterRouter(CommandSender):
    """One kind of connection to all servers; `idempotent` as with a PipelinedConnection.

    `retry_timeout` is in seconds: for how long what is refused for a while, as by a slot's move, is
    sent again. Where a server is away its error stands in place of each of its replies, so that
    what others answered is not lost.
    """

    def __init__(
        self, topology: Topology, connection: str, *, idempotent: bool, retry_timeout: float
    ) -> None:
        self._topology = topology
        self._connection = connection
        self._idempotent = idempotent
        self._retry_timeout = retry_timeout

    async def send(self, commands: Iterable[Command]) -> list[Any]:
        """Return the replies, errors among them; raises RedisError if no server is known."""
        batches = split(commands)
        if not batches:
            return []
        await self._topology.ready()
        left, deadline = batches, None
        while left:
            await self._round(left)
            left = await self._again(left)
            now = clock.now()
            # However long a dead one was waited for.
            deadline = deadline or now + self._retry_timeout
            if now > deadline:
                break
        return [reply for batch in batches for reply in batch.replies]

    async def _round(self, batches: list[SlotBatch]) -> None:
        groups: dict[Node, list[SlotBatch]] = {}
        for batch in batches:
            batch.tried = batch.node_for(self._topology)
            groups.setdefault(batch.tried, []).append(batch)
        if len(groups) == 1:
            ((node, some),) = groups.items()
            await self._ask(node, some)
        else:
            await asyncio.gather(*(self._ask(node, some) for node, some in groups.items()))

    async def _ask(self, node: Node, batches: list[SlotBatch]) -> None:
        sender: CommandSender = getattr(node, self._connection)
        try:
            replies = await sender.send([each for batch in batches for each in batch.packed])
        except (RedisError, OSError) as error:
            self._topology.trouble(node)
            for batch in batches:
                batch.fail(error)
            return
        node.answers = True
        start = 0
        for batch in batches:
            end = start + len(batch.packed)
            batch.answer(replies[start:end])
            start = end

    async def _again(self, batches: list[SlotBatch]) -> list[SlotBatch]:
        """Return what is to be sent again: it did not run there, or may run twice."""
        again = [batch for batch in batches if self._redirected(batch)]
        if any(batch.first(TryAgainError) or batch.turns > _TURNS for batch in again):
            await asyncio.sleep(_PAUSE)
        if not self._idempotent:
            return again
        failed = [batch for batch in batches if batch.failed]
        if failed:
            with suppress(RedisError, OSError):
                await self._topology.refreshed()
        return again + [
            batch for batch in failed if batch.node_for(self._topology) is not batch.tried
        ]

    def _redirected(self, batch: SlotBatch) -> bool:
        """Whether a server refused it because another has its slot, or will have."""
        assert batch.tried is not None
        batch.asked = None
        batch.turns += 1
        refused = batch.leave_refused()
        if moved := batch.first(MovedError):
            self._topology.moved(moved, batch.tried)
        elif ask := batch.first(AskError):
            batch.asked = self._topology.named(ask, batch.tried)
        return refused

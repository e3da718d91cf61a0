"""Routing: sends each command of many to the server of a Redis Cluster that has its key.

Commands in a row on keys of one slot are one unit: they go together, in their order, and so do
those without a key of their own (TIME, PUBLISH) next to them. What a server refuses is sent on, and
no more than that: MOVED tells of a new home, ASK of a slot that is moving just now, TRYAGAIN of a
script whose keys are half moved. All of it may run twice where a connection broke, but what changes
a log: that is sent again only where a server refused it.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError, TryAgainError

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


class SlotMap(Protocol):
    """What a route must know of the Cluster."""

    def of_slot(self, slot: int) -> Node:
        """Return the server that has a slot."""

    def anyone(self) -> Node:
        """Return a server for what is no key's."""

    async def ready(self) -> None:
        """Return once it is known who has what; raises RedisError."""

    async def refreshed(self) -> None:
        """Learn anew who has what; raises RedisError."""

    def moved(self, error: MovedError, teller: Node) -> None:
        """Take note of a slot's new home."""

    def named(self, error: AskError, teller: Node) -> Node:
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

    def home(self, known: SlotMap) -> Node:
        """Return where it goes next."""
        if self.asked is not None:
            return self.asked
        return known.anyone() if self.slot is None else known.of_slot(self.slot)

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
    """Return the commands as units, in their order."""
    units: list[SlotBatch] = []
    loose: list[Command] = []
    for command in commands:
        slot = slot_of(command)
        if slot is None:
            loose.append(command)
        elif units and units[-1].slot == slot:
            units[-1].commands += [*loose, command]
            loose = []
        else:
            units.append(SlotBatch(slot, [*loose, command]))
            loose = []
    if units:
        units[-1].commands += loose
    elif loose:
        units.append(SlotBatch(None, loose))
    return units


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
    """One kind of line to all servers; `once_more` as with a PipelinedConnection.

    `patience` is in seconds: for how long a refusal that will pass, as a slot's move, is tried on.
    Where a server is away its error stands in place of each of its replies, so that what others
    answered is not lost.
    """

    def __init__(self, known: SlotMap, line: str, *, once_more: bool, patience: float) -> None:
        self._map = known
        self._line = line
        self._once_more = once_more
        self._patience = patience

    async def send(self, commands: Iterable[Command]) -> list[Any]:
        """Return the replies, errors among them; raises RedisError if no server is known."""
        units = split(commands)
        if not units:
            return []
        await self._map.ready()
        left, deadline = units, None
        while left:
            await self._round(left)
            left = await self._again(left)
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + self._patience  # However long a dead one was waited for.
            if now > deadline:
                break
        return [reply for unit in units for reply in unit.replies]

    async def _round(self, units: list[SlotBatch]) -> None:
        groups: dict[Node, list[SlotBatch]] = {}
        for unit in units:
            unit.tried = unit.home(self._map)
            groups.setdefault(unit.tried, []).append(unit)
        if len(groups) == 1:
            ((node, some),) = groups.items()
            await self._ask(node, some)
        else:
            await asyncio.gather(*(self._ask(node, some) for node, some in groups.items()))

    async def _ask(self, node: Node, units: list[SlotBatch]) -> None:
        way: CommandSender = getattr(node, self._line)
        try:
            replies = await way.send([each for unit in units for each in unit.packed])
        except (RedisError, OSError) as error:
            self._map.trouble(node)
            for unit in units:
                unit.fail(error)
            return
        node.answers = True
        start = 0
        for unit in units:
            end = start + len(unit.packed)
            unit.answer(replies[start:end])
            start = end

    async def _again(self, units: list[SlotBatch]) -> list[SlotBatch]:
        """Return what is to be sent again: it did not run there, or may run twice."""
        again = [unit for unit in units if self._redirected(unit)]
        if any(unit.first(TryAgainError) or unit.turns > _TURNS for unit in again):
            await asyncio.sleep(_PAUSE)
        if not self._once_more:
            return again
        failed = [unit for unit in units if unit.failed]
        if failed:
            with suppress(RedisError, OSError):
                await self._map.refreshed()
        return again + [unit for unit in failed if unit.home(self._map) is not unit.tried]

    def _redirected(self, unit: SlotBatch) -> bool:
        """Whether a server refused it because another has its slot, or will have."""
        assert unit.tried is not None
        unit.asked = None
        unit.turns += 1
        refused = unit.leave_refused()
        if moved := unit.first(MovedError):
            self._map.moved(moved, unit.tried)
        elif ask := unit.first(AskError):
            unit.asked = self._map.named(ask, unit.tried)
        return refused

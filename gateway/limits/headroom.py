"""Headroom: what new tickets leave to the streams that run.

A Redis at its `maxmemory` refuses appends and heartbeats like anything else, and then all streams
stand still. So the last part of it is not for tickets. Every replica looks about once a second and
counts what it has let in since; where that comes to a quarter of the room seen it looks again, as
others let in too.
"""

import asyncio

from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.node import Node

_REFUSED = 10  # Looks left out after one that was refused: a Redis may not let us have INFO.
_LOOKS = 10  # For one ticket.


class Room:
    """The memory of one server as it was seen last, and what has been let in since; in bytes."""

    def __init__(self, node: Node, share: float) -> None:
        self._node = node
        self._share = share
        self._left: int | None = None  # None: no bound is known.
        self._since = 0  # Let in and stored since the last look.
        self._in_flight = 0  # Let in, and perhaps not stored yet.
        self._looking: asyncio.Task[None] | None = None
        self._pause = 0

    async def refresh(self) -> None:
        """Learn how much is left; many who want it at once share one look."""
        if self._pause:
            self._pause -= 1
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            self._left = _left(await self._node.call("INFO", "memory"), self._share)
        except (Unavailable, ValueError) as error:
            # One that was only slow is asked again soon: nothing is kept back from it meanwhile.
            self._left, self._pause = None, 0 if error.__cause__ else _REFUSED
        self._since = 0

    async def fits(self, size: int) -> bool:
        """Whether this much may be let in."""
        for _ in range(_LOOKS):
            if self._left is None:
                return True
            taken = self._since + self._in_flight
            if size > self._left or taken + size <= self._left / 4 or not taken:
                return size <= self._left
            await self.refresh()
        return False  # Others are faster; what comes back finds it full, or less of a crowd.

    def take(self, size: int) -> None:
        """Count this much, from before it is sent."""
        self._in_flight += size

    def stored(self, size: int) -> None:
        """Count it as stored, until the next look; whatever came of it."""
        self._in_flight -= size
        self._since += size


class Headroom:
    """The room of all servers; `share` is the part of `maxmemory` that tickets may fill."""

    def __init__(self, store: RedisClient, share: float) -> None:
        self._store = store
        self._share = share
        self._rooms: dict[Node, Room] = {}

    async def refresh(self) -> None:
        """Look at all servers, none of which waits for another."""
        if self._share < 1:
            nodes = self._store.nodes
            self._rooms = {each: self._of(each) for each in nodes}
            await asyncio.gather(*(room.refresh() for room in self._rooms.values()))

    async def room_for(self, stream_id: str, size: int) -> Room:
        """Return the room that a request has to be counted in; Unavailable if it does not fit."""
        room = self._of(self._store.node_for(stream_id))
        if not await room.fits(size):
            raise Unavailable("store_full")
        return room

    def _of(self, node: Node) -> Room:
        return self._rooms.get(node) or Room(node, self._share)


def _left(info: bytes, share: float) -> int | None:
    """Return how much tickets may still fill, None if there is no bound."""
    pairs = (line.partition(":") for line in info.decode().splitlines())
    told = {name: value for name, _, value in pairs}
    most = int(told.get("maxmemory", 0))
    # One that makes room by itself is full of what it would drop, and refuses nobody.
    if not most or told.get("maxmemory_policy", "noeviction") != "noeviction":
        return None
    # What Redis does not count itself: a replica that hangs has hundreds of megabytes to come.
    used = int(told.get("used_memory", 0)) - int(told.get("mem_not_counted_for_evict", 0))
    return int(most * share) - used

"""Beat: the lease of one process, and the deaths it sees of others.

A replica raises its own counter in one hash every third of the lease and names the streams it runs.
No clocks are compared: another replica is dead once its counter stood still for a whole lease on
this one's monotonic clock, with Redis answering all the while; one failed call starts the count
anew. An owner that cannot renew is not dead but suspended: it may read its upstream on, but must
not ask it anything (`fresh`).
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gateway.records import DAY, naming
from gateway.store import BEATS, MARKER, Store, cancels_key, runs_key


@dataclass(slots=True)
class News:
    """What one renewal learned: who died, what is to be cancelled, whether Redis forgot."""

    dead: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    forgot: bool = False


class Beat:
    """This replica's sign of life; `lease` is in seconds."""

    def __init__(self, store: Store, replica: str, lease: float) -> None:
        self.replica = replica
        self.lease = lease
        self.interval = lease / 3
        self._store = store
        self._count = 0
        self._marker: bytes | None = None
        self._renewed = float("-inf")
        self._seen: dict[str, tuple[bytes, float]] = {}

    @property
    def fresh(self) -> bool:
        """Whether nobody can have declared this replica dead yet, with a margin for the send."""
        return _now() - self._renewed < self.lease * 0.6

    @property
    def renewed(self) -> float:
        """When the last renewal that Redis answered was begun."""
        return self._renewed

    async def renew(self, running: Collection[str], owners: Collection[str]) -> News:
        """Raise the counter, name the running streams, look at the others; raises Passing.

        `owners` run streams that are watched here: they are dead too if Redis forgot their beat
        and they never bring it back.
        """
        started = _now()
        if started - self._renewed > 2 * self.interval:
            self._seen.clear()  # Who did not look for long did not see the others stand still.
        try:
            replies = await self._renew(running)
        except BaseException:
            self._seen.clear()
            raise
        self._renewed = started
        marker, cancels = replies[1], replies[3]
        beats = dict(zip(replies[2][::2], replies[2][1::2], strict=True))
        forgot = self._marker is not None and marker != self._marker
        self._marker = marker
        for owner in owners:
            beats.setdefault(owner.encode(), b"")
        return News(self._dead(beats, started), [each.decode() for each in cancels], forgot)

    async def _renew(self, running: Collection[str]) -> list[Any]:
        ((seconds, micros),) = await self._store.urgent([["TIME"]])
        now = int(seconds) * 1000 + int(micros) // 1000
        self._count += 1
        runs, cancels = runs_key(self.replica), cancels_key(self.replica)
        reads: list[list[Any]] = [
            ["SET", MARKER, now, "NX", "PX", DAY],
            ["GET", MARKER],
            ["HGETALL", BEATS],
            ["SMEMBERS", cancels],
        ]
        writes: list[list[Any]] = [
            ["PEXPIRE", MARKER, DAY],
            ["HSET", BEATS, self.replica, self._count],
            ["PEXPIRE", BEATS, DAY],
        ]
        if running:
            writes.append(["SADD", runs, *running])
        # At every beat: where these were made, the connection may have broken before the TTL.
        writes += [["PEXPIRE", runs, DAY], ["PEXPIRE", cancels, DAY]]
        return await self._store.urgent(reads + writes)

    def _dead(self, beats: dict[bytes, bytes], now: float) -> list[str]:
        seen, self._seen = self._seen, {}
        dead: list[str] = []
        for name, count in beats.items():
            replica = name.decode()
            if replica == self.replica:
                continue
            before, since = seen.get(replica, (count, now))
            since = since if before == count else now
            self._seen[replica] = (count, since)
            if now - since >= self.lease:
                dead.append(replica)
        return dead

    async def enter(self, stream_id: str) -> None:
        """Name a stream as run by this replica, before it is claimed or taken over."""
        await self._store.calls(naming(self.replica, stream_id))

    async def leave(self, *stream_ids: str) -> None:
        """Take ended streams off this replica's list."""
        await self._store.call("SREM", runs_key(self.replica), *stream_ids)

    async def ask_to_cancel(self, stream_id: str, owner: str) -> None:
        """Tell an owner that a cancel is stored, now and should it miss the message."""
        key = cancels_key(owner)
        await self._store.calls(
            [
                ["SADD", key, stream_id],
                ["PEXPIRE", key, DAY],
                ["PUBLISH", inbox(owner), f"cancel {stream_id}"],
            ]
        )

    async def cancels(self) -> list[str]:
        """Return the streams this replica is asked to cancel, also where a message was lost."""
        return [
            each.decode() for each in await self._store.call("SMEMBERS", cancels_key(self.replica))
        ]

    async def cancelled(self, *stream_ids: str) -> None:
        """Forget requests that were carried out."""
        await self._store.call("SREM", cancels_key(self.replica), *stream_ids)

    async def streams_of(self, replica: str) -> list[str]:
        """Return the streams that a replica named as run by it."""
        members = await self._store.call("SMEMBERS", runs_key(replica))
        return [each.decode() for each in members]

    async def bury(self, replica: str) -> None:
        """Forget a dead replica whose streams are all taken over."""
        await self._store.calls(
            [["HDEL", BEATS, replica], ["DEL", runs_key(replica)], ["DEL", cancels_key(replica)]]
        )
        self._seen.pop(replica, None)

    async def stop(self) -> None:
        """Leave in good order, so that nobody waits for this replica to be dead."""
        await self.bury(self.replica)


def inbox(replica: str) -> str:
    """Return the channel on which a replica hears what concerns it."""
    return f"gw:inbox:{replica}"


def _now() -> float:
    return asyncio.get_running_loop().time()

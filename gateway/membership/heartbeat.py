"""Heartbeat: the lease of one process, and the deaths it sees of others.

A replica raises its own counter in one hash every third of the lease and names the streams it runs.
No clocks are compared: another replica is dead once its counter stood still for a whole lease on
this one's monotonic clock, with Redis answering all the while; one failed call starts the count
anew. An owner that cannot renew is not dead but suspended: it may read its upstream on, but must
not ask it anything (`lease_valid`).

A Cluster keeps three copies of all this, so that no server's absence stops all replicas: a quorum
must have been written for a lease to be valid, and a quorum must tell of a death. Any two quorums
share a copy, so nobody has a valid lease and is dead at once.
"""

from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

from gateway import clock
from gateway.errors import Unavailable
from gateway.membership.failure_detector import FailureDetector, deaths
from gateway.store.client import RedisClient
from gateway.store.keys import DAY, HEARTBEATS, cancels_key, control_channel, naming, runs_key
from gateway.store.quorum import Quorum

T = TypeVar("T")

Counters = dict[tuple[str, str], bytes]  # By a copy's tag and a replica's name.


class QuorumCopy:
    """One copy of what the replicas tell of each other; `lease` is in seconds."""

    def __init__(self, store: RedisClient, replica: str, lease: float, tag: str) -> None:
        self.heartbeats = HEARTBEATS + tag
        self.runs = runs_key(replica, tag)
        self.cancels = cancels_key(replica, tag)
        self.tag = tag
        self._store = store
        self._replica = replica
        self._count = 0
        self._busy = False
        self.answers = False  # As far as is known: one that fails tells of no death.
        self.detector = FailureDetector(lease)

    async def renew(self, running: Collection[str]) -> list[str]:
        """Raise the counter, name the streams run; return what to cancel. Raises Unavailable."""
        if self._busy:
            raise Unavailable("store_unavailable", "The last renewal is not answered yet.")
        begun = clock.now()
        self.detector.begin(begun)
        self._busy = True
        try:
            heartbeats, cancels = await self._renew(running)
        except BaseException:
            self.answers = False
            self.detector.failed()
            raise
        finally:
            self._busy = False
        self.answers = True
        counters = dict(zip(map(bytes.decode, heartbeats[::2]), heartbeats[1::2], strict=True))
        self.detector.answered(begun, clock.now(), counters)
        return [each.decode() for each in cancels]

    async def _renew(self, running: Collection[str]) -> tuple[list[bytes], list[bytes]]:
        self._count += 1
        reads: list[list[Any]] = [["HGETALL", self.heartbeats], ["SMEMBERS", self.cancels]]
        writes: list[list[Any]] = [
            ["HSET", self.heartbeats, self._replica, self._count],
            ["PEXPIRE", self.heartbeats, DAY],
        ]
        if running:
            writes.append(["SADD", self.runs, *running])
        # At every heartbeat: where these were made, the connection may have broken before the TTL.
        writes += [["PEXPIRE", self.runs, DAY], ["PEXPIRE", self.cancels, DAY]]
        heartbeats, cancels, *_ = await self._store.urgent(reads + writes)
        return heartbeats, cancels


class Heartbeat:
    """This replica's sign of life; `lease` is in seconds. What asks Redis may raise Unavailable."""

    def __init__(self, store: RedisClient, replica: str, lease: float) -> None:
        self.replica = replica
        self.lease = lease
        self.interval = lease / 3
        self._store = store
        self._copies = [QuorumCopy(store, replica, lease, tag) for tag in store.quorum_tags]
        self._quorum = Quorum(len(self._copies))

    @property
    def lease_valid(self) -> bool:
        """Whether nobody can have declared this replica dead yet."""
        now = clock.now()
        valid = (copy.detector.lease_valid(now) for copy in self._copies)
        return sum(valid) >= self._quorum.size

    def lease_held_since(self, since: float) -> bool:
        """Whether nobody can have declared this replica dead since a moment."""
        now = clock.now()
        held = (copy.detector.lease_held_since(since, now) for copy in self._copies)
        return sum(held) >= self._quorum.size

    @property
    def renewed(self) -> float:
        """When the last renewal was begun that a quorum answered."""
        return sorted(copy.detector.renewed for copy in self._copies)[-self._quorum.size]

    async def renew(self, running: Collection[str]) -> list[str]:
        """Raise the counter, name the running streams; return what to cancel."""
        answers = await self._ask(lambda copy: copy.renew(running))
        return list({each for asked in answers for each in asked})

    def deaths(self, owners: Collection[str]) -> list[str]:
        """Return who is dead by what the renewals read; to be asked once after each of them.

        `owners` run streams that are watched here: they are dead too if Redis forgot their count
        and they never bring it back.
        """
        heard = [copy.detector for copy in self._copies if copy.answers]
        names = {*owners, *(name for each in heard for name in each.named)} - {self.replica}
        return deaths(heard, names, self._quorum.size)

    async def register(self, stream_id: str) -> None:
        """Name a stream as run by this replica, before it is claimed or taken over."""
        await self._ask(lambda copy: self._store.calls(naming(self.replica, stream_id, copy.tag)))

    async def unregister(self, *stream_ids: str) -> None:
        """Take ended streams off this replica's list."""
        await self._ask(lambda copy: self._store.call("SREM", copy.runs, *stream_ids))

    async def ask_to_cancel(self, stream_id: str, owner: str) -> None:
        """Tell an owner that a cancel is stored, now and should it miss the message."""

        async def ask(copy: QuorumCopy) -> None:
            await self._store.script("ask", [cancels_key(owner, copy.tag)], [DAY, stream_id])
            await self._store.publish([(control_channel(owner), f"cancel {stream_id}")])

        await self._ask(ask)

    async def replicas(self) -> list[str]:
        """Return all that have a heartbeat, this one and some that are dead among them."""
        return _union(await self._ask(lambda copy: self._store.call("HKEYS", copy.heartbeats)))

    async def counters(self) -> Counters:
        """Return the counter of each that has a heartbeat, in each copy that a quorum read."""

        async def read(copy: QuorumCopy) -> Counters:
            told = await self._store.call("HGETALL", copy.heartbeats)
            names = [(copy.tag, each.decode()) for each in told[::2]]
            return dict(zip(names, told[1::2], strict=True))

        return {key: count for told in await self._ask(read) for key, count in told.items()}

    async def cancels(self) -> list[str]:
        """Return the streams this replica is asked to cancel, also where a message was lost."""
        return await self._members(lambda copy: copy.cancels)

    async def cancelled(self, *stream_ids: str) -> None:
        """Forget requests that were carried out."""
        await self._ask(lambda copy: self._store.call("SREM", copy.cancels, *stream_ids))

    async def streams_of(self, replica: str) -> list[str]:
        """Return the streams that a replica named as run by it."""
        return await self._members(lambda copy: runs_key(replica, copy.tag))

    async def _members(self, key: Callable[[QuorumCopy], str]) -> list[str]:
        return _union(await self._ask(lambda copy: self._store.call("SMEMBERS", key(copy))))

    async def left_by(self, dead: str) -> list[str]:
        """Return the streams that a dead replica named; Unavailable if it came back since.

        The list is read first: what a replica claims after a pause is not on it, or its counter
        tells.
        """

        async def left(copy: QuorumCopy) -> Any:
            reads = [["SMEMBERS", runs_key(dead, copy.tag)], ["HGET", copy.heartbeats, dead]]
            members, count = await self._store.calls(reads)
            if (count or b"") != copy.detector.count_of(dead):
                raise _alive()
            return members

        return _union(await self._ask(left))

    async def taken_over(self, dead: str, stream_ids: Collection[str]) -> None:
        """Take streams off a dead replica's list; Unavailable if it came back since it was seen."""
        await self._ask(lambda copy: self._evict(copy, dead, "", stream_ids))

    async def evict(self, dead: str) -> list[str]:
        """Forget a dead replica that names no stream any more; return those that it does name.

        Those of a copy that was away at first, or named since. Unavailable as with `taken_over`.
        """
        asked = self._ask(lambda copy: self._evict(copy, dead, "forget"), all_of_them=True)
        return _union(await asked)

    async def _evict(
        self, copy: QuorumCopy, dead: str, how: str, stream_ids: Collection[str] = ()
    ) -> list[bytes]:
        keys = [copy.heartbeats, runs_key(dead, copy.tag), cancels_key(dead, copy.tag)]
        if (count := copy.detector.count_of(dead)) is None:
            raise _alive()
        left: list[bytes] | None
        left = await self._store.script("evict", keys, [dead, count, how, *stream_ids])
        if left is None:
            raise _alive()
        if how and not left:
            copy.detector.forget(dead)
        return left

    async def stop(self) -> None:
        """Leave in good order, so that nobody waits for this replica to be dead."""
        me = self.replica
        await self._ask(
            lambda copy: self._store.calls(
                [["HDEL", copy.heartbeats, me], ["DEL", copy.runs], ["DEL", copy.cancels]]
            ),
            all_of_them=True,
        )

    async def _ask(
        self, question: Callable[[QuorumCopy], Coroutine[Any, Any, T]], *, all_of_them: bool = False
    ) -> list[T]:
        return await self._quorum.of(
            [question(copy) for copy in self._copies], all_of_them=all_of_them
        )


def _alive() -> Unavailable:
    return Unavailable("store_unavailable", "It beats again, or may do so.")


def _union(answers: Iterable[Iterable[bytes]]) -> list[str]:
    return [each.decode() for each in {each for members in answers for each in members}]

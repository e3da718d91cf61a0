"""Heartbeat: the lease of one process, and the deaths it sees of others.

A replica raises its own counter in one hash every third of the lease and names the streams it runs.
No clocks are compared: another replica is dead once its counter stood still for a whole lease on
this one's monotonic clock, with Redis answering all the while; one failed call starts the count
anew. An owner that cannot renew is not dead but suspended: it may read its upstream on, but must
not ask it anything (`fresh`).

All this is kept in a book. A Cluster has three copies, so that no server's absence stops all
replicas: a majority must have been written for a replica to be fresh, and a majority must tell of
a death. Any two majorities share a book, so nobody is fresh and dead at once.
"""

from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gateway import clock
from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.data_loss import DataLossDetector
from gateway.store.keys import BEATS, DAY, cancels_key, inbox, naming, runs_key
from gateway.store.quorum import Quorum

T = TypeVar("T")


@dataclass(slots=True)
class News:
    """What one renewal learned: who died, what to cancel, the markers of Redis's lost memories."""

    dead: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    forgot: list[str] = field(default_factory=list)


class QuorumCopy:
    """One copy of what the replicas tell of each other; `lease` is in seconds."""

    def __init__(self, store: RedisClient, replica: str, lease: float, tag: str) -> None:
        self.beats = BEATS + tag
        self.runs = runs_key(replica, tag)
        self.cancels = cancels_key(replica, tag)
        self.tag = tag
        self._store = store
        self._replica = replica
        self._lease = lease
        self._count = 0
        self.answers = False  # As far as is known: one that fails tells of no death.
        self._busy = False
        self.renewed = float("-inf")  # When the last renewal that it answered was begun.
        self._steady = float("inf")  # Since when it was fresh at every moment.
        self._answered = float("-inf")
        self._latest: dict[str, bytes] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}

    @property
    def fresh(self) -> bool:
        """Whether nobody can read a death in it yet, with a margin for the send."""
        return self._within(clock.now())

    def _within(self, moment: float) -> bool:
        return moment - self.renewed < self._lease * 0.6

    def steady(self, since: float) -> bool:
        """Whether nobody can have read a death in it since a moment."""
        return self._steady <= since and self.fresh

    async def renew(self, running: Collection[str]) -> list[str]:
        """Raise the counter, name the streams run; return what to cancel. Raises Unavailable."""
        if self._busy:
            raise Unavailable("store_unavailable", "The last renewal is not answered yet.")
        started = clock.now()
        if started - self.renewed > self._lease * 2 / 3:
            self._seen.clear()  # Who did not look for long did not see the others stand still.
        self._busy = True
        try:
            beats, cancels = await self._renew(running)
        except BaseException:
            self.answers = False
            self._seen.clear()
            raise
        finally:
            self._busy = False
        self.answers = True
        if not self._within(now := clock.now()):
            self._steady = now
        self.renewed, self._answered = started, now
        self._latest = dict(zip(map(bytes.decode, beats[::2]), beats[1::2], strict=True))
        return [each.decode() for each in cancels]

    async def _renew(self, running: Collection[str]) -> tuple[list[bytes], list[bytes]]:
        self._count += 1
        reads: list[list[Any]] = [["HGETALL", self.beats], ["SMEMBERS", self.cancels]]
        writes: list[list[Any]] = [
            ["HSET", self.beats, self._replica, self._count],
            ["PEXPIRE", self.beats, DAY],
        ]
        if running:
            writes.append(["SADD", self.runs, *running])
        # At every beat: where these were made, the connection may have broken before the TTL.
        writes += [["PEXPIRE", self.runs, DAY], ["PEXPIRE", self.cancels, DAY]]
        beats, cancels, *_ = await self._store.urgent(reads + writes)
        return beats, cancels

    @property
    def named(self) -> Iterable[str]:
        """The replicas it has."""
        return self._latest

    def look(self, names: Iterable[str]) -> set[str]:
        """Return which of these stood still for a lease; one that it has not stands still too.

        It counts from the answer that told to the question of a later one: counted from question
        to question a slow answer would shorten the lease.
        """
        seen, self._seen = self._seen, {}
        still: set[str] = set()
        for name in names:
            count = self._latest.get(name, b"")
            before, since = seen.get(name, (count, self._answered))
            since = since if before == count else self._answered
            self._seen[name] = (count, since)
            if self.renewed - since >= self._lease:
                still.add(name)
        return still

    def count_of(self, name: str) -> bytes | None:
        """Return the counter that stands still, b"" for none, or None if it may not stand still."""
        count, since = self._seen.get(name, (None, 0.0))
        return count if self.renewed - since >= self._lease else None

    def forget(self, name: str) -> None:
        """Begin anew with a replica."""
        self._seen.pop(name, None)


class Heartbeat:
    """This replica's sign of life; `lease` is in seconds. Every method may raise Unavailable."""

    def __init__(self, store: RedisClient, replica: str, lease: float) -> None:
        self.replica = replica
        self.lease = lease
        self.interval = lease / 3
        self._store = store
        self._memory = DataLossDetector(store, lease)
        self._books = [QuorumCopy(store, replica, lease, tag) for tag in store.books]
        self._majority = Quorum(len(self._books))

    @property
    def fresh(self) -> bool:
        """Whether nobody can have declared this replica dead yet."""
        return sum(book.fresh for book in self._books) >= self._majority.size

    def steady(self, since: float) -> bool:
        """Whether nobody can have declared this replica dead since a moment."""
        return sum(book.steady(since) for book in self._books) >= self._majority.size

    @property
    def renewed(self) -> float:
        """When the last renewal was begun that a majority answered."""
        return sorted(book.renewed for book in self._books)[-self._majority.size]

    async def renew(self, running: Collection[str], owners: Collection[str]) -> News:
        """Raise the counter, name the running streams, look at the others; raises Unavailable.

        `owners` run streams that are watched here: they are dead too if Redis forgot their beat
        and they never bring it back.
        """
        answers = await self._ask(lambda book: book.renew(running))
        forgot = await self._memory.renew()
        books = [book for book in self._books if book.answers]
        names = {*owners, *(name for book in books for name in book.named)} - {self.replica}
        votes = [book.look(names) for book in books]
        dead = [name for name in names if sum(name in v for v in votes) >= self._majority.size]
        return News(dead, list({each for asked in answers for each in asked}), forgot)

    async def enter(self, stream_id: str) -> None:
        """Name a stream as run by this replica, before it is claimed or taken over."""
        await self._ask(lambda book: self._store.calls(naming(self.replica, stream_id, book.tag)))

    async def leave(self, *stream_ids: str) -> None:
        """Take ended streams off this replica's list."""
        await self._ask(lambda book: self._store.call("SREM", book.runs, *stream_ids))

    async def ask_to_cancel(self, stream_id: str, owner: str) -> None:
        """Tell an owner that a cancel is stored, now and should it miss the message."""

        async def ask(book: QuorumCopy) -> None:
            await self._store.script("ask", [cancels_key(owner, book.tag)], [DAY, stream_id])
            await self._store.publish([(inbox(owner), f"cancel {stream_id}")])

        await self._ask(ask)

    async def cancels(self) -> list[str]:
        """Return the streams this replica is asked to cancel, also where a message was lost."""
        return await self._members(lambda book: book.cancels)

    async def cancelled(self, *stream_ids: str) -> None:
        """Forget requests that were carried out."""
        await self._ask(lambda book: self._store.call("SREM", book.cancels, *stream_ids))

    async def streams_of(self, replica: str) -> list[str]:
        """Return the streams that a replica named as run by it."""
        return await self._members(lambda book: runs_key(replica, book.tag))

    async def _members(self, key: Callable[[QuorumCopy], str]) -> list[str]:
        return _union(await self._ask(lambda book: self._store.call("SMEMBERS", key(book))))

    async def left_by(self, dead: str) -> list[str]:
        """Return the streams that a dead replica named; Unavailable if it came back since.

        The list is read first: what a replica claims after a pause is not on it, or its counter
        tells.
        """

        async def left(book: QuorumCopy) -> Any:
            reads = [["SMEMBERS", runs_key(dead, book.tag)], ["HGET", book.beats, dead]]
            members, count = await self._store.calls(reads)
            if (count or b"") != book.count_of(dead):
                raise _alive()
            return members

        return _union(await self._ask(left))

    async def took(self, dead: str, stream_ids: Collection[str]) -> None:
        """Take streams off a dead replica's list; Unavailable if it came back since it was seen."""
        await self._ask(lambda book: self._bury(book, dead, "", stream_ids))

    async def bury(self, dead: str) -> list[str]:
        """Forget a dead replica that names no stream any more; return those that it does name.

        Those of a book that was away at first, or named since. Unavailable as with `took`.
        """
        asked = self._ask(lambda book: self._bury(book, dead, "forget"), all_of_them=True)
        return _union(await asked)

    async def _bury(
        self, book: QuorumCopy, dead: str, how: str, stream_ids: Collection[str] = ()
    ) -> list[bytes]:
        keys = [book.beats, runs_key(dead, book.tag), cancels_key(dead, book.tag)]
        if (count := book.count_of(dead)) is None:
            raise _alive()
        left: list[bytes] | None
        left = await self._store.script("bury", keys, [dead, count, how, *stream_ids])
        if left is None:
            raise _alive()
        if how and not left:
            book.forget(dead)
        return left

    async def stop(self) -> None:
        """Leave in good order, so that nobody waits for this replica to be dead."""
        await self._memory.stop()
        me = self.replica
        await self._ask(
            lambda book: self._store.calls(
                [["HDEL", book.beats, me], ["DEL", book.runs], ["DEL", book.cancels]]
            ),
            all_of_them=True,
        )

    async def _ask(
        self, question: Callable[[QuorumCopy], Coroutine[Any, Any, T]], *, all_of_them: bool = False
    ) -> list[T]:
        return await self._majority.of(
            [question(book) for book in self._books], all_of_them=all_of_them
        )


def _alive() -> Unavailable:
    return Unavailable("store_unavailable", "It beats again, or may do so.")


def _union(answers: Iterable[Iterable[bytes]]) -> list[str]:
    return [each.decode() for each in {each for members in answers for each in members}]

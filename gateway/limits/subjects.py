"""Subjects: what one subject may hold, so that it cannot take everybody's room.

Bytes are counted in Redis, over all replicas: every request that waits to be redeemed, and that of
every run. A count is for a time, by Redis's clock, which the owner of a run prolongs; so what a
replica had counted that died is free by itself. A log-out finds a subject's streams by it, so where
there is one they are counted without a bound too. So are slots, reservations and spending where
limits are set for them (`permits`, `ledger`). The bounds that protect a process, of streams and
viewers, are counted in this process, for this process. What is refused is refused before anything
is stored, claimed or paid for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any, NamedTuple, Protocol

from gateway.config.user_limits import UNBOUNDED, Bounds
from gateway.errors import Unavailable
from gateway.limits.headroom import Headroom
from gateway.limits.ledger import Ledger, Spent, booking
from gateway.limits.permits import Left, Permits, Slot, Taken, left_of, refused
from gateway.limits.tallies import Seat, Tally
from gateway.store.client import RedisClient, Script
from gateway.store.keys import subject_keys
from gateway.store.node import Node

RECORD = 1024  # Bytes that a stream costs beside its request, about.

_Count = tuple[int, int, Slot | None]  # Bytes, for how long (ms), slot.
_News = tuple[str, int, int, Slot | None]  # Stream, and those.

_TICK = 1.0
_NEWS = 50_000  # That wait to be told; what is beyond expires.
_TOGETHER = 500
_UNBOUNDED = 1 << 53  # Bytes; what a script can still add up.
_SMALL = 16 * 1024  # Bytes that may be sent before it is known whether they fit.


class Most(NamedTuple):
    """What a subject may hold at most; 0 is no bound. `share` is that of all, of `maxmemory`.

    Bytes without a bound are not counted, unless they have to be.
    """

    size: int = 0
    streams: int = 0
    viewers: int = 0
    share: float = 1.0
    counted: bool = False


class Held(NamedTuple):
    """A stream, whose it is, the bytes of its request and the preset that it asks."""

    subject: str
    stream_id: str
    size: int
    preset: str = ""


class Holder(Protocol):
    """What runs here, as it counts for its subject."""

    @property
    def held(self) -> Held:
        """What it holds."""

    @property
    def taken(self) -> Taken:
        """What it may take, as far as can be said; asked for only where that is bounded."""


class Limits:
    """What subjects hold, as far as this replica must know; `run` is its only task.

    Times are in seconds: a request that nobody redeems is kept for `start_by` and `patience`, a
    record after its end for `log_ttl`. A slot is kept for half the patience: a lease.

    One idea: what one subject has in Redis is one state in one place, which a POST, a claim, a tick
    and an end change each in one step.
    """

    def __init__(
        self,
        store: RedisClient,
        most: Most,
        bounds: Callable[[str], Bounds] = lambda _: UNBOUNDED,
        *,
        start_by: float,
        patience: float,
        log_ttl: float,
    ) -> None:
        self.streams = Tally(most.streams)
        self.viewers = Tally(most.viewers)
        self.ledger = Ledger(store, patience)
        self.permits = Permits(store, bounds, patience / 2)
        self._headroom = Headroom(store, most.share)
        self._store = store
        self._most = most.size or (_UNBOUNDED if most.counted else 0)
        self._unredeemed = int((start_by + patience) * 1000)
        self._ended = int(log_ttl * 1000)
        self._ttl = max(self._unredeemed, self._ended)
        self._tick = min(_TICK, patience / 6)
        # A claim at the last moment leaves the patience to say that it runs.
        self._turns = max(1, int(patience / 2 / self._tick))
        self._slot_turns = max(1, int(patience / 6 / self._tick))
        self._news: dict[tuple[str, str], _Count] = {}  # By subject and stream.
        self._telling = asyncio.Lock()
        self._told = 0  # How often there was something to tell.

    # In this process

    def check(self, subject: str, *, claims: bool) -> None:
        """Raise Unavailable for who may open no further stream, or claim none."""
        self.check_viewers(subject)
        if claims:
            self.check_streams(subject)

    def check_streams(self, subject: str) -> None:
        """Raise Unavailable for who runs all that it may."""
        if self.streams.full(subject):
            raise Unavailable("too_many_streams", "Wait for one to end, or cancel one.")

    def check_viewers(self, subject: str) -> None:
        """Raise Unavailable for who watches all that it may."""
        if self.viewers.full(subject):
            raise Unavailable("too_many_viewers", "Close another one.")

    def seat(self, subject: str) -> Seat:
        """Count a viewer until what is returned is called, once; raises Unavailable."""
        self.check_viewers(subject)
        return Seat(self.viewers, subject)

    # In Redis

    async def create(self, held: Held, create: Script) -> tuple[Any, Left | None]:
        """Count a request and store it; returns the script's reply and what is left.

        Raises Unavailable. It counts also where that fails: what was lost may have been the reply
        only.
        """
        size = held.size + RECORD
        taken = size * 5 // 4  # What an allocator of few sizes makes of it.
        room = await self._headroom.room_for(held.stream_id, taken)
        room.take(taken)
        try:
            return await self._counted(held, size, create)
        finally:
            room.stored(taken)

    async def _counted(self, held: Held, size: int, create: Script) -> tuple[Any, Left | None]:
        told = self._told
        try:
            return await self._admitted(held, size, create)
        except Unavailable as error:
            # What others tell just now may have come after our question.
            untold = self._news or self._telling.locked() or self._told != told
            if error.code != "too_many_bytes" or not untold:
                raise
        await self._tell_all()  # Of what was cancelled or ended a moment ago Redis may not know.
        return await self._admitted(held, size, create)

    async def _admitted(self, held: Held, size: int, create: Script) -> tuple[Any, Left | None]:
        bounds, first = self.permits.bounds(held.preset), []
        if bounds.any:
            first.append(self.permits.to_ask(held.subject, held.stream_id, held.preset))
        if self._most:
            args = [self._most, self._unredeemed, held.stream_id, size, self._ttl]
            first.append(Script("admit", subject_keys(held.subject)[:2], args))
        # On another server; and what is large and does not fit must not be sent in vain.
        apart = first and (self._store.cluster is not None or size > _SMALL)
        replies = await self._store.chain(first if apart else [*first, create])
        if bounds.any and (error := refused(replies[0], bounds)):
            raise error
        if len(replies) < len(first) or (self._most and not replies[len(first) - 1][0]):
            raise _too_many(replies[-1][1])
        reply = await self._store.script(*create) if apart else replies[-1]
        return reply, left_of(replies[0]) if bounds.any else None

    async def repeated(self, held: Held) -> None:
        """Count a POST no more that has begun nothing: its key was used more than a minute ago."""
        if self.permits.bounds(held.preset).any:
            keys = subject_keys(held.subject)
            both = keys.posts, keys.posts_of(held.preset)
            await self._store.attempt([["ZREM", key, held.stream_id] for key in both])

    def permit(self, held: Held, taken: Taken) -> Script | None:
        """Return the script that precedes a claim, None where nothing that runs is bounded."""
        if not self.permits.bounds(held.preset).of_runs:
            return None
        return self.permits.to_run(held.subject, held.stream_id, held.preset, taken)

    @property
    def counted(self) -> bool:
        """Whether it is known which streams a subject has."""
        return self._most > 0

    async def streams_of(self, subject: str) -> list[str]:
        """Return a subject's streams that wait or run, and some that did; raises Unavailable."""
        found = await self._store.read([["ZRANGE", subject_keys(subject)[1], 0, -1]])
        return [each.decode() for each in found[0]]

    def at_end(self, stream_id: str, spent: Spent, known: int) -> list[Script]:
        """Return what books an ended stream, and frees its slot; see `ledger.booking`."""
        books = booking(stream_id, spent, known)
        if not self.permits.bounds(spent.preset).of_runs:
            return [books]
        return [books, self.permits.held(spent.subject, [Slot(stream_id)])]

    def ended(self, subject: str, stream_id: str, *presets: str) -> None:
        """Count a stream no more, soon, in any of its presets: it is over, or was never claimed."""
        bounded = (each for each in presets if self.permits.bounds(each).of_runs)
        self._note(Held(subject, stream_id, -RECORD, next(bounded, presets[0])), 0)

    def cancelled(self, subject: str, stream_id: str) -> None:
        """Count of a stream that nobody redeemed what is kept: making those costs nothing."""
        self._note(Held(subject, stream_id, 0), self._ended)

    def _note(self, held: Held, milliseconds: int, taken: Taken | None = None) -> None:
        slots = self.permits.bounds(held.preset).of_runs
        key = held.subject, held.stream_id
        if not (self._most or slots) or (key not in self._news and len(self._news) >= _NEWS):
            return
        slot = None
        if slots and (taken or not milliseconds):  # What waits has none.
            tokens, cost = taken or Taken()
            slot = Slot(held.stream_id, tokens, cost, held.preset if taken else "")
        self._news[key] = held.size + RECORD, milliseconds, slot

    async def run(self, running: Callable[[], Iterable[Holder]]) -> None:
        """Look at the servers' memory, and tell what `running` holds and what is free, for ever.

        None of these waits for another: a server that hangs must let no slot lapse elsewhere.
        """
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._again(self._headroom.refresh))
            loops.create_task(self._again(self.ledger.settle))
            for turn in count(1):
                for each in running():
                    self._renew(each, turn)
                await self._tell_all()
                await asyncio.sleep(self._tick)

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await work()
            await asyncio.sleep(self._tick)

    def _renew(self, holder: Holder, turn: int) -> None:
        held = holder.held
        if self.permits.bounds(held.preset).of_runs:
            if hash(held.stream_id) % self._slot_turns == turn % self._slot_turns:
                self._note(held, self._unredeemed, holder.taken)
        elif self._most and hash(held.stream_id) % self._turns == turn % self._turns:
            self._note(held, self._unredeemed)

    async def _tell_all(self) -> None:
        """Tell each server what has changed; what it does not hear expires, or is told again."""
        async with self._telling:
            news, self._news = self._news, {}
            servers: dict[Node, dict[tuple[str, str], _Count]] = {}
            for key, each in news.items():
                node = self._store.node_of(subject_keys(key[0]).slots)
                servers.setdefault(node, {})[key] = each
            await asyncio.gather(*map(self._tell, servers.values()))
            self._told += bool(news)

    async def _tell(self, news: dict[tuple[str, str], _Count]) -> None:
        """Tell one server; of one that hangs the rest waits for the next turn, and comes first."""
        while news:
            subjects: dict[str, list[_News]] = {}
            for key in list(news)[:_TOGETHER]:
                subjects.setdefault(key[0], []).append((key[1], *news.pop(key)))
            told = (self._store.chain(self._scripts(*each)) for each in subjects.items())
            try:
                async with asyncio.timeout(self._tick):
                    answers = await asyncio.gather(*told, return_exceptions=True)
            except TimeoutError:
                self._news = news | self._news
                return
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, Unavailable):
                    raise answer

    def _scripts(self, subject: str, news: list[_News]) -> list[Script]:
        scripts = []
        if self._most:
            sizes = [part for each in news for part in each[:3]]
            scripts.append(Script("settle", subject_keys(subject)[:2], [self._ttl, *sizes]))
        if slots := [each[3] for each in news if each[3] is not None]:
            scripts.append(self.permits.held(subject, slots))
        return scripts


def _too_many(milliseconds: int) -> Unavailable:
    # Not raised here: it would be in a circle with this frame, and keep the request until a
    # collector comes.
    error = Unavailable("too_many_bytes", "Redeem or cancel what you have asked for.")
    error.headers["Retry-After"] = str(min(60, milliseconds // 1000 + 1))
    return error

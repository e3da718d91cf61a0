"""Subjects: what one subject may hold, so that it cannot take everybody's room.

Bytes are counted in Redis, over all replicas: every request that waits to be redeemed, and that of
every run. A count is for a time, by Redis's clock, which the owner of a run prolongs; so what a
replica had counted that died is free by itself. A log-out finds a subject's streams by it, so where
there is one they are counted without a bound too. Streams and viewers are counted in this process,
for this process. What is refused is refused before anything is stored, claimed or paid for.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gateway.errors import Unavailable
from gateway.limits.headroom import Headroom
from gateway.store.client import RedisClient, Script
from gateway.store.keys import subject_keys

RECORD = 1024  # Bytes that a stream costs beside its request, about.

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


class Tally:
    """How many of a kind each subject has in this process; who has none is not in it."""

    def __init__(self, most: int) -> None:
        self.counts: dict[str, int] = {}
        self._most = most

    def full(self, subject: str) -> bool:
        """Whether a subject has all that it may have."""
        return 0 < self._most <= self.counts.get(subject, 0)

    def take(self, subject: str) -> None:
        """Count one more."""
        self.counts[subject] = self.counts.get(subject, 0) + 1

    def give(self, subject: str) -> None:
        """Count one less."""
        left = self.counts[subject] - 1
        if left:
            self.counts[subject] = left
        else:
            del self.counts[subject]


class Seat:
    """One more of a subject's, until it is called; a partial would take 250 bytes a viewer."""

    __slots__ = ("_subject", "_tally")

    def __init__(self, tally: Tally, subject: str) -> None:
        self._tally = tally
        self._subject = subject
        tally.take(subject)

    def __call__(self) -> None:
        """Count it no more."""
        self._tally.give(self._subject)


class Held(NamedTuple):
    """A stream, whose it is, and the bytes of its request."""

    subject: str
    stream_id: str
    size: int


class Limits:
    """What subjects hold, as far as this replica must know; `run` is its only task.

    Times are in seconds: a request that nobody redeems is kept for `start_by` and `patience`, a
    record after its end for `log_ttl`.
    """

    def __init__(
        self, store: RedisClient, most: Most, *, start_by: float, patience: float, log_ttl: float
    ) -> None:
        self.streams = Tally(most.streams)
        self.viewers = Tally(most.viewers)
        self._headroom = Headroom(store, most.share)
        self._store = store
        self._most = most.size or (_UNBOUNDED if most.counted else 0)
        self._unredeemed = int((start_by + patience) * 1000)
        self._ended = int(log_ttl * 1000)
        self._ttl = max(self._unredeemed, self._ended)
        # A claim at the last moment leaves the patience to say that it runs.
        self._turns = max(1, int(patience / 2 / _TICK))
        self._news: dict[tuple[str, str], tuple[int, int]] = {}  # Subject, stream: bytes, TTL.

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

    async def create(self, held: Held, create: Script) -> Any:
        """Count a request and store it; returns the script's reply, raises Unavailable.

        It counts also where that fails: what was lost may have been the reply only.
        """
        size = held.size + RECORD
        taken = size * 5 // 4  # What an allocator of few sizes makes of it.
        room = await self._headroom.room_for(held.stream_id, taken)
        room.take(taken)
        try:
            return await self._counted(held, size, create)
        finally:
            room.stored(taken)

    async def _counted(self, held: Held, size: int, create: Script) -> Any:
        if not self._most:
            return await self._store.script("create", create.keys, create.args)
        try:
            return await self._admitted(held, size, create)
        except Unavailable as error:
            if error.code != "too_many_bytes" or not self._news:
                raise
        await self._tell_all()  # Of what was cancelled or ended a moment ago Redis may not know.
        return await self._admitted(held, size, create)

    async def _admitted(self, held: Held, size: int, create: Script) -> Any:
        args = [self._most, self._unredeemed, held.stream_id, size, self._ttl]
        admit = Script("admit", subject_keys(held.subject), args)
        if self._store.cluster is None and size <= _SMALL:
            verdict, reply = await self._store.script_after(admit, create)
            if not verdict[0]:
                raise _too_many(verdict[1])
            return reply
        # On another server; and what is large and does not fit must not be sent in vain.
        verdict = await self._store.script("admit", admit.keys, admit.args)
        if not verdict[0]:
            raise _too_many(verdict[1])
        return await self._store.script("create", create.keys, create.args)

    @property
    def counted(self) -> bool:
        """Whether it is known which streams a subject has."""
        return self._most > 0

    async def streams_of(self, subject: str) -> list[str]:
        """Return a subject's streams that wait or run, and some that did; raises Unavailable."""
        found = await self._store.read([["ZRANGE", subject_keys(subject)[1], 0, -1]])
        return [each.decode() for each in found[0]]

    def ended(self, subject: str, stream_id: str) -> None:
        """Count a stream no more, soon: its request is gone."""
        self._note(Held(subject, stream_id, -RECORD), 0)

    def cancelled(self, subject: str, stream_id: str) -> None:
        """Count of a stream that nobody redeemed what is kept: making those costs nothing."""
        self._note(Held(subject, stream_id, 0), self._ended)

    def _note(self, held: Held, milliseconds: int) -> None:
        key = held.subject, held.stream_id
        if self._most and (key in self._news or len(self._news) < _NEWS):
            self._news[key] = held.size + RECORD, milliseconds

    async def run(self, running: Callable[[], Iterable[Held]]) -> None:
        """Look at the servers' memory, and tell what `running` holds and what is free, for ever."""
        turn = 0
        while True:
            await self._headroom.refresh()
            if self._most:
                turn = (turn + 1) % self._turns
                for held in running():
                    if hash(held.stream_id) % self._turns == turn:
                        self._note(held, self._unredeemed)
                await self._tell_all()
            await asyncio.sleep(_TICK)

    async def _tell_all(self) -> None:
        """Tell Redis what has changed; what it does not hear expires, or is told again."""
        while self._news:
            subjects: dict[str, list[Any]] = {}
            for key in list(self._news)[:_TOGETHER]:
                news = subjects.setdefault(key[0], [self._ttl])
                news += key[1], *self._news.pop(key)
            told = (
                self._store.script("settle", subject_keys(subject), args)
                for subject, args in subjects.items()
            )
            for answer in await asyncio.gather(*told, return_exceptions=True):
                if isinstance(answer, BaseException) and not isinstance(answer, Unavailable):
                    raise answer


def _too_many(milliseconds: int) -> Unavailable:
    # Not raised here: it would be in a circle with this frame, and keep the request until a
    # collector comes.
    error = Unavailable("too_many_bytes", "Redeem or cancel what you have asked for.")
    error.headers["Retry-After"] = str(min(60, milliseconds // 1000 + 1))
    return error

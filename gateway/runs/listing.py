"""Listing: what runs now on all replicas, as one sees it who is none of them.

Replicas name what they run beside their heartbeats, the records say whose it is, and the replicas
themselves how far it is and who watches. One that does not answer may be dead, frozen or of another
version; it is dead if its counter stands still for a whole lease of looking, as for its peers.
"""

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from gateway import clock
from gateway.config.settings import Settings
from gateway.errors import Rejected, Unavailable
from gateway.membership.heartbeat import Counters, Heartbeat
from gateway.runs.cancellation import Cancellation
from gateway.runs.endings import FINAL
from gateway.runs.inquiry import Sights, ask
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import new_id

_ANSWER = 1.0  # Seconds that replicas have to answer.
_END = 3.0  # Seconds in which a run that was cancelled has its end, unless something is wrong.
_LOOK = 0.2
_AT_ONCE = 500
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Owner(StrEnum):
    """How it is with who runs a stream."""

    ANSWERS = "answers"
    SILENT = "silent"
    GONE = "gone"


class Stream(NamedTuple):
    """One that runs; `age` in seconds since it was asked for, None is what nobody answered."""

    id: str
    subject: str
    preset: str
    age: int
    events: int | None
    viewers: int | None
    owner: str
    owner_state: Owner
    cancelled: bool  # A cancel is stored, and its end is still to come.


class Found(NamedTuple):
    """All that was found: `silent` replicas' viewers are not counted, `unread` could not be."""

    streams: list[Stream]
    silent: list[str]
    unread: int


class Outcome(NamedTuple):
    """What came of a cancel; `stored`: its end is or will be `cancelled`, for certain."""

    stored: bool
    words: str


class Listing:
    """The streams of all replicas behind one Redis; what asks Redis may raise Unavailable."""

    def __init__(self, store: RedisClient, settings: Settings) -> None:
        self._store = store
        name = f"list-{new_id()}"  # It never beats, and owns nothing.
        self._heartbeat = Heartbeat(self._store, name, settings.lease)
        self._records = Records(
            self._store,
            name,
            start_by=settings.start_by,
            log_ttl=settings.log_ttl,
            max_run=lambda: settings.max_run,
            lease=settings.lease,
        )
        self._cancellation = Cancellation(self._records, self._heartbeat, {}, ())

    async def running(self, subject: str | None = None) -> Found:
        """Return what runs, of one subject or of all, the oldest first."""
        begun, counters = clock.now(), await self._heartbeat.counters()
        replicas = {name for _, name in counters}
        answers, (records, unread) = await asyncio.gather(
            ask(self._store, replicas, _ANSWER), self._records_of(replicas)
        )
        shown = [each for each in records if each.running and subject in (None, each.subject)]
        mute = {each.owner for each in shown} - answers.keys()
        gone = await self._gone(mute, counters, begun + self._heartbeat.lease)
        streams = [_stream(each, answers, gone) for each in shown]
        streams.sort(key=lambda each: (-each.age, each.id))
        return Found(streams, sorted(replicas - answers.keys() - gone), unread)

    async def _records_of(self, replicas: Iterable[str]) -> tuple[list[Record], int]:
        named = await asyncio.gather(*map(self._heartbeat.streams_of, replicas))
        ids = sorted({each for some in named for each in some})
        records: list[Record] = []
        unread = 0
        for start in range(0, len(ids), _AT_ONCE):
            for each in await self._records.read_many(ids[start : start + _AT_ONCE]):
                if isinstance(each, Record):
                    records.append(each)
                unread += isinstance(each, Unavailable)
        return records, unread

    async def _gone(self, mute: set[str], before: Counters, until: float) -> set[str]:
        """Return who of these has no counter, or one that stands still."""
        gone, seen = set[str](), dict(before)
        while mute:
            try:
                counters = await self._heartbeat.counters()
            except Unavailable:
                return gone  # Whose counter was not seen may have raised it.
            gone |= mute - {name for _, name in counters}
            moved = {key[1] for key, now in counters.items() if seen.setdefault(key, now) != now}
            mute = mute - gone - moved
            if clock.now() >= until:
                return gone | mute
            await asyncio.sleep(_LOOK)
        return gone

    async def cancel(self, stream_id: str) -> Outcome:
        """Store a cancel and tell the owner, as any other; say what came of it."""
        record = await self._records.read(stream_id) if _ID.fullmatch(stream_id) else None
        if record is None:
            return Outcome(False, "there is no such stream, or it is not kept any more")
        if record.state in FINAL:
            return Outcome(record.state == "cancelled", f"it had ended before: {record.state}")
        try:
            state = await self._cancellation.cancel(record)
        except Rejected:
            return Outcome(False, "it is not kept any more")
        if state != "cancelled":
            return Outcome(False, f"it had ended before: {state}")
        return await self._end_of(record)

    async def _end_of(self, record: Record) -> Outcome:
        """Say whether a stream ends whose cancel is stored; that holds whatever is seen here."""
        until, now = clock.now() + _END, record
        with suppress(Unavailable):
            while now.state not in FINAL and clock.now() < until:
                await asyncio.sleep(_LOOK)
                now = await self._records.read(record.stream_id) or now
        if now.state in FINAL:
            return Outcome(True, now.state + ("" if now.owner else ", before anybody redeemed it"))
        return Outcome(True, f"its cancel is stored; {now.owner} runs it, and has not ended it yet")


def _stream(record: Record, answers: dict[str, Sights], gone: set[str]) -> Stream:
    owner = Owner.ANSWERS if record.owner in answers else Owner.SILENT
    owner = Owner.GONE if record.owner in gone else owner
    stream = record.stream_id
    seen = {name: sights[stream] for name, sights in answers.items() if stream in sights}
    viewers = sum(each.viewers for each in seen.values())
    return Stream(
        record.stream_id,
        record.subject,
        record.preset,
        max(0, record.now - record.issued) // 1000,
        seen[record.owner].events if record.owner in seen else None,
        None if owner is Owner.SILENT else viewers,
        record.owner,
        owner,
        record.cancelled,
    )

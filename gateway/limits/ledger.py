"""Ledger: what each subject's streams took, day by day, each booked once.

Where a stream and its subject are on one server, the stream's seal books it in the same step. In a
Cluster they are not: there the seal leaves the bill with the record, and the stream stays on the
list of who runs it until it is booked; whoever finds the list of a dead one books what it names.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gateway import clock
from gateway.errors import Unavailable, one_line
from gateway.store.client import RedisClient, Script
from gateway.store.keys import DAY, record_key, subject_keys

logger = logging.getLogger("gateway.limits.ledger")

KEPT = 35  # Days.
_DAYS = 3  # On one of which a stream ends that was asked for on the first, or a long one later.
_MOST = 1 << 53  # Tokens of one stream.
_DEAREST = 10**15  # Billionths, of one stream: many of these are still a number to Redis.
_PATIENCE = 1.0  # Seconds that an end waits for its booking.
_OWED = 50_000  # Bookings that wait for their servers.
Steps = Sequence[Script]  # The booking, and what is to follow where it is new.

_KINDS = ("streams", "prompt", "completion", "cached", "estimated", "cost")


class Spent(NamedTuple):
    """What one stream took, and whose it is; tokens, and the cost in billionths.

    `issued` tells it from another one that a repeated key has begun under the same id.
    """

    subject: str
    issued: int  # Milliseconds.
    preset: str
    model: str = ""
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: int = 0  # Of the prompt's and the completion's.
    cost: int = 0


class Row(NamedTuple):
    """What the streams of one day, preset and model took; the cost in billionths."""

    day: int  # Since 1970.
    preset: str
    model: str
    streams: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: int = 0
    cost: int = 0


def booking(stream_id: str, spent: Spent, known: int) -> Script:
    """Return the script that books a stream, of which it is known for `known` ms that it did."""
    subject, issued, preset, model, *counts, cost = spent
    keys, first = subject_keys(subject), issued // DAY
    days = [keys.usage(first + nth) for nth in range(_DAYS)]
    counts = [min(each, _MOST) for each in counts]
    args = [stream_id, issued, known, (KEPT + 1) * DAY, preset, model, *counts]
    last = [min(cost, _DEAREST), first]
    return Script("book", [keys.booked, keys.today, *days], [*args, *last])


def as_bill(script: Script) -> str:
    """Return a booking as a record keeps it."""
    return json.dumps([list(script.keys), list(script.args)])


def of_bill(bill: bytes) -> Script:
    """Return the booking that a record has kept."""
    keys, args = json.loads(bill)
    return Script("book", keys, args)


class Ledger:
    """The bookings that are not part of a seal, and all that was booked.

    A server that takes another's place may lack what was booked there last: within `patience`, in
    seconds, it is booked again.
    """

    def __init__(self, store: RedisClient, patience: float) -> None:
        self._store = store
        self._patience = patience
        self._owed: dict[str, tuple[Steps, asyncio.Event]] = {}
        self._recent: dict[str, tuple[float, Steps]] = {}  # In the order they were booked.

    @property
    def owes(self) -> bool:
        """Whether bookings wait for their servers."""
        return bool(self._owed)

    async def book(self, stream_id: str, steps: Steps) -> None:
        """Book a stream, and do what follows, now or as soon as its subject's server answers."""
        asked = clock.now()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._book(steps)
            self._keep(stream_id, asked, steps)
        except (Unavailable, TimeoutError):
            self._owe(stream_id, steps)

    def _owe(self, stream_id: str, steps: Steps) -> None:
        if len(self._owed) < _OWED:
            self._owed.setdefault(stream_id, (steps, asyncio.Event()))
        else:
            logger.error("%s: what it took is not booked", stream_id)

    def _keep(self, stream_id: str, asked: float, steps: Steps) -> None:
        if len(self._recent) < _OWED:
            self._recent[stream_id] = asked, steps

    async def _book(self, steps: Steps) -> None:
        replies = await self._store.chain(steps)
        check(replies[0], steps[0])

    async def book_left(self, stream_id: str) -> bool:
        """Book what a dead owner has sealed, and perhaps did not book; return whether it is booked.

        Raises Unavailable where the stream's own server is away. A subject's that is away must hold
        up no takeover: then it is owed, and who calls keeps the stream's name on its list.
        """
        if self._store.cluster is None:
            return True
        if bill := await self._store.call("HGET", record_key(stream_id), "bill"):
            await self.book(stream_id, [of_bill(bill)])
        return stream_id not in self._owed

    async def booked(self, stream_id: str) -> None:
        """Return when a stream is booked that ended here."""
        if owed := self._owed.get(stream_id):
            await owed[1].wait()

    async def settle(self) -> None:
        """Try again to book what is owed, and what a failover may have lost."""
        for stream_id, (asked, steps) in list(self._recent.items()):
            if self._store.replaced(steps[0].keys[0]) >= asked:
                del self._recent[stream_id]
                self._owe(stream_id, steps)
            elif clock.now() - asked > self._patience:
                del self._recent[stream_id]
        tries = [self._settle(*each) for each in list(self._owed.items())[:500]]
        await asyncio.gather(*tries)

    async def _settle(self, stream_id: str, owed: tuple[Steps, asyncio.Event]) -> None:
        asked = clock.now()
        with suppress(Unavailable):
            await self._book(owed[0])
            del self._owed[stream_id]
            self._keep(stream_id, asked, owed[0])
            owed[1].set()

    async def rows(self, subject: str, days: Iterable[int]) -> list[Row]:
        """Return what a subject's streams took on these days; raises Unavailable."""
        wanted, keys = list(days), subject_keys(subject)
        found = await self._store.read([["HGETALL", keys.usage(day)] for day in wanted])
        rows: list[Row] = []
        for day, fields in zip(wanted, found, strict=True):
            rows += _rows(day, fields)
            await asyncio.sleep(0)  # A day may have hundreds; streams must not wait for a month.
        return rows


def check(reply: Any, script: Script) -> None:
    """Say in the log what Redis refused to book."""
    if reply[0] == -1:
        words = "%s: what it took cannot be booked: %s"
        logger.error(words, script.args[0], one_line(reply[1].decode(errors="replace")))


def _rows(day: int, fields: list[bytes]) -> Iterable[Row]:
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        preset, model, kind = name.decode().split("\n")
        rows.setdefault((preset, model), {})[kind] = int(value)
    for (preset, model), counts in sorted(rows.items()):
        yield Row(day, preset, model, **{each: counts.get(each, 0) for each in _KINDS})

"""Compaction: logs that have ended are written again as packs, a twentieth as large.

Until then a log is as its owner wrote it, and as long as the owner keeps it, it may be written so
once more. It is packed from the memory of whoever ended it, when its viewers have its end: nothing
is read for it, and nobody waits for it. One that is not packed is only dearer, so what is too much
is left alone, and what fails is not tried again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway import clock
from gateway.errors import Unavailable
from gateway.eventlog.entries import WEIGHT, EntryBatch, EntryBatches
from gateway.eventlog.packs import packs_of
from gateway.eventlog.writer import EventLog
from gateway.runs.record import PACKED
from gateway.store.client import RedisClient
from gateway.store.keys import log_keys, record_key

logger = logging.getLogger("gateway.runs.compaction")

DELAY = 5.0  # Seconds until who follows a log elsewhere has read its end.

_SMALL = 4 * 1024  # Bytes of frames; what is less is not worth it.
_BACKLOG = 64 << 20  # Bytes that wait.
_SHARE = 0.2  # Of the process's time that this may take.


class _Ended(NamedTuple):
    due: float
    stream_id: str
    entries: EntryBatches
    size: int


class Compaction:
    """Packs the logs that it is given, one after the other; `run` is its task."""

    def __init__(self, store: RedisClient) -> None:
        self._store = store
        self._waiting: deque[_Ended] = deque()
        self._size = 0
        self._news = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many logs are still to be packed."""
        return len(self._waiting)

    def add(self, log: EventLog) -> None:
        """Pack a log that is written here no more, if it has ended: soon, or not at all."""
        size = log.size + WEIGHT * len(log.entries)
        if log.fenced or not log.entries.ended or log.size < _SMALL or self._full(size):
            return
        # Who ends another's log knows of nobody who follows it: they have to look for themselves.
        due = clock.now() + (DELAY if log.taken_over else 0)
        self._waiting.append(_Ended(due, log.stream_id, log.entries, size))
        self._size += size
        self._news.set()

    def _full(self, size: int) -> bool:
        return self._size + size > _BACKLOG

    async def run(self) -> None:
        """Pack for ever."""
        while True:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
            await asyncio.sleep(self._waiting[0].due - clock.now())
            ended = self._waiting.popleft()
            self._size -= ended.size
            try:
                await rewrite(self._store, ended.stream_id, ended.entries)
            except Unavailable as error:
                logger.debug("%s is not packed: %s", ended.stream_id, error)


async def rewrite(store: RedisClient, stream_id: str, entries: Sequence[EntryBatch]) -> bool:
    """Pack a log that has these entries; return whether it has, and was. Raises Unavailable."""
    parts: list[Any] = []
    began = clock.now()
    for pack in packs_of(entries):
        parts += [str(pack.last), pack.data, pack.size]
        await asyncio.sleep((clock.now() - began) * (1 / _SHARE - 1))
        began = clock.now()
    if not any(parts[1::3]):
        return False  # All of it is large.
    args = [str(entries[-1].last), len(entries), PACKED, *parts]
    keys = [record_key(stream_id), *log_keys(stream_id)]
    return bool(await store.script("pack", keys, args, large=True))

"""Fetcher: reads the watched streams that run elsewhere, from one Redis server.

One task reads all of them, at a wake-up from their owners and once a second in any case; another
tells the owners that somebody is here. In a Cluster each master has a fetcher: one that is away
must not hold up what is read of others.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway import clock
from gateway.errors import Unavailable
from gateway.eventlog.base import Fate, Source
from gateway.eventlog.entries import NOTHING, EntryBatch
from gateway.eventlog.reader import Page, likely, read, read_page
from gateway.eventlog.tail import Tail
from gateway.store.client import RedisClient

logger = logging.getLogger("gateway.eventlog.fetcher")

_BATCH = 64  # Streams read in one round trip.


class Fetcher:
    """What is read of one server; `followed` returns its streams that are watched here."""

    def __init__(
        self,
        store: RedisClient,
        source: Source,
        tails: dict[str, Tail],
        followed: Callable[[], list[str]],
        grace: Callable[[], float],
    ) -> None:
        self._store = store
        self._source = source
        self._tails = tails
        self._followed = followed
        self._grace = grace
        self._stale: set[str] = set()
        self._left: set[str] = set()
        self._unclaimed: dict[str, float] = {}  # Stream -> since when its claim is lost.
        self._news = asyncio.Event()

    def mark(self, stream_id: str) -> None:
        """Read this stream soon."""
        self._stale.add(stream_id)
        self._news.set()

    def leave(self, stream_id: str) -> None:
        """Let the owner know at the next turn that the last viewer here has left."""
        self._left.add(stream_id)

    def turn(self) -> None:
        """Do what is to be done, also if nobody brought news."""
        self._news.set()

    async def run(self) -> None:
        """Read and announce for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_for_ever())
            group.create_task(self._announce_for_ever())

    async def _read_for_ever(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            stale, self._stale = list(self._stale), set()
            try:
                for start in range(0, len(stale), _BATCH):
                    await self._read(stale[start : start + _BATCH])
                await self._withdraw()
            except Unavailable as error:
                logger.debug("nothing can be read: %s", error)

    async def _announce_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._grace() / 3)
            try:
                await self.announce()
            except Unavailable as error:
                logger.debug("presence cannot be shown: %s", error)

    async def announce(self) -> None:
        """Show presence, and send away who waits for what is lost; raises Unavailable."""
        tails = [self._tails[each] for each in self._followed()]
        before, self._unclaimed = self._unclaimed, {}
        for start in range(0, len(tails), _BATCH):
            await self.show_presence(tails[start : start + _BATCH])
            await self._drop_lost(tails[start : start + _BATCH], before)

    async def show_presence(self, tails: list[Tail]) -> None:
        """Tell the owners of watched streams that somebody is here; raises Unavailable."""
        await self._source.announce({each.stream_id: each.owner for each in tails}, self._grace())

    async def _withdraw(self) -> None:
        """Let owners know soon that the last viewer here has left; else the grace would double."""
        left, self._left = self._left, set()
        gone = [each for each in left if not ((tail := self._tails.get(each)) and tail.viewers)]
        await self._source.withdraw(gone)

    async def _drop_lost(self, tails: list[Tail], unclaimed: dict[str, float]) -> None:
        """Send viewers away from streams that Redis lost and that nobody wrote again in time.

        Where it lost the claim alone they redeem it once more, and a second claim is paid for: an
        owner that lives has as long to write it again. Where it lost what was seen here last, an
        earlier owner may have gone on, or ended it.
        """
        now = clock.now()
        fates = await self._source.compare({each.stream_id: each.last for each in tails})
        for tail, fate in zip(tails, fates, strict=True):
            lost = fate is Fate.LOST
            if fate is Fate.UNCLAIMED:
                since = self._unclaimed[tail.stream_id] = unclaimed.get(tail.stream_id, now)
                lost = now - since >= self._source.patience
            elif fate is Fate.CHANGED:
                await self._look_at_all(tail)
            if lost:
                tail.drop()

    async def compare(self, tail: Tail, news: Sequence[EntryBatch]) -> None:
        """Look, where its owner is a new one, at the whole log before `news` of it are shown."""
        known = tail.last if tail.last != NOTHING else None
        if news and known and news[-1].last.epoch != known.epoch:
            await self._look_at_all(tail)

    async def _look_at_all(self, tail: Tail) -> None:
        """Look whether a log still holds what was last shown of it, and who its owner is.

        A Redis that forgot the first claim may have given the stream to another replica. The one
        that took it over wakes only those who make themselves known to it.
        """
        seen = tail.last
        page = await read_page(self._store, tail.stream_id, seen)
        lost = not page.entries or page.entries[0].last != seen
        if lost and page.entries:
            page = await read_page(self._store, tail.stream_id, None)
        owner = await self._source.owner(tail.stream_id)
        if tail.local:
            return
        is_judged = tail.last != seen  # By another look, which was quicker.
        if not page.entries and not is_judged:
            tail.drop()  # What becomes of them is told as they come back.
        elif lost and not is_judged:
            tail.replace(page)
            tail.wake()
        else:
            await self._add_rest(tail, page)
        if owner and owner != tail.owner:
            tail.owner = owner
            await self.show_presence([tail])

    async def _add_rest(self, tail: Tail, page: Page) -> None:
        """Show what follows in a log, which nobody else does where it was packed meanwhile."""
        while len(page.entries) > 1 and not tail.local:
            add(tail, page.entries[1:])
            page = await read_page(self._store, tail.stream_id, tail.last)

    async def _read(self, stream_ids: list[str]) -> None:
        tails = [self._tails[each] for each in stream_ids if each in self._tails]
        tails = [each for each in tails if not each.local and not each.ended]
        if not tails:
            return
        counts = [likely(each.typical) for each in tails]
        ids, after = [each.stream_id for each in tails], [each.last for each in tails]
        batches = await read(self._store, ids, after, counts)
        for tail, entries, count in zip(tails, batches, counts, strict=True):
            await self.compare(tail, entries)
            add(tail, entries)
            if len(entries) == count:
                self.mark(tail.stream_id)


def add(tail: Tail, entries: list[EntryBatch]) -> None:
    """Show what was read, unless a run of this replica began meanwhile: then its log shows it."""
    if not tail.local and tail.extend(entries):
        tail.wake()
        tail.trim()

"""Tails: all that is watched on this replica, and the reading of what runs elsewhere.

A stream that this replica runs is fed by its own log after each commit; any other is read from
Redis by one task for all of them, at a wake-up from its owner and once a second in any case. So a
lost wake-up costs a second, and the number of connections does not grow with viewers.
"""

import asyncio
import logging
from collections.abc import Iterable

from gateway.beat import inbox
from gateway.errors import Passing
from gateway.eventlog import READ_COUNT, read, read_all
from gateway.positions import Entry, Position
from gateway.records import Records
from gateway.store import Store
from gateway.tail import Tail, Viewer

log = logging.getLogger("gateway.tails")

POLL = 1.0  # Seconds between reads of a stream that is run elsewhere, if nobody wakes us.
_BATCH = 64  # Streams read in one round trip.


class Tails:
    """All tails of one replica; `follow` and `announce` are its tasks."""

    def __init__(
        self,
        store: Store,
        records: Records,
        *,
        grace: float,
        heartbeat: float,
        write_timeout: float,
    ) -> None:
        self._store = store
        self._records = records
        self._grace = grace
        self._heartbeat = heartbeat * 0.75  # The sweep that looks at it comes every quarter.
        self._write_timeout = write_timeout
        self._tails: dict[str, Tail] = {}
        self._stale: set[str] = set()
        self._left: set[str] = set()
        self._news = asyncio.Event()
        self.viewers = 0
        self.closing = False

    def get(self, stream_id: str) -> Tail | None:
        """Return the tail of a stream, if this replica has one."""
        return self._tails.get(stream_id)

    def own(self, stream_id: str, fence: Entry) -> Tail:
        """Begin the tail of a stream that this replica runs."""
        tail = self._tails.setdefault(stream_id, Tail(stream_id, local=True))
        tail.local = True
        if tail.entries != [fence]:
            tail.drop()  # What they saw is not in this log; as they come back, they are told so.
            tail.entries.replace([fence])
        return tail

    def disown(self, stream_id: str) -> None:
        """Let the viewers of a stream that another replica took over follow the log."""
        if tail := self._tails.get(stream_id):
            tail.local = False
            self.mark([stream_id])

    def superseded(self, stream_id: str, epoch: int) -> bool:
        """Whether another replica took this stream over and the run here has not noticed yet."""
        tail = self._tails.get(stream_id)
        return tail is not None and tail.local and tail.last is not None and tail.last.epoch < epoch

    def rehome(self, stream_id: str, owner: str, begun: bool) -> None:
        """Follow a stream's new owner; if nobody has begun it, send its viewers to redeem it."""
        tail = self._tails.get(stream_id)
        if tail is None or tail.local or tail.ended:
            return
        if begun:
            tail.owner = owner
            self.mark([stream_id])
        else:
            tail.drop()

    def forget(self, stream_id: str) -> None:
        """Drop a tail; those still looking at it keep it until they leave."""
        self._tails.pop(stream_id, None)

    async def attach(self, stream_id: str, owner: str, position: Position | None) -> Viewer:
        """Return a new viewer, to be detached; raises Passing if the log cannot be read.

        `owner` is the replica that runs the stream, "" if it has ended.
        """
        tail = await self._brought_up(stream_id, owner)
        viewer = Viewer(tail, position)
        tail.viewers.add(viewer)
        self.viewers += 1
        if self.closing:
            viewer.leave()
        return viewer

    async def _brought_up(self, stream_id: str, owner: str) -> Tail:
        """Return a tail that knows all that is logged: a position is judged by it."""
        while True:
            tail = self._tails.get(stream_id) or Tail(stream_id, local=False)
            if not tail.local and not tail.ended:
                tail.owner = owner or tail.owner
                if tail.owner:  # Before the first byte: the owner may be waiting.
                    await self._show_presence([tail])
                await self._load(tail)
            # Meanwhile the sweep may have dropped it, or a run begun another.
            if self._tails.setdefault(stream_id, tail) is tail:
                return tail

    def detach(self, viewer: Viewer) -> None:
        """Let a viewer go."""
        viewer.tail.viewers.discard(viewer)
        viewer.tail.idle_since = _now()
        self.viewers -= 1
        if viewer.tail.owner and not viewer.tail.local and not viewer.tail.viewers:
            self._left.add(viewer.tail.stream_id)

    def mark(self, stream_ids: Iterable[str]) -> None:
        """Read these streams soon: their owner says that there is more."""
        for stream_id in stream_ids:
            tail = self._tails.get(stream_id)
            if tail is not None and not tail.local:
                self._stale.add(stream_id)
        if self._stale:
            self._news.set()

    def owners(self) -> dict[str, list[str]]:
        """Return the replicas that run what is watched here, with the streams."""
        owners: dict[str, list[str]] = {}
        for stream_id in self._followed():
            if owner := self._tails[stream_id].owner:
                owners.setdefault(owner, []).append(stream_id)
        return owners

    def drain(self) -> None:
        """Send all viewers away, now and from now on."""
        self.closing = True
        for tail in list(self._tails.values()):
            tail.drop()

    def sweep(self, now: float) -> None:
        """Tick all viewers, and drop tails of other replicas' streams that nobody watches."""
        for tail in list(self._tails.values()):
            for viewer in list(tail.viewers):
                viewer.tick(now, self._heartbeat, self._write_timeout)
            if not tail.local and not tail.viewers and now - tail.idle_since > POLL:
                del self._tails[tail.stream_id]

    async def follow(self) -> None:
        """Read the streams that run elsewhere, for ever; the owner cancels it."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            timer = loop.call_at(due + POLL, self._news.set)
            await self._news.wait()
            timer.cancel()
            self._news.clear()
            if loop.time() - due >= POLL:
                due = loop.time()
                self._stale.update(self._followed())
            stale, self._stale = list(self._stale), set()
            try:
                for start in range(0, len(stale), _BATCH):
                    await self._read(stale[start : start + _BATCH])
                await self._withdraw()
            except Passing as error:
                log.info("nothing can be read: %s", error.detail)

    async def announce(self) -> None:
        """Tell the owners of watched streams that somebody is here, for ever."""
        while True:
            await asyncio.sleep(self._grace / 3)
            tails = [self._tails[each] for each in self._followed()]
            try:
                for start in range(0, len(tails), _BATCH):
                    await self._show_presence(tails[start : start + _BATCH])
                    await self._drop_lost(tails[start : start + _BATCH])
            except Passing as error:
                log.info("presence cannot be shown: %s", error.detail)

    async def _withdraw(self) -> None:
        """Let owners know soon that the last viewer here has left; else the grace would double."""
        left, self._left = self._left, set()
        gone = [each for each in left if not ((tail := self._tails.get(each)) and tail.viewers)]
        await self._records.withdraw_presence(gone)

    def _followed(self) -> list[str]:
        return [
            name
            for name, tail in self._tails.items()
            if tail.viewers and not tail.local and not tail.ended
        ]

    async def _show_presence(self, tails: list[Tail]) -> None:
        await self._records.show_presence([each.stream_id for each in tails], self._grace)
        words: dict[str, list[str]] = {}
        for tail in tails:
            if tail.owner:
                words.setdefault(tail.owner, []).append(tail.stream_id)
        await self._store.calls(
            ["PUBLISH", inbox(owner), " ".join(["watch", self._records.replica, *ids])]
            for owner, ids in words.items()
        )

    async def _drop_lost(self, tails: list[Tail]) -> None:
        """Send viewers away from streams that Redis lost and that nobody wrote again in time."""
        known = await self._records.exist([each.stream_id for each in tails])
        lost = [tail for tail, there in zip(tails, known, strict=True) if not there]
        if lost and not await self._records.may_be_forgotten(0):
            for tail in lost:
                tail.drop()

    async def _load(self, tail: Tail) -> None:
        """Read a whole log; two viewers that come at once may both do it."""
        while True:
            (entries,) = await read(self._store, [tail.stream_id], [tail.last])
            _add(tail, entries)
            if len(entries) < READ_COUNT or tail.local:
                return

    async def _compare(self, tail: Tail) -> None:
        """Look whether a log with a new owner still holds what was shown of it.

        A Redis that forgot the first claim may have given the stream to another replica.
        """
        entries = await read_all(self._store, tail.stream_id)
        if not tail.local and tail.last not in [entry.last for entry in entries]:
            tail.replace(entries)
            tail.wake()

    async def _read(self, stream_ids: list[str]) -> None:
        tails = [self._tails[each] for each in stream_ids if each in self._tails]
        tails = [each for each in tails if not each.local and not each.ended]
        if not tails:
            return
        batches = await read(
            self._store, [each.stream_id for each in tails], [each.last for each in tails]
        )
        for tail, entries in zip(tails, batches, strict=True):
            if entries and tail.last and entries[0].last.epoch != tail.last.epoch:
                await self._compare(tail)
            _add(tail, entries)
            if len(entries) == READ_COUNT:
                self.mark([tail.stream_id])


def _add(tail: Tail, entries: list[Entry]) -> None:
    """Show what was read, unless a run of this replica began meanwhile: then its log shows it."""
    if not tail.local and tail.extend(entries):
        tail.wake()


def _now() -> float:
    return asyncio.get_running_loop().time()

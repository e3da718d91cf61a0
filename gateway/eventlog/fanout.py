"""Fanout: all that is watched on this replica, and the reading of what runs elsewhere.

A stream that this replica runs is fed by its own log after each commit; any other is read from
Redis by a fetcher, at a wake-up from its owner and once a second in any case. So a lost wake-up
costs a second, and the number of connections does not grow with viewers.

Of what runs elsewhere only the newest is kept here. Who is further behind reads the log page by
page; see `pages`.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from gateway import clock
from gateway.errors import Unavailable
from gateway.eventlog.base import Source
from gateway.eventlog.channel import ChannelTail
from gateway.eventlog.entries import END, NOTHING, EntryBatch, EventId
from gateway.eventlog.fetcher import Fetcher, add
from gateway.eventlog.pages import Pages
from gateway.eventlog.reader import Page, likely, read_rest
from gateway.eventlog.tail import Tail
from gateway.eventlog.viewer import ChannelViewer, Viewer
from gateway.sse import Event, parse
from gateway.store.client import RedisClient
from gateway.store.keys import is_channel
from gateway.store.node import Node
from gateway.store.per_node import PerNodeTasks
from gateway.telemetry.base import NO_TELEMETRY, Telemetry

POLL = 1.0  # Seconds between reads of a stream that is run elsewhere, if nobody wakes us.

_PATIENCE = 5.0  # Seconds that somebody who comes waits: a Redis that is away is told before.
_BREATH = 0.05  # Seconds between two readings of which the first brought nothing.
_PAUSE = 0.5  # Seconds that a viewer waits before it looks again, or reads again what failed.


class Fanout:
    """All tails of one replica; `follow` is its task."""

    def __init__(
        self,
        store: RedisClient,
        source: Source,
        *,
        grace: Callable[[], float],
        heartbeat: float,
        write_timeout: float,
        replay_bytes: int = 64 << 20,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._store = store
        self._source = source
        self._grace = grace
        # The sweep that looks comes every quarter: twice may pass before it sees a silence.
        self._heartbeat = heartbeat * 0.5
        self._write_timeout = write_timeout
        self._telemetry = telemetry
        self._tails: dict[str, Tail] = {}
        self._pages = Pages(store, replay_bytes)
        self._fetchers = PerNodeTasks(self._fetcher)
        self.work = asyncio.Lock()  # For what takes its time, and is to be done one at a time.
        self.viewers = 0
        self.closing = False

    def get(self, stream_id: str) -> Tail | None:
        """Return the tail of a stream, if this replica has one."""
        return self._tails.get(stream_id)

    def own(self, stream_id: str, *logged: EntryBatch) -> Tail:
        """Begin the tail of a stream that this replica runs; `logged` is what there is of it."""
        new = Tail(stream_id, local=True, pages=self._pages)
        tail = self._tails.setdefault(stream_id, new)
        tail.local = True
        if tail.base is not None or tail.entries != logged[: len(tail.entries)]:
            # What they saw is not in this log, or not in memory; as they come back they are told.
            tail.break_off()
            tail.base = None
            tail.entries.replace(logged)
        elif tail.extend(logged):
            tail.wake()
        return tail

    def disown(self, stream_id: str) -> None:
        """Let the viewers of a stream that another replica took over follow the log."""
        if tail := self._tails.get(stream_id):
            tail.local = False
            tail.weigh()
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

    async def attach(
        self,
        stream_id: str,
        owner: str,
        event_id: EventId | None,
        subject: str = "",
        issued: int = 0,
    ) -> Viewer:
        """Return a new viewer, to be detached; raises Unavailable if the log cannot be read.

        `owner` is the replica that runs the stream, "" if it has ended; `subject` whose it is, and
        `issued` when it was asked for, in milliseconds of Redis's clock.
        """
        tail = await self._brought_up(stream_id, owner, event_id, subject)
        viewer = (ChannelViewer if is_channel(stream_id) else Viewer)(tail, event_id)
        tail.viewers.add(viewer)
        tail.subject = tail.subject or subject
        tail.issued = tail.issued or issued
        self.viewers += 1
        self._telemetry.viewer_opened()
        if self.closing:
            viewer.leave()
        return viewer

    async def _brought_up(
        self, stream_id: str, owner: str, event_id: EventId | None, subject: str
    ) -> Tail:
        """Return a tail that knows where the log ends: an event id is judged by it."""
        while True:
            kind = ChannelTail if is_channel(stream_id) else Tail
            new = kind(stream_id, local=False, subject=subject, pages=self._pages)
            tail = self._tails.get(stream_id) or new
            if not tail.local and not tail.ended:
                tail.owner = owner or tail.owner
                if tail.announced:  # Before the first byte: the owner may be waiting.
                    await self._fetcher_of(stream_id).show_presence([tail])
                await self._load(tail)
                seen = event_id if is_channel(stream_id) else None
                if (tail.last or NOTHING) < (seen or NOTHING) < END:
                    await self._rest(tail)  # It was shown more, since the look that it shared.
            # Meanwhile the sweep may have dropped it, or a run begun another.
            if self._tails.setdefault(stream_id, tail) is tail:
                return tail

    def detach(self, viewer: Viewer) -> None:
        """Let a viewer go."""
        tail = viewer.tail
        tail.viewers.discard(viewer)
        tail.idle_since = clock.now()
        self.viewers -= 1
        self._telemetry.viewer_closed()
        if tail.announced and not tail.local and not tail.viewers:
            self._fetcher_of(tail.stream_id).leave(tail.stream_id)

    def mark(self, stream_ids: Iterable[str]) -> None:
        """Read these streams soon: their owner says that there is more."""
        for stream_id in stream_ids:
            tail = self._tails.get(stream_id)
            if tail is not None and not tail.local:
                self._fetcher_of(stream_id).mark(stream_id)

    def tails_of(self, subject: str, before: int) -> list[Tail]:
        """Return what is watched here of what a subject has asked for before a time."""
        watched = (tail for tail in self._tails.values() if tail.viewers)
        return [each for each in watched if each.subject == subject and each.issued < before]

    def watched(self) -> dict[str, int]:
        """Return how many viewers each stream has here, of those that have any."""
        watched = {name: len(tail.viewers) for name, tail in self._tails.items() if tail.viewers}
        return {name: count for name, count in watched.items() if not is_channel(name)}

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
                self._pages.forget(tail.stream_id)  # A key may be used again for another log.

    async def follow(self) -> None:
        """Read the streams that run elsewhere, and tell their owners, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fetchers.run())
            while True:
                self.mark(self._followed())
                for each in self._fetchers:
                    each.turn()
                await asyncio.sleep(POLL)

    def _fetcher(self, node: Node) -> Fetcher:
        def followed() -> list[str]:
            return [each for each in self._followed() if self._store.node_for(each) is node]

        return Fetcher(self._store, self._source, self._tails, followed, self._grace)

    def _fetcher_of(self, stream_id: str) -> Fetcher:
        return self._fetchers.of(self._store.node_for(stream_id))

    def _followed(self) -> list[str]:
        return [
            name
            for name, tail in self._tails.items()
            if tail.viewers and not tail.local and not tail.ended
        ]

    async def _load(self, tail: Tail) -> None:
        """Bring a tail up to the end of its log; viewers who come at once read it once."""
        if tail.last is None:
            page = await self._page(tail, tail.start, _PATIENCE)
            if page is None:
                raise Unavailable("overloaded")
            if not tail.local and tail.last is None:
                tail.begin(page)
        else:
            await self._rest(tail)

    async def _rest(self, tail: Tail) -> None:
        while True:
            count = likely(tail.typical)
            entries, more = await read_rest(self._store, tail.stream_id, tail.last, count)
            await self._fetcher_of(tail.stream_id).compare(tail, entries)
            add(tail, entries)
            if not more or tail.local:
                return

    async def _page(self, tail: Tail, at: EventId | None, patience: float) -> Page | None:
        """Return a page that all share who ask for it now, None if it takes longer."""
        task = self._pages.load(tail.stream_id, at, tail.subject)
        await asyncio.wait({task}, timeout=patience)
        return task.result() if task.done() else None

    async def begun_with(self, tail: Tail) -> Iterable[Event]:
        """Return what a log began with: a viewer who comes back may be in the middle of it."""
        entries: Sequence[EntryBatch] = tail.entries
        if tail.base is not None:
            entries = ()
            with suppress(Unavailable):
                if page := await self._page(tail, None, _PATIENCE):
                    entries = page.entries
        return (event for entry in entries for event in parse(entry.frames))

    async def turn(self, viewer: Viewer) -> None:
        """Read what a viewer needs who is behind, or give it time for a heartbeat."""
        at = viewer.at
        try:
            page = await self._page(viewer.tail, at, _PAUSE)
        except Unavailable:  # As with any other tail: it comes when Redis does.
            await asyncio.sleep(_PAUSE)
            return
        if page is not None and viewer.at == at:  # Else it was told of a gap meanwhile.
            viewer.turn(page)
            if not page.more and len(page.entries) < 2:
                await asyncio.sleep(_BREATH)  # The tail has more: it is to be read once more.

    async def stop(self) -> None:
        """End what is being read for viewers."""
        await self._pages.stop()

"""Takeover: what becomes of the streams of replicas that died.

Taking a stream over fences the dead one's late writes; then its log can be read at leisure. What it
tells has the last word: `done` if the finish was logged, `cancelled` if a cancel was stored. Any
other stream recovers by the first step that it can take, as often as its preset allows deaths:

1. An upstream that keeps its answers is re-attached: nothing is lost, and nothing paid again.
2. `on_crash = "restart"`: it is asked again, after a `reset`. The dead owner's request may have
   been sent, also where nothing of it is logged, so it counts as paid.
3. It ends `interrupted`, with its text so far and an estimate of what was paid.

A stream that goes on is a run of this replica like any other, with its limits, and a longest time
and a grace of its own; its log is bounded as a whole. Usage is that of the last answer, `attempts`
tells of the others. Each death leaves a fence in the log, so a request that kills whoever asks
it is asked a bounded number of times. If this replica dies on the way, its own list names the
stream, and a third one goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from gateway.config.presets import Preset
from gateway.errors import Fenced, Unavailable
from gateway.eventlog.entries import EntryBatch, EntryBatches
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.group_commit import GroupCommit
from gateway.eventlog.reader import read_all
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.answer import answer_events
from gateway.runs.bill import Bill
from gateway.runs.booking import spent
from gateway.runs.endings import Ending, ending_events, failure
from gateway.runs.record import Record, fields_of
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry, Start
from gateway.runs.settlement import settle
from gateway.runs.snapshot import CompletionSnapshot, snapshot_of
from gateway.sse import Event
from gateway.upstream.client import Upstream
from gateway.upstream.protocols.table import DEFAULT
from gateway.webhooks.courier import Courier

logger = logging.getLogger("gateway.runs.takeover")

_REATTACHED = 20  # Deaths that an answer may outlive which is kept: it may be their cause.
_AT_ONCE = 32  # Streams taken over at the same time: a dead replica may have run thousands.


class Takeover:
    """This replica's duties towards dead ones; those that go on run here, if there is room.

    One idea: a stream whose owner died goes on, ends, or is left, and is on a list until it did.
    """

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        writer: GroupCommit,
        fanout: Fanout,
        upstream: Upstream,
        presets: Callable[[str], Preset | None],
        registry: RunRegistry,
        *,
        courier: Courier,
    ) -> None:
        self._records = records
        self._ledger = records.limits.ledger
        self._heartbeat = heartbeat
        self._writer = writer
        self._fanout = fanout
        self._upstream = upstream
        self._presets = presets
        self._registry = registry
        self._courier = courier
        self._evicting: set[str] = set()
        self._taking_over: set[str] = set()
        self._broken_off: dict[str, str] = {}  # Stream -> the dead replica that ran it.
        self._generation = 0
        self._orphans: set[str] = set()
        self._reclaiming = 0

    @property
    def busy(self) -> bool:
        """Whether streams are being taken over, or may have to be: others must find them then."""
        return bool(self._evicting or self._reclaiming) or self.reclaim_due

    @property
    def reclaim_due(self) -> bool:
        """Whether streams may name this replica that it does not know: an eviction broke off,
        or a connection is a new one, and may lead to a server that knows less."""
        stale = self._generation != self._records.store.generation
        return not self._evicting and (stale or bool(self._orphans))

    def orphan(self, stream_id: str) -> None:
        """Look at the next reclaiming whether a stream names this replica that does not run it."""
        self._orphans.add(stream_id)

    async def evict(self, dead: str, watched: list[str]) -> None:
        """Take over what a dead replica named as run by it, and what is watched here of it."""
        if dead in self._evicting:
            return
        self._evicting.add(dead)
        try:
            named = await self._heartbeat.left_by(dead)
            if named:  # Else it was evicted, and somebody has looked at a stream of it since.
                logger.warning("replica %s is dead; it ran %d stream(s)", dead, len(named))
            left = [*{*named, *watched}]
            await self._by_node(left, partial(self._take_over_some, dead))
            while left := await self._heartbeat.evict(dead):
                await self._by_node(left, partial(self._take_over_some, dead))
        except Exception as error:
            _complain(f"{dead} is not evicted yet", error)
            self._generation = -1  # It may live after all; what was taken from it is ours now.
        finally:
            self._evicting.discard(dead)

    async def _by_node(
        self, stream_ids: list[str], work: Callable[[list[str]], Awaitable[None]]
    ) -> None:
        """Do so for each server's streams: one that is away must not hold up what others have."""
        groups = self._records.store.by_node(stream_ids)
        for failed in await asyncio.gather(*map(work, groups), return_exceptions=True):
            if failed is not None:
                raise failed

    async def _take_over_some(self, dead: str, stream_ids: list[str]) -> None:
        broken: list[BaseException] = []  # One that breaks must not keep the others from an end.
        for start in range(0, len(stream_ids), _AT_ONCE):
            batch = stream_ids[start : start + _AT_ONCE]
            tries = (self._take_over(each, dead) for each in batch)
            results = await asyncio.gather(*tries, return_exceptions=True)
            failed = [result for result in results if result is not None]
            # An eviction that breaks off goes on from here; and one that lives keeps the rest.
            taken = [each for each, result in zip(batch, results, strict=True) if result is None]
            if taken:
                await self._heartbeat.taken_over(dead, taken)
            broken.extend(failed)
            if any(isinstance(each, Unavailable) for each in failed):
                break
        if broken:
            raise broken[0]

    async def _take_over(self, stream_id: str, dead: str) -> None:
        """Take one stream over, and run it here or seal it; raises Unavailable."""
        tail = self._fanout.get(stream_id)
        if tail is not None and tail.local and not tail.ended:
            # An earlier try, that broke off at another stream, has begun it here; unless the dead
            # one took it from this replica, which does not know yet.
            record = await self._records.read(stream_id)
            if dead != self._heartbeat.replica and _is_of(record, dead):
                words = "This replica has yet to hear that it lost it"
                raise Unavailable("store_unavailable", words)
            return
        if stream_id in self._taking_over:
            # In the name of another one who is dead: only Redis can tell whose it was.
            raise Unavailable("store_unavailable", "It is being taken over already")
        self._taking_over.add(stream_id)
        self._broken_off[stream_id] = dead
        try:
            await self._heartbeat.register(stream_id)
            # The same nonce at every try: one whose reply was lost, or that broke off, goes on.
            epoch = await self._records.takeover(stream_id, dead, f"takeover {dead}")
            record = await self._records.read(stream_id)
            if epoch is None or record is None:
                self._follow(stream_id, record)
            if epoch is None or record is None or not await self._goes_on(record, epoch, dead):
                await self._leave(stream_id)
            self._broken_off.pop(stream_id, None)
        finally:
            self._taking_over.discard(stream_id)

    async def reclaim(self, held: Callable[[str], bool]) -> None:
        """End what names this replica as its owner and is not `held` by it.

        A failover may lose the end of a stream that was forgotten here since. Its owner lives, so
        nobody else would ever take it over. What a dead one ran goes on, if an eviction broke off;
        nothing else does: nobody died, so nothing is to be paid again.
        """
        self._generation = self._records.store.generation
        orphans, self._orphans = self._orphans, set()
        self._reclaiming += 1
        try:
            named = {*await self._heartbeat.streams_of(self._heartbeat.replica), *orphans}
            await self._by_node([*named], partial(self._reclaim_some, held))
            if not self._evicting:
                self._broken_off.clear()
        except Exception as error:
            _complain("what was lost here is not ended yet", error)
            self._generation = -1
            self._orphans |= orphans
        finally:
            self._reclaiming -= 1

    async def _reclaim_some(self, held: Callable[[str], bool], stream_ids: list[str]) -> None:
        me = self._heartbeat.replica
        for stream_id in stream_ids:
            record = None if held(stream_id) else await self._records.read(stream_id)
            if held(stream_id):
                continue
            if stream_id in self._taking_over or self._registry.owes(stream_id):
                self.orphan(stream_id)  # In a dead one's name, who may not have run it; or kept.
            elif _is_of(record, me):
                await self._take_over(stream_id, self._broken_off.get(stream_id, me))
            else:
                await self._leave(stream_id)  # As of a claim that was given up.

    async def _leave(self, stream_id: str) -> None:
        """Take a stream off this replica's list, once what it took is booked and its end heard."""
        booked = await self._ledger.book_left(stream_id)
        owed = await self._courier.inherit(stream_id)  # It leaves when that was heard.
        if booked and not owed:
            await self._heartbeat.unregister(stream_id)
        elif not booked:
            self.orphan(stream_id)

    async def follow(self, stream_id: str) -> None:
        """Let the viewers of a stream that another replica took away follow it there."""
        try:
            record = await self._records.read(stream_id)
            self._follow(stream_id, record)
            if _is_of(record, self._heartbeat.replica):
                self.orphan(stream_id)  # Its run broke.
            elif stream_id not in self._taking_over and stream_id not in self._courier:
                await self._heartbeat.unregister(stream_id)  # Else it stays on the list for ever.
        except Exception as error:
            _complain(f"{stream_id} is not followed yet", error)
            self.orphan(stream_id)

    def _follow(self, stream_id: str, record: Record | None) -> None:
        # Redis may have forgotten the claim: then nobody runs it, and a viewer has to redeem it.
        begun = record is not None and record.state != "cached"
        self._fanout.rehome(stream_id, record.owner if record and begun else "", begun)

    async def _goes_on(self, record: Record, epoch: int, dead: str) -> bool:
        """Let a stream go on here, or seal it; return whether it goes on."""
        request = await self._records.request(record.stream_id)
        entries = await read_all(self._records.store, record.stream_id)
        if not entries or entries[-1].last.epoch != epoch:
            # Its owner may live, and write it again: a log must not get two ends.
            raise Unavailable("store_unavailable", "Redis forgot that the stream was taken over")
        answer = await self._told(record, entries, request)
        left = Start(epoch, request, entries, before=record.attempts)
        preset = self._preset(record)
        goes_on = preset if dead != self._heartbeat.replica else None
        start = goes_on and self._recovery_step(record, goes_on, left, answer)
        if goes_on and start and self._registry.begin_if_room(record, goes_on, start):
            how = "asked again" if start.events else "re-attached"
            logger.warning("%s: %s in place of a dead replica", record.stream_id, how)
            if start.events:
                self._upstream.abandon(goes_on, answer_events(entries))  # One is enough to pay for.
            return True
        over = answer.completion.finished or answer.completion.error
        if await self._seal(record, left, answer) and preset and not over:
            self._upstream.abandon(preset, answer_events(entries))
        return False

    def _preset(self, record: Record) -> Preset | None:
        """Return what a stream was asked by, None where that would read its answer as another's."""
        preset = self._presets(record.preset)
        known = preset is not None and preset.dialect == (record.protocol or DEFAULT)
        return preset if known else None

    async def _told(
        self, record: Record, entries: list[EntryBatch], request: bytes
    ) -> CompletionSnapshot:
        try:
            return await snapshot_of(entries, record.protocol, request)
        except Exception:  # It is somebody else's, and the stream must end all the same.
            logger.exception("%s: what its log tells is not understood", record.stream_id)
            return CompletionSnapshot("")

    def _recovery_step(
        self, record: Record, preset: Preset, left: Start, answer: CompletionSnapshot
    ) -> Start | None:
        """Return how a stream goes on, None if it ends."""
        over = answer.completion.finished or answer.completion.error is not None
        if over or record.cancelled or not left.request:
            return None
        deaths = sum(not entry.number for entry in left.entries) - 1
        rest = self._upstream.reattach(preset, answer_events(left.entries))
        if rest and deaths <= _REATTACHED:
            before = max(0, left.before - 1)  # The request at hand is the one that goes on.
            return replace(left, before=before, completion=answer.completion, rest=rest)
        if rest or preset.on_crash != "restart" or deaths > preset.crash_restarts:
            return None
        reset = Event(b'{"attempt":%d}' % (left.before + 1), b"reset")
        return replace(left, events=[reset])

    async def _seal(self, record: Record, left: Start, answer: CompletionSnapshot) -> bool:
        """End a stream; return False where another replica has gone on with it."""
        stream_id = record.stream_id
        ends = await _end(self._presets(record.preset), record, left, answer)
        ending, events, end, result, bill = ends
        fields = {**fields_of(record), "request": left.request}
        log = self._writer.open(stream_id, left.epoch, EntryBatches(left.entries), fields)
        try:
            state = await log.seal(ending.of(log), events, end, result, spent(fields, bill))
            logger.warning("%s: %s in place of a dead replica", stream_id, state)
            return True
        except Fenced:
            logger.info("%s: a third replica was faster", stream_id)
            return False
        finally:
            self._registry.keep(log)  # Its owner may only have been paused.
            self._fanout.mark([stream_id])


async def _end(
    preset: Preset | None, record: Record, left: Start, answer: CompletionSnapshot
) -> tuple[Ending, list[Event], Event, bytes, Bill]:
    """Return how a stream ends that does not go on, and what it took."""
    ending = Ending("done") if answer.completion.finished else _lost()
    try:
        bill = await _bill(record, preset, left, answer)
        ends = ending_events(ending, answer.completion, record.attempts, bill)
    except Exception:
        logger.exception("%s: ends without what its log tells", record.stream_id)
        bill = Bill(record.preset)
        ends = ending_events(ending, None, record.attempts)
    return ending, *ends, bill


def _is_of(record: Record | None, replica: str) -> bool:
    return record is not None and record.running and record.owner == replica


async def _bill(
    record: Record, preset: Preset | None, left: Start, answer: CompletionSnapshot
) -> Bill:
    """Return what a stream took; its last request may have been read, whatever is logged of it."""
    request, completion = left.request, answer.completion
    earlier = await settle(completion, answer.protocol, request, left.entries)
    return Bill.of(completion, record.preset, preset, request=request, read=True, earlier=earlier)


def _complain(words: str, error: Exception) -> None:
    """Say why something is left for later: a fault of ours needs its traceback."""
    level, fault = (
        (logging.DEBUG, None) if isinstance(error, Unavailable) else (logging.ERROR, error)
    )
    logger.log(level, "%s: %s", words, error, exc_info=fault)


def _lost() -> Ending:
    words = "The replica that ran it died."
    return Ending("interrupted", failure("interrupted", words, retryable=True))

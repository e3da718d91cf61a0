"""Claims: becoming the owner of a cached stream, once, however many requests redeem it here."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.eventlog.entries import EntryBatch, EventId
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.booking import taken
from gateway.runs.endings import Ending, failure
from gateway.runs.record import Claim, ClaimVerdict, Record
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry, Start
from gateway.store.keys import new_id
from gateway.tasks import Tasks

logger = logging.getLogger("gateway.runs.claims")

_WAIT = 3.0  # Seconds a request waits for its claim; the claim itself goes on.
_PAUSE = 0.3
_IN_VAIN = {ClaimVerdict.ATTACH, ClaimVerdict.EXPIRED, ClaimVerdict.MISSING}


class Claims:
    """The claims under way; the registry runs what was claimed, `lost` hears of one that broke."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        registry: RunRegistry,
        tasks: Tasks,
        lost: Callable[[str], None],
    ) -> None:
        self._records = records
        self._limits = records.limits
        self._heartbeat = heartbeat
        self._registry = registry
        self._tasks = tasks
        self._lost = lost
        self._claims: dict[str, asyncio.Task[Claim | None]] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._claims

    async def claim(self, record: Record, preset: Preset) -> ClaimVerdict:
        """Claim a cached stream and run it; tell what came of it. Raises Unavailable.

        The claim goes on when the request that wanted it has gone: what Redis has given to this
        replica must have a run, whether or not somebody still looks.
        """
        if run := self._registry.get(record.stream_id):
            run.log.doubt()  # Redis forgot the claim; its owner is here, and writes it again.
            return ClaimVerdict.CLAIMED
        if record.stream_id not in self._claims and self._full:
            raise Unavailable("overloaded")
        task = self._claims.get(record.stream_id) or self._started(record, preset)
        done, _ = await asyncio.wait({task}, timeout=_WAIT)
        claim = task.result() if done else None
        if claim is None:
            raise Unavailable("store_unavailable", "The claim is not answered yet.")
        if claim.refusal is not None:
            raise claim.refusal.with_traceback(None)
        return claim.verdict

    @property
    def _full(self) -> bool:
        return self._registry.count + len(self._claims) >= self._registry.most

    def _started(self, record: Record, preset: Preset) -> asyncio.Task[Claim | None]:
        self._limits.check_streams(record.subject)
        self._limits.streams.take(record.subject)
        task = self._claims[record.stream_id] = self._tasks.spawn(self._claim(record, preset))
        task.add_done_callback(lambda _: self._over(record, task))
        return task

    def _over(self, record: Record, task: "asyncio.Task[Claim | None] | None") -> None:
        """Count a claim no more, once: a run has taken its own place."""
        if task is not None and self._claims.get(record.stream_id) is task:
            del self._claims[record.stream_id]
            self._limits.streams.give(record.subject)

    async def _claim(self, record: Record, preset: Preset) -> Claim | None:
        try:
            return await self._claimed(record, preset)
        except Exception:  # What Redis has given to this replica must come to an end.
            logger.exception("%s: the claim broke", record.stream_id)
            self._lost(record.stream_id)
            return None

    async def _claimed(self, record: Record, preset: Preset) -> Claim | None:
        nonce, deadline, sent = new_id(), clock.now() + _WAIT, False
        while True:
            asked = clock.now()
            try:
                await self._heartbeat.register(record.stream_id)
                again, sent = sent, True
                claim, ending = await self._asked_for(record, preset, nonce, again)
                if claim.verdict is not ClaimVerdict.UNNAMED:
                    break
                record = await self._records.read(record.stream_id) or record
                continue
            except Unavailable:
                if not sent and clock.now() + _PAUSE > deadline:
                    self._lost(record.stream_id)  # It may be on the list all the same.
                    return None  # Nothing is claimed, and nobody waits any more: they come back.
            await asyncio.sleep(_PAUSE)
        if claim.verdict is ClaimVerdict.CLAIMED:
            fence = EntryBatch(EventId(claim.epoch, 0), 0, b"")
            start = Start(claim.epoch, claim.request, [fence], claimed=asked, ending=ending)
            self._registry.begin(record, preset, start)
            self._over(record, self._claims.get(record.stream_id))  # Not later: it counts as two.
        elif record.stream_id not in self._registry:
            with suppress(Unavailable):
                await self._heartbeat.unregister(record.stream_id)
                if claim.verdict in _IN_VAIN:
                    await self._give_back(record)
        return claim

    async def _give_back(self, record: Record) -> None:
        """Free what a claim took that came after the end: nobody else would, for a lease."""
        if self._limits.permits.bounds(record.preset).of_runs:
            found = await self._records.read(record.stream_id)
            if found is None or not found.running:
                self._limits.ended(record.subject, record.stream_id, record.preset)

    async def _asked_for(
        self, record: Record, preset: Preset, nonce: str, again: bool
    ) -> tuple[Claim, Ending | None]:
        """Return what Redis says to a claim, and how the stream ends if nothing may be spent on it.

        `again`: the reply to an earlier try was lost, so it may be ours by now, with its slot.
        """
        stream_id, held = record.stream_id, record.held
        permit = self._limits.permit(held, taken(record.estimate, preset))
        claim = await self._records.claim(stream_id, nonce, record.buried, permit)
        if claim.refusal is None:
            return claim, None
        ending = None
        if again and _is_of(await self._records.read(stream_id), self._records.replica):
            pass
        elif claim.verdict is ClaimVerdict.EXHAUSTED:
            told = str(claim.refusal.detail)
            ending = Ending("failed", failure("quota_exhausted", told, retryable=False))
        else:
            return claim, None
        return await self._records.claim(stream_id, nonce, record.buried), ending


def _is_of(record: Record | None, replica: str) -> bool:
    return record is not None and record.running and record.owner == replica

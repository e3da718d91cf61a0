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
from gateway.runs.record import ClaimVerdict, Record
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry, Start
from gateway.store.keys import new_id
from gateway.tasks import Tasks

logger = logging.getLogger("gateway.runs.claims")

_WAIT = 3.0  # Seconds a request waits for its claim; the claim itself goes on.
_PAUSE = 0.3


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
        self._claims: dict[str, asyncio.Task[ClaimVerdict | None]] = {}

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
        verdict = task.result() if done else None
        if verdict is None:
            raise Unavailable("store_unavailable", "The claim is not answered yet.")
        return verdict

    @property
    def _full(self) -> bool:
        return self._registry.count + len(self._claims) >= self._registry.most

    def _started(self, record: Record, preset: Preset) -> asyncio.Task[ClaimVerdict | None]:
        self._limits.check_streams(record.subject)
        self._limits.streams.take(record.subject)
        task = self._claims[record.stream_id] = self._tasks.spawn(self._claim(record, preset))
        task.add_done_callback(lambda _: self._over(record, task))
        return task

    def _over(self, record: Record, task: "asyncio.Task[ClaimVerdict | None] | None") -> None:
        """Count a claim no more, once: a run has taken its own place."""
        if task is not None and self._claims.get(record.stream_id) is task:
            del self._claims[record.stream_id]
            self._limits.streams.give(record.subject)

    async def _claim(self, record: Record, preset: Preset) -> ClaimVerdict | None:
        try:
            return await self._claimed(record, preset)
        except Exception:  # What Redis has given to this replica must come to an end.
            logger.exception("%s: the claim broke", record.stream_id)
            self._lost(record.stream_id)
            return None

    async def _claimed(self, record: Record, preset: Preset) -> ClaimVerdict | None:
        nonce, deadline, sent = new_id(), clock.now() + _WAIT, False
        while True:
            asked = clock.now()
            try:
                await self._heartbeat.register(record.stream_id)
                sent = True
                claim = await self._records.claim(record.stream_id, nonce, record.buried)
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
            self._registry.begin(
                record, preset, Start(claim.epoch, claim.request, [fence], claimed=asked)
            )
            self._over(record, self._claims.get(record.stream_id))  # Not later: it counts as two.
        elif record.stream_id not in self._registry:
            with suppress(Unavailable):
                await self._heartbeat.unregister(record.stream_id)
        return claim.verdict

"""Supervisor: all runs of one process, and its loops.

What Redis has given to this replica has a run here, whatever becomes of the request that asked for
it. An ended stream is kept for two leases more, and written again if Redis comes back empty.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import Fenced, Unavailable
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.group_commit import GroupCommit
from gateway.eventlog.writer import EventLog
from gateway.membership.control import ControlChannel, Handler
from gateway.membership.heartbeat import Heartbeat
from gateway.membership.suspects import Suspects
from gateway.runs.answer import answer_events
from gateway.runs.cancellation import Cancellation
from gateway.runs.claims import Claims
from gateway.runs.compaction import Compaction
from gateway.runs.endings import Ending, failure
from gateway.runs.failover import Plan, Refusals
from gateway.runs.inquiry import WORD, Respondent
from gateway.runs.intake import RunLimits
from gateway.runs.logout import Logout
from gateway.runs.notification import Notification
from gateway.runs.ownership import Ownership
from gateway.runs.presence import IdlePolicy, Presence
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.runs.redemption import Redemption
from gateway.runs.registry import RunRegistry, Start
from gateway.runs.repeats import Repeats
from gateway.runs.run import Run
from gateway.runs.takeover import Takeover
from gateway.store.data_loss import DataLossDetector
from gateway.tasks import Tasks
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from gateway.upstream.client import Upstream

logger = logging.getLogger("gateway.runs.supervisor")

_SEAL_WAIT = 5.0  # Seconds the seals may take after the drain's deadline.
_TELL_WAIT = 1.0  # Seconds that the webhooks of these have.

_LEVELS = {"done": logging.INFO, "cancelled": logging.INFO, "interrupted": logging.INFO}


class RunSupervisor:
    """The runs of this process; `start`, `drain` and `stop` are its life.

    One idea: what a run needs from its claim to its seal is joined here, and only here do the parts
    of it meet.
    """

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        fanout: Fanout,
        upstream: Upstream,
        presets: Callable[[str], Preset | None],
        run_limits: RunLimits,
        interval: Callable[[], float],
        *,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.started = self.draining = self.drained = self.stopped = False
        self._records = records
        self._heartbeat = heartbeat
        self._data_loss = DataLossDetector(records.store, heartbeat.lease)
        self._limits = records.limits
        self._fanout = fanout
        self._upstream = upstream
        self._presets = presets
        self._refusals = Refusals()
        self._interval = interval  # Seconds between two sweeps.
        self._tasks = Tasks()
        self._compaction = Compaction(records.store)
        self._writer = GroupCommit(records.store, records, self._compaction.add)
        self._registry = RunRegistry(
            fanout, self._writer, records.limits, run_limits, self._begin, telemetry
        )
        self._notification = Notification(records, heartbeat, fanout, presets, self._registry)
        self._courier = self._notification.courier
        parts = (records, heartbeat, self._writer, fanout, upstream, presets)
        self._takeover = Takeover(*parts, self._registry, courier=self._courier)
        self._claims = Claims(records, heartbeat, self._registry, self._tasks, self._lost)
        self._notification.claims = self._claims
        self.redemption = Redemption(
            records,
            fanout,
            self._registry,
            self._claims,
            presets,
            draining=lambda: self.draining,
            saw=self._saw,
        )
        here = (self._registry, self._claims, self._tell)
        self.cancellation = Cancellation(records, heartbeat, *here)
        self.logout = Logout(records, heartbeat, fanout, self._registry, self.cancellation)
        self._idle = IdlePolicy(Presence(records.store, records.replica), heartbeat, self._registry)
        self._ownership = Ownership(records, heartbeat, interval)
        # Longer than a death takes to be seen.
        self._suspects = Suspects(3 * heartbeat.lease, fanout.owners)
        self._repeats = Repeats(records)
        told = (records.store, records.replica, fanout, self._registry, self._tasks)
        handlers: dict[str, Handler] = {
            "wake": fanout.mark,
            "cancel": self.cancellation.carry_out,
            "logout": self.logout.heard,
            "watch": self._idle.watched_by,
            WORD: Respondent(*told).heard,
        }
        self._control = ControlChannel(records.store, records.replica, handlers)

    @property
    def active(self) -> list[Run]:
        """The runs whose end is not stored yet."""
        return self._registry.active

    def _saw(self, record: Record) -> None:
        """Note what somebody looked at: whoever looks at a stream without a living owner ends it.

        Its owner may be this replica, which does not know: then it is reclaimed.
        """
        if record.running and record.owner != self._records.replica:
            self._suspects.note(record.stream_id, record.owner)
        elif record.running and not self._holds(record.stream_id):
            self._takeover.orphan(record.stream_id)

    def _holds(self, stream_id: str) -> bool:
        return any(stream_id in each for each in (self._registry, self._claims))

    def _lost(self, stream_id: str) -> None:
        """Let the next reclaiming end what was perhaps claimed here, and has no run."""
        self._fanout.disown(stream_id)
        self._takeover.orphan(stream_id)

    async def _tell(self, stream_id: str) -> None:
        """Tell of an end that was written here though nothing ran here; if any was."""
        with suppress(Unavailable):
            if await self._courier.inherit(stream_id):
                return
        self._takeover.orphan(stream_id)  # It is named here, and the next reclaiming sees why.

    # One run

    def _begin(self, run: Run, start: Start) -> None:
        self._tasks.spawn(self._live(run, start))

    async def _live(self, run: Run, start: Start) -> None:
        stream_id = run.log.stream_id
        try:
            permit = partial(self._ownership.permit, start.claimed)
            source = start.rest or self._upstream
            state = await run.main(source, permit, self._plan(run), self._abandon)
            self._registry.ended(run, state)  # Before any wait: who saw it may begin another.
            level = _LEVELS.get(state, logging.WARNING)
            logger.log(level, "%s: %s after %d %s", stream_id, state, run.made, run.why)
            await self._notification.ended(run)
        except Fenced:
            logger.warning("%s: another replica took it over, or its log broke", stream_id)
            await self._let_go(run)
        except Exception:
            logger.exception("%s: the run broke, and is ended anew", stream_id)
            await self._let_go(run)
        finally:
            self._registry.ended(run)

    def _plan(self, run: Run) -> Plan | None:
        """Return whom a run may ask in turn, None where that is its preset alone."""
        if not run.preset.fallback:
            return None
        body = partial(self._records.waited_for_body, run.log.stream_id)
        return Plan(run.log.fields["preset"], self._presets, self._refusals, body)

    def _abandon(self, run: Run) -> None:
        seen = answer_events(run.tail.entries, run.log.uncommitted)
        self._upstream.abandon(run.preset, seen)

    async def _let_go(self, run: Run) -> None:
        """Follow a stream that is another one's; reclaiming ends what Redis says is ours."""
        self._registry.let_go(run)
        await self._takeover.follow(run.log.stream_id)

    # The life of the replica

    def start(self) -> None:
        """Begin the loops; `stop` ends them."""
        self.started = True
        loops = (
            self._writer.run,
            self._heartbeats,
            self._sweeps,
            self._looks,
            self._control.listen,
        )
        more = (self._fanout.follow, self._counts, self._compaction.run)
        for loop in (*loops, *more, self._courier.run, self._courier.shelve):
            self._tasks.repeat(loop)

    def send_away(self) -> None:
        """Begin to drain: viewers are sent to other replicas, now and from now on."""
        self.draining = True
        self._fanout.drain()

    async def drain(self, deadline: float) -> None:
        """Send viewers away and let runs finish for `deadline` seconds; seal what is left."""
        self.send_away()
        await self._while(lambda: self._registry.count or self._claims, deadline)
        why = failure("interrupted", "The replica that ran it was shut down.", retryable=True)
        for run in self._registry.active:
            run.stop(Ending("interrupted", why))
        await self._writer.ask()
        await self._while(lambda: self._owes, _SEAL_WAIT)
        # What is not heard now is another replica's from here on.
        await self._while(lambda: self._courier.fresh, _TELL_WAIT)
        self.drained = True

    @property
    def _owes(self) -> bool:
        """Whether streams lack their end, or may: Redis can forget it after it was stored."""
        owed = self._registry.count or self._claims or self._limits.ledger.owes
        return self._registry.unsure or bool(owed)

    async def _while(self, holds: Callable[[], object], seconds: float) -> None:
        end = clock.now() + seconds
        while holds() and clock.now() < end:  # noqa: ASYNC110 (a doubt that passes tells nobody)
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End all tasks; what is not sealed by now, another replica will find."""
        self.draining = self.stopped = True
        idle = not (self._owes or self._takeover.busy or self._courier or self._courier.skips)
        await self._tasks.stop()
        await self._courier.close()
        if idle:
            await self._data_loss.stop()
            with suppress(Unavailable):
                await self._heartbeat.stop()

    async def _counts(self) -> None:
        await self._limits.run(lambda: self._registry.active)

    async def _heartbeats(self) -> None:
        while True:
            try:
                owners = self._suspects.owners()
                paused = not self._heartbeat.lease_valid
                active = [run.log.stream_id for run in self._registry.active]
                cancels = await self._heartbeat.renew(active)
                lost = await self._data_loss.renew()
                dead = self._heartbeat.deaths(owners)
                self._writer.look_at_connection()
                if paused:  # Others may have taken these over, and their upstreams may be silent.
                    self._doubt(run.log for run in self._registry.active)
                self.cancellation.carry_out(cancels)
                if lost:
                    logger.warning("the store came back without its memory")
                    self._doubt(self._in_datasets(lost))
                    self._tasks.spawn(self._repeats.again(self._asked_in(lost)))
                    self._tasks.spawn(self._courier.again(lost))
                self._evict(dead, owners)
                pause = self._heartbeat.interval
            except Unavailable as error:
                logger.debug("the heartbeat is not renewed: %s", error)
                pause = min(1.0, self._heartbeat.interval)
            # From the answer on: then the third look is a whole lease later, and no fourth needed.
            await asyncio.sleep(pause)

    def _evict(self, dead: Iterable[str], owners: Mapping[str, list[str]]) -> None:
        if self.draining:
            return  # Who leaves takes nothing over.
        if self._takeover.reclaim_due or self._courier.has_room_again:
            self._tasks.spawn(self._reclaim())
        for name in dead:
            self._tasks.spawn(self._takeover.evict(name, owners.get(name, [])))

    async def _reclaim(self) -> None:
        await self._notification.look_again()
        over = await self._notification.over()
        await self._takeover.reclaim(lambda each: each in over or self._holds(each))

    def _in_datasets(self, datasets: Collection[str]) -> list[EventLog]:
        at = self._records.store.dataset_key_of
        return [log for log in self._registry.logs() if at(log.stream_id) in datasets]

    def _asked_in(self, datasets: Collection[str]) -> dict[str, str]:
        at = self._records.store.dataset_key_of
        asked = {each: run.asked for each, run in self._registry.items()}
        return {each: name for each, name in asked.items() if name and at(name) in datasets}

    def _doubt(self, logs: Iterable[EventLog]) -> None:
        for log in logs:
            log.doubt()

    async def _sweeps(self) -> None:
        before = clock.now()
        while True:
            interval = self._interval()
            await asyncio.sleep(interval)
            now = clock.now()
            self._fanout.sweep(now)
            # After a pause of the whole process the bytes that came meanwhile are not read yet.
            late = now - before > 3 * interval
            before = now
            self._look_at_all(now, late)

    def _look_at_all(self, now: float, late: bool) -> None:
        # As long as Redis was not heard since, nobody knows whether it still has what ended.
        until = self._heartbeat.renewed - 2 * self._heartbeat.lease
        for stream_id, run in list(self._registry.items()):
            if not late:
                self._check(run, now)
            end = run.finished_at
            over = end is not None and (end < until or run.log.fenced)
            if over and not run.log.unsure and not run.tail.viewers:
                self._registry.forget(run)
                if run.log.fenced:  # Its writing broke, perhaps: then its end is not stored again.
                    self._takeover.orphan(stream_id)
        for stream_id in self._registry.forget_kept(until):
            self._takeover.orphan(stream_id)

    def _check(self, run: Run, now: float) -> None:
        try:
            run.check(now)
        except Exception:  # One that breaks must not keep the others from being looked at.
            logger.exception("%s: the look at it broke", run.log.stream_id)
            why = failure("internal", "The gateway made a mistake.", retryable=True)
            run.stop(Ending("failed", why))

    async def _looks(self) -> None:
        """Look for cancels whose message was lost, and for runs that nobody watches any more."""
        due = 0.0
        while True:
            pause = min((run.preset.grace / 3 for run in self._registry.active), default=1.0)
            await asyncio.sleep(min(1.0, pause))
            try:
                await self.cancellation.look()
                if clock.now() >= due:
                    due = clock.now() + pause * 0.9
                    await self._idle.look()
            except Unavailable:
                self._idle.anew()

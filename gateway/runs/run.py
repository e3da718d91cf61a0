"""Run: the task that owns the one upstream call of a stream and writes its log.

Theory of operation
-------------------
A run is never inside a request: viewers come and go, the run goes on. Its task pulls from the
upstream, then seals the log. Whatever ends a run early (a cancel, the last viewer's grace, silence,
a cap, the drain) sets its ending and cancels the task while it pulls, so the upstream's connection
is closed whatever await it was in; the seal itself is not cancelled but by the process's end.

At most one upstream request of a ticket can have been paid for. The claim, a script, gives the
stream to one owner. The owner asks only if nobody can have declared it dead since then
(`Heartbeat.lease_held_since`), else it asserts its ownership first. It asks again only after a sure
refusal: no connection, 429, 503 or 529 before any body, or a status that its preset adds: others
come also from gateways whose provider was paid.

A replica that dies is seen by the others; one takes each stream over (which fences the dead one's
late writes) and goes on with it or ends it: see `takeover`. The owner of an ended stream keeps
everything for two leases more, and writes it again if Redis comes back empty.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import Fenced, UpstreamFailure, with_cause
from gateway.eventlog.tail import Tail
from gateway.eventlog.writer import EventLog
from gateway.limits.permits import Taken
from gateway.limits.subjects import Held
from gateway.runs.attempts import Attempts
from gateway.runs.bill import Bill
from gateway.runs.booking import spent, taken
from gateway.runs.endings import Ending, ending_events, failure
from gateway.runs.failover import Candidate, Plan
from gateway.runs.intake import Intake, RunLimits, stalled
from gateway.runs.record import dialect_fields
from gateway.runs.settlement import settle
from gateway.upstream.client import UpstreamRequest
from gateway.upstream.failures import broken_off
from gateway.upstream.protocols.base import CompletionState, Tokens
from gateway.upstream.protocols.table import protocol_of

logger = logging.getLogger("gateway.runs.run")


_AFTER_FINISH = 10.0  # Seconds an upstream may take for what it still has to say after the finish.


class Run:
    """One stream while it is asked for, written and sealed.

    One idea: whoever ends it (a cancel, a clock, the upstream) does so in the midst of the one task
    that pulls, and what has been read, written and said by then decides the ending.
    """

    def __init__(
        self,
        log: EventLog,
        tail: Tail,
        preset: Preset,
        request: bytes,
        limits: RunLimits,
        before: int = 0,
        completion: CompletionState | None = None,
    ) -> None:
        now = clock.now()
        self.log = log
        self.tail = tail
        self.preset_at_first = str(log.fields["preset"])  # In which it has its slot.
        self.preset = preset
        self.attempts = before + 1  # The one at hand; it counts as sent when it is.
        self._before = before  # Sent by owners that died.
        self.sent = 0
        # Whether the upstream may have read the request at hand: of an answer that goes on it has.
        self.read = completion is not None
        self.switched = False  # Whether another preset is asked than its record named at first.
        self.unseen_since: float | None = None
        self.finished_at: float | None = None
        self.why = ""  # What it was and what came of it, for operators.
        self.request = request
        self._limits = limits
        completion = completion or protocol_of(preset).completion(request)
        self.intake = Intake(log, preset, limits, completion)
        tail.choices = completion.choices
        self._ending: Ending | None = None
        self._pull: asyncio.Task[Any] | None = None  # The run's task, while it pulls.
        self._pulled = False
        self._stopped = False
        self._began = now
        log.on_commit = tail.wake
        log.on_fence = self._fenced

    @property
    def made(self) -> int:
        """The requests that were sent for it, or may have been."""
        return self._before + self.sent

    @property
    def active(self) -> bool:
        """Whether its end is not stored yet."""
        return self.finished_at is None

    @property
    def subject(self) -> str:
        """Whose it is."""
        return bytes(self.log.fields["subject"]).decode()

    @property
    def issued(self) -> int:
        """When it was asked for, in milliseconds of Redis's clock."""
        return int(self.log.fields["issued"])

    @property
    def asked(self) -> str:
        """What a repeat of its request finds it by, "" where none can."""
        return str(self.log.fields.get("asked", ""))

    @property
    def webhook(self) -> str:
        """Who is told of its end, "" for nobody."""
        return str(self.log.fields.get("webhook", ""))

    @property
    def held(self) -> Held:
        """What it holds of what is its subject's."""
        return Held(self.subject, self.log.stream_id, len(self.request), self.log.fields["preset"])

    @property
    def taken(self) -> Taken:
        """What it may take, or took so far if that is more."""
        estimate = str(self.log.fields.get("estimate", ""))
        return taken(estimate, self.preset, self._completion.tokens)

    @property
    def _completion(self) -> CompletionState:
        return self.intake.completion

    @property
    def pulling(self) -> bool:
        """Whether it still reads, or waits for, its upstream."""
        return self._pull is not None

    @property
    def pausing(self) -> bool:
        """Whether it waits itself: for Redis, or for its next attempt."""
        return self.intake.silence is None

    async def main(
        self,
        source: UpstreamRequest,
        permit: Callable[["Run"], Awaitable[None]],
        plan: Plan | None = None,
        abandoned: Callable[["Run"], None] = lambda _: None,
    ) -> str:
        """Pull, then seal; return the state stored. Raises Fenced.

        `abandoned` hears of an answer that its upstream keeps, and that is not waited for any more.
        """
        broken: Exception | None = None
        if self._ending is None:
            self._pull = task = asyncio.current_task()
            try:
                await Attempts(self, source, partial(permit, self), plan).make()
                if self._stopped:
                    await asyncio.sleep(0)  # The cancelling that is due must not hit the seal.
            except asyncio.CancelledError:
                if not self._stopped or (task and task.uncancel()):
                    raise  # It is the process that ends.
            except Exception as error:
                broken = error
            self._pull, self._pulled = None, True
        ending = self._ending or self._outcome(broken)
        name = self.log.fields["preset"]
        bill = await self._bill(name, plan.tried if plan else ())
        took = f"{clock.now() - self._began:.2f} s, {self.log.count} events"
        became = f": {ending.reason}" if ending.reason else f", {took}, {bill}"
        chain = " -> ".join(bill.tried or [name])
        self.why = with_cause(f"attempt(s) of preset {chain}{became}", broken)
        broken = None  # It points at this frame, and this at the run: a circle.
        if self.log.fenced:
            raise Fenced(self.log.stream_id)
        events, cancelled, result = ending_events(ending, self._completion, self.made, bill)
        ends = (ending.of(self.log), events, cancelled, result)
        state = await self.log.seal(*ends, spent(self.log.fields, bill))
        if not self.intake.whole and protocol_of(self.preset).keeps(self.preset):
            abandoned(self)  # Not before: as long as it has no end another replica may go on.
        return state

    async def _bill(self, name: str, tried: Sequence[str]) -> Bill:
        completion, earlier = self._completion, Tokens()
        try:
            if self._before or not completion.counted:
                protocol, log = protocol_of(self.preset), self.log
                earlier = await settle(
                    completion, protocol, self.request, log.entries, log.uncommitted
                )
        except Exception:  # The stream must end all the same.
            logger.exception("%s: what its answers took is not understood", self.log.stream_id)
        return Bill.of(
            completion,
            name,
            self.preset,
            tried,
            request=self.request,
            read=self.read,
            earlier=earlier,
        )

    def stop(self, ending: Ending) -> None:
        """End the run as told, unless it is at its end already."""
        if self._ending is None and not self._pulled:
            # What is whole is done; a cancel that was stored has the last word at the seal.
            self._ending = Ending("done") if self._completion.finished else ending
            self._stop_pulling()

    def _stop_pulling(self) -> None:
        if self._pull is not None and not self._stopped:
            self._stopped = True
            self._pull.cancel()

    def check(self, now: float) -> None:
        """Stop a run that is too long or whose upstream is silent."""
        if not self.pulling or self._stopped:
            return
        silent = self.intake.silent_for(now)
        finished_at, silence = self.intake.finished_at, self.intake.silence
        if finished_at is not None:
            if now - finished_at > min(self.preset.stall, _AFTER_FINISH):
                self.stop(Ending("done"))
        elif now - self._began > self.preset.max_run:
            words = f"The completion took longer than {self.preset.max_run:g} seconds."
            self.stop(Ending("truncated", failure("run_too_long", words, retryable=False)))
        elif silence is not None and silent > silence and not self.intake.interrupt():
            self.stop(self._silent(silence))

    def _silent(self, seconds: float) -> Ending:
        at_rest = Ending("done") if self._completion.at_rest else _ending(stalled(seconds))
        return self.intake.natural_end() or at_rest

    def turn_to(self, other: Candidate) -> None:
        """Ask another preset from now on; nothing of an answer may be logged yet."""
        self.preset, self.request, self.switched = other.preset, other.request, True
        completion = protocol_of(other.preset).completion(other.request)
        self.intake = Intake(self.log, other.preset, self._limits, completion)
        self.tail.choices = completion.choices
        dialect = {"protocol": "", **dialect_fields(other.preset.dialect)}
        self.log.fields.update(preset=other.name, request=other.request, **dialect)

    def _fenced(self) -> None:
        self._stop_pulling()

    def _outcome(self, error: Exception | None) -> Ending:
        """Tell how the pull ended; an upstream that had finished before is done all the same."""
        if isinstance(error, UpstreamFailure):
            capped = error.code in {"log_full", "event_too_large"}
            return (None if capped else self.intake.natural_end()) or _ending(error)
        if error is not None and not isinstance(error, Fenced):
            logger.error("%s: the run broke", self.log.stream_id, exc_info=error)
            words = "The gateway made a mistake."
            return Ending("failed", failure("internal", words, retryable=True))
        return self.intake.natural_end() or _ending(broken_off())


def _ending(failed: UpstreamFailure) -> Ending:
    told = failure(
        failed.code,
        failed.message,
        retryable=failed.retryable,
        status=failed.status,
        retry_after=failed.retry_after,
    )
    return Ending(failed.state, told)

"""Attempts: the requests of one run, in turn, until one is answered or nothing more may be asked.

After a sure refusal the same upstream is asked again, or a fallback (see `failover`). An answer
that its upstream keeps is gone on with where its connection broke: that is the same attempt, and
nothing is paid again. All else raises how it went wrong.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Protocol

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.eventlog.tail import Tail
from gateway.eventlog.writer import EventLog
from gateway.runs.answer import answer_events
from gateway.runs.failover import Candidate, Plan
from gateway.runs.intake import Intake, Looks, stalled
from gateway.sse import Event
from gateway.upstream.client import UpstreamRequest
from gateway.upstream.failures import broken_off
from gateway.upstream.protocols.base import NONE
from gateway.upstream.protocols.table import protocol_of

logger = logging.getLogger("gateway.runs.run")

_CUT = "upstream_cut"
_TIMED = frozenset({_CUT, "upstream_stalled"})
_UNREAD = frozenset({"upstream_refused", "upstream_misconfigured"})  # No model has seen it.
_LONGEST = 8.0  # Seconds between two attempts where the upstream does not say.
_OVER = 3  # Times that an answer may be over and have no rest: its last event may be on its way.
_NOW: AbstractAsyncContextManager[None] = nullcontext()


class Asking(Protocol):
    """The run that is asked for."""

    log: EventLog
    tail: Tail
    preset: Preset
    request: bytes
    intake: Intake
    attempts: int
    sent: int
    read: bool

    def turn_to(self, other: Candidate) -> None:
        """Ask another preset from now on."""


class Attempts:
    """The requests of a run; `permit` returns when it may spend money, or raises Fenced."""

    __slots__ = ("_is_new", "_over", "_permit", "_plan", "_run", "_source", "_tries", "_vain")

    def __init__(
        self,
        run: Asking,
        source: UpstreamRequest,
        permit: Callable[[], Awaitable[None]],
        plan: Plan | None,
    ) -> None:
        self._run = run
        self._source = source
        self._permit = permit
        self._plan = plan
        self._is_new = True  # Not the rest of one that was sent.
        self._tries = 0  # Of the preset at hand.
        self._vain = 0  # Times in a row that the rest was asked for, and nothing came,
        self._over = 0  # and the answer was over.

    async def make(self) -> None:
        """Ask until there is an answer, and take it in; raises UpstreamFailure."""
        run = self._run
        if self._is_from_start and self._plan and (other := await self._plan.first()):
            run.turn_to(other)
        while True:
            await self._permit()
            if self._is_new:
                self._count()
            run.intake.begin(self._source.last)
            try:
                async with self._deadline(), self._source.ask(run.preset, run.request) as chunks:
                    if self._plan is not None:
                        self._plan.answered()
                    await run.intake.read(chunks, self._looks())
                if run.intake.whole or not self._kept:
                    return
                raise broken_off()
            except UpstreamFailure as failed:
                if not await self._goes_on_after(failed):
                    raise
            except TimeoutError:
                late = stalled(run.preset.first_byte)
                if not await self._goes_on_after(late):
                    raise late from None

    def _count(self) -> None:
        """Count an attempt: from here on it may be paid for."""
        if self._plan is not None:
            self._plan.ask()
        self._run.sent += 1
        self._run.read = True
        self._tries += 1
        self._is_new = False

    @property
    def _is_from_start(self) -> bool:
        """Whether what is asked is a new request: an answer's rest is its own upstream's alone."""
        return self._source.last == NONE

    @property
    def _kept(self) -> bool:
        return protocol_of(self._run.preset).keeps(self._run.preset)

    def _deadline(self) -> AbstractAsyncContextManager[object]:
        """Return what ends a request that is silent where a fallback may be asked instead."""
        self._run.intake.deadline = None
        if self._plan is None or not self._run.preset.fallback_on_timeout:
            return _NOW
        self._run.intake.deadline = asyncio.timeout(None)
        return self._run.intake.deadline

    def _looks(self) -> Looks | None:
        """Return what asks how a silent answer is; None where silence is its end."""
        return partial(self._look, self._source, self._run.preset) if self._kept else None

    def _look(self, source: UpstreamRequest, preset: Preset) -> Awaitable[bool] | None:
        return source.looks(preset, self._seen())

    def _seen(self) -> Iterator[Event]:
        return answer_events(self._run.tail.entries, self._run.log.uncommitted)

    async def _goes_on_after(self, failed: UpstreamFailure) -> bool:
        """Return when the next request is to be sent, or that there is none."""
        if self._is_from_start and (failed.sure or failed.code in _UNREAD):
            self._run.read = False
        self._run.intake.silence = None  # What is waited for, Redis too, is not the upstream.
        if self._kept and await self._has_rest(failed):
            return True
        if not self._is_from_start:
            raise broken_off("The upstream does not give the rest.") from failed
        pause, other = self._pause(failed), None
        waits = pause is not None
        sure = failed.sure and not (waits and failed.retry_after is None)  # A short pause is ours.
        if self._plan is not None and (sure or self._may_be_late(failed)):
            other = await self._plan.after(failed, waits=waits)
        if pause is None and other is None:
            return False
        run = self._run
        logger.info("%s: attempt %d: %s", run.log.stream_id, run.attempts, failed)
        if other is not None:
            run.turn_to(other)
            self._tries = 0
        else:
            await asyncio.sleep(pause or 0.0)
        run.attempts += 1
        run.log.fields["attempts"] = run.attempts
        self._is_new = True
        return True

    def _may_be_late(self, failed: UpstreamFailure) -> bool:
        """Whether a fallback is asked though this one may have been paid for."""
        run = self._run
        return run.preset.fallback_on_timeout and failed.code in _TIMED and not run.log.count

    def _pause(self, failed: UpstreamFailure) -> float | None:
        """Return the seconds before the same is asked again, None if it must not be."""
        preset = self._run.preset
        if not failed.sure or self._tries > preset.retries:
            return None
        pause = failed.retry_after
        if pause is None:
            pause = _backoff(self._tries)
        return pause if pause <= preset.retry_after_max else None

    async def _has_rest(self, failed: UpstreamFailure) -> bool:
        """Turn to the rest of a kept answer, if it can be asked for."""
        source, run = self._source, self._run
        if failed.code != _CUT and (self._is_from_start or not failed.retryable):
            return False
        await run.log.flushed()
        rest = source.reattach(run.preset, self._seen())
        if rest is None:
            return False
        logger.info("%s: re-attached after %s", run.log.stream_id, failed)
        self._vain = self._vain + 1 if rest.last == source.last else 0
        self._source = rest
        if await self._is_all(failed):
            return False
        if self._vain:  # Longer each time, whatever is told: it may be a thousandth of a second.
            await asyncio.sleep(max(failed.retry_after or 0.0, _backoff(self._vain + 1)))
        return True

    async def _is_all(self, failed: UpstreamFailure) -> bool:
        """Whether nothing follows, as of an answer that failed and does not tell so in its rest."""
        empty = self._vain and failed.code == _CUT
        look = self._look(self._source, self._run.preset) if empty else None
        over = look is not None and not await look
        self._over = self._over + 1 if over else 0
        return self._over >= _OVER


def _backoff(times: int) -> float:
    """Return the seconds to wait after so many tries, where the upstream does not say."""
    return min(2.0 ** min(times - 2, 10), _LONGEST)

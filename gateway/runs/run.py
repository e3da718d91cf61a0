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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import Fenced, UpstreamFailure, with_cause
from gateway.eventlog.tail import Tail
from gateway.eventlog.writer import EventLog
from gateway.limits.subjects import Held
from gateway.runs.bill import Bill
from gateway.runs.endings import Ending, ending_events, failure, natural_ending
from gateway.sse import Event
from gateway.upstream.client import UpstreamRequest
from gateway.upstream.messages import said
from gateway.upstream.protocols.base import CompletionState, Protocol
from gateway.upstream.protocols.table import protocol_of

logger = logging.getLogger("gateway.runs.run")


BACKLOG = 1 << 20  # Bytes read from an upstream while Redis does not take them; then it waits.
_AT_ONCE = 1 << 16  # Bytes: they may be ten thousand events, and other streams wait meanwhile.
_NOISE = 1 << 20  # Bytes of comments and the like that are read however small a log may be.
_AFTER_FINISH = 10.0  # Seconds an upstream may take for what it still has to say after the finish.


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The largest event and log of a run, in bytes, and the most streams of a process."""

    event_bytes: int
    log_bytes: int
    streams: int


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
        self.preset = preset
        self.attempts = before + 1  # The one at hand; it counts as sent when it is.
        self._before = before  # Sent by owners that died.
        self._sent = 0
        self.unseen_since: float | None = None
        self.finished_at: float | None = None
        self.why = ""  # What it was and what came of it, for operators.
        self._request = request
        self._frames = self._protocol.frames(preset, limits.event_bytes)
        self._limits = limits
        self._completion = completion or self._protocol.completion(request)
        tail.choices = self._completion.choices
        self._held = b""  # Read, and not yet looked at.
        self._ending: Ending | None = None
        self._pull: asyncio.Task[Any] | None = None  # The run's task, while it pulls.
        self._pulled = False
        self._stopped = False
        self._began = now
        self._heard = now
        self._spoke = False  # Since the last look: a clock costs more than a flag, at every event.
        self._silence: float | None = None  # The longest allowed now; None while it waits itself.
        self._finished_at: float | None = None  # When the upstream said that it is whole.
        log.on_commit = tail.wake
        log.on_fence = self._fenced

    @property
    def active(self) -> bool:
        """Whether its end is not stored yet."""
        return self.finished_at is None

    @property
    def subject(self) -> str:
        """Whose it is."""
        return bytes(self.log.fields["subject"]).decode()

    @property
    def asked(self) -> str:
        """What a repeat of its request finds it by, "" where none can."""
        return str(self.log.fields.get("asked", ""))

    @property
    def held(self) -> Held:
        """What it holds of what is its subject's."""
        return Held(self.subject, self.log.stream_id, len(self._request))

    @property
    def _protocol(self) -> Protocol:
        return protocol_of(self.preset)

    @property
    def pulling(self) -> bool:
        """Whether it still reads, or waits for, its upstream."""
        return self._pull is not None

    async def main(
        self, source: UpstreamRequest, permit: Callable[["Run"], Awaitable[None]]
    ) -> str:
        """Pull, then seal; return the state stored. Raises Fenced."""
        broken: Exception | None = None
        if self._ending is None:
            self._pull = task = asyncio.current_task()
            try:
                await self._attempts(source, permit)
                if self._stopped:
                    await asyncio.sleep(0)  # The cancelling that is due must not hit the seal.
            except asyncio.CancelledError:
                if not self._stopped or (task and task.uncancel()):
                    raise  # It is the process that ends.
            except Exception as error:
                broken = error
            self._pull, self._pulled = None, True
        ending = self._ending or self._outcome(broken)
        failed = ": {code}: {message}".format_map(ending.failure) if ending.failure else ""
        bill = Bill.of(self._completion, self.log.fields["preset"], self.preset)
        took = f"{clock.now() - self._began:.2f} s, {self.log.count} events"
        failed = failed or f", {took}, {bill}"
        self.why = with_cause(f"attempt(s) of preset {self.log.fields['preset']}{failed}", broken)
        broken = None  # It points at this frame, and this at the run: a circle.
        if self.log.fenced:
            raise Fenced(self.log.stream_id)
        attempts = self._before + self._sent
        events, cancelled, result = ending_events(ending, self._completion, attempts, bill)
        return await self.log.seal(ending.of(self.log), events, cancelled, result)

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
        if not self.pulling:
            return
        if self._spoke:
            self._spoke, self._heard = False, now
        if self._finished_at is not None:
            if now - self._finished_at > min(self.preset.stall, _AFTER_FINISH):
                self.stop(Ending("done"))
        elif now - self._began > self.preset.max_run:
            words = f"The completion took longer than {self.preset.max_run:g} seconds."
            self.stop(Ending("truncated", failure("run_too_long", words, retryable=False)))
        elif self._silence is not None and now - self._heard > self._silence:
            self.stop(self._silent())

    def _silent(self) -> Ending:
        words = f"The upstream was silent for {self._silence:g} seconds."
        stalled = failure("upstream_stalled", words, retryable=True)
        at_rest = Ending("done") if self._completion.at_rest else Ending("stalled", stalled)
        return self._natural_end() or at_rest

    def _fenced(self) -> None:
        self._stop_pulling()

    async def _attempts(
        self, source: UpstreamRequest, permit: Callable[["Run"], Awaitable[None]]
    ) -> None:
        while True:
            await permit(self)
            try:
                await self._attempt(source)
                return
            except UpstreamFailure as failed:
                pause = self._pause(failed)
                if pause is None:
                    raise
                logger.info("%s: attempt %d: %s", self.log.stream_id, self.attempts, failed)
            self._silence = None
            await asyncio.sleep(pause)
            self.attempts += 1
            self.log.fields["attempts"] = self.attempts

    def _pause(self, failed: UpstreamFailure) -> float | None:
        """Return the seconds before the next attempt, None if there must be none."""
        if not failed.sure or self._sent > self.preset.retries:
            return None
        pause = failed.retry_after
        if pause is None:
            pause = min(0.5 * 2 ** (self._sent - 1), 8.0)
        return pause if pause <= self.preset.retry_after_max else None

    async def _attempt(self, source: UpstreamRequest) -> None:
        self._held = b""
        noise = max(self._limits.log_bytes, _NOISE)
        self._frames = self._protocol.frames(
            self.preset, self._limits.event_bytes, noise, source.last
        )
        self._heard, self._silence = clock.now(), self.preset.first_byte
        self._sent += 1
        async with source.ask(self.preset, self._request) as chunks:
            while await chunks.each(self._take):
                while self._held and not self._completion.closed:
                    await self._let_others()
                    self._take(self._held)
                if self._completion.closed:
                    return
                await self._wait_for_store()
            if chunks.framed:  # Else nothing tells the end of the body from a cut.
                self._keep([each for each in self._frames.rest() if self._protocol.is_whole(each)])
            self._completion.end(framed=chunks.framed)

    def _take(self, chunk: bytes) -> bool:
        """Keep a chunk; say whether to stop: at the end, or until Redis has taken the backlog."""
        self._spoke = True
        if len(chunk) > _AT_ONCE or self._held:
            self._held, chunk = chunk[_AT_ONCE:], chunk[:_AT_ONCE]
        self._keep(self._frames.feed(chunk))
        if self._frames.odd and not self._completion.closed:
            self._look_at_odd()
        return self._completion.closed or self.log.backlog > BACKLOG or bool(self._held)

    def _look_at_odd(self) -> None:
        self._frames.odd = False
        self._completion.hear(self._frames.strays)
        if self._frames.noisy:
            raise _too_large("upstream_noise", "The upstream sends too much that is no event.")
        if self._frames.overflow:
            raise _too_large("event_too_large", "An event of the upstream is too large.")

    def _keep(self, events: list[Event]) -> None:
        room = self._limits.log_bytes - self.log.size
        fit = events
        if sum([len(event.data) for event in events]) > room:
            fit = _that_fit(events, room)
        if fit:
            for event in fit:
                self._completion.see(event)
            if self._completion.closed:
                fit = events = self._to_the_close(fit)
            self.log.append(fit)
        if len(fit) < len(events):
            raise _too_large("log_full", "The completion is larger than a stream may be.")
        self._silence = self.preset.stall
        finished = self._completion.finished  # Not for good: text after it shows that it was none.
        if finished != (self._finished_at is not None):
            self._finished_at = clock.now() if finished else None

    def _to_the_close(self, events: list[Event]) -> list[Event]:
        """Return what is of the answer: whether more came in the same read is chance."""
        closes = self._protocol.closes
        ends = [number for number, event in enumerate(events, 1) if closes(event)]
        return events[: ends[0]] if ends else events

    async def _let_others(self) -> None:
        await asyncio.sleep(0)
        if self.log.backlog > BACKLOG:
            await self._wait_for_store()

    async def _wait_for_store(self) -> None:
        self._silence = None  # It is not the upstream who is silent.
        await self.log.flushed()
        self._heard, self._silence = clock.now(), self.preset.stall

    def _outcome(self, error: Exception | None) -> Ending:
        """Tell how the pull ended; an upstream that had finished before is done all the same."""
        if isinstance(error, UpstreamFailure):
            capped = error.code in {"log_full", "event_too_large"}
            return (None if capped else self._natural_end()) or Ending(
                error.state,
                failure(error.code, error.message, retryable=error.retryable, status=error.status),
            )
        if error is not None and not isinstance(error, Fenced):
            logger.error("%s: the run broke", self.log.stream_id, exc_info=error)
            words = "The gateway made a mistake."
            return Ending("failed", failure("internal", words, retryable=True))
        words = "The upstream ended the stream before the completion was whole."
        cut = Ending("truncated", failure("upstream_cut", words, retryable=True))
        return self._natural_end() or cut

    def _natural_end(self) -> Ending | None:
        """Return the end that the upstream itself came to, None if it was cut off."""
        self._frames.abandon()
        self._completion.hear(self._frames.strays)
        self._completion.look_back()
        strayed = bool(self._frames.strays)
        for event in self._frames.rest():
            self._completion.suspect(event)
        if self._completion.error is not None:
            words = said(self._completion.error, self.preset) or "The upstream reported an error."
            again = self._completion.retryable
            return Ending("failed", failure("upstream_error", words, retryable=again))
        return natural_ending(self._completion, strayed=strayed)


def _too_large(code: str, message: str) -> UpstreamFailure:
    return UpstreamFailure(code, message, state="truncated")


def _that_fit(events: list[Event], room: int) -> list[Event]:
    fit: list[Event] = []
    for event in events:
        room -= len(event.data)
        if room < 0:
            break
        fit.append(event)
    return fit

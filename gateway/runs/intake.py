"""Intake: the bytes of an answer, cut into events, looked at, and appended to the log.

Called from within the socket's callback, for each chunk of each stream. What its clocks tell is
looked at by who ends the run.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.eventlog.writer import EventLog
from gateway.runs.endings import Ending, failure, natural_ending
from gateway.sse import Event
from gateway.upstream.client import Chunks
from gateway.upstream.messages import said
from gateway.upstream.protocols.base import NONE, CompletionState
from gateway.upstream.protocols.table import protocol_of

Looks = Callable[[], Awaitable[bool] | None]

BACKLOG = 1 << 20  # Bytes read from an upstream while Redis does not take them; then it waits.
_AT_ONCE = 1 << 16  # Bytes: they may be ten thousand events, and other streams wait meanwhile.
_NOISE = 1 << 20  # Bytes of comments and the like that are read however small a log may be.


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The largest event and log of a run, in bytes, and the most streams of a process."""

    event_bytes: int
    log_bytes: int
    streams: int


class Intake:
    """What one answer was read with, and what it has told so far."""

    __slots__ = (
        *("completion", "silence", "finished_at", "deadline", "_patience"),
        *("_log", "_limits", "_preset", "_protocol", "_frames", "_held", "_heard", "_spoke"),
    )

    def __init__(
        self, log: EventLog, preset: Preset, limits: RunLimits, completion: CompletionState
    ) -> None:
        self.completion = completion
        self.silence: float | None = None  # The longest allowed now; None while it waits itself.
        self.finished_at: float | None = None  # When the upstream said that it is whole.
        self._log = log
        self._limits = limits
        self._preset = preset
        self._protocol = protocol_of(preset)
        self._frames = self._protocol.frames(preset, limits.event_bytes)
        self._held = b""  # Read, and not yet looked at.
        self._heard = clock.now()
        self.deadline: asyncio.Timeout | None = None  # Of who asks somebody else.
        self._patience: asyncio.Timeout | None = None  # Of who asks how a silent answer is.
        self._spoke = False  # Since the last look: a clock costs more than a flag, at every event.

    def begin(self, last: int = NONE) -> None:
        """Await an answer, or its rest after the event of this number."""
        self._held = b""
        noise = max(self._limits.log_bytes, _NOISE)
        self._frames = self._protocol.frames(self._preset, self._limits.event_bytes, noise, last)
        self._heard, self.silence = clock.now(), self._preset.first_byte

    def silent_for(self, now: float) -> float:
        """Return the seconds since the upstream said anything."""
        if self._spoke:
            self._spoke, self._heard = False, now
        return now - self._heard

    @property
    def whole(self) -> bool:
        """Whether the upstream came to an end of its own, good or bad."""
        completion = self.completion
        return completion.finished or completion.closed or completion.error is not None

    def interrupt(self) -> bool:
        """Wake who does something about silence, if somebody does; return whether."""
        waiting = self._patience or (None if self._log.count else self.deadline)
        if waiting is None:
            return False
        self.silence = None
        waiting.reschedule(clock.now())
        return True

    async def read(self, chunks: Chunks, looks: Looks | None = None) -> None:
        """Take what comes, to the end of the answer or of the body; raises UpstreamFailure.

        `looks` asks whether a silent answer goes on.
        """
        each = chunks.each if looks is None else partial(self._patiently, looks, chunks)
        while await each(self._take):
            while self._held and not self.completion.closed:
                await self._let_others()
                self._take(self._held)
            if self.completion.closed:
                return
            await self.wait_for_store()
        if chunks.framed:  # Else nothing tells the end of the body from a cut.
            self._keep([each for each in self._frames.rest() if self._protocol.is_whole(each)])
        self.completion.end(framed=chunks.framed)

    async def _patiently(self, looks: Looks, chunks: Chunks, take: Callable[[bytes], bool]) -> bool:
        """Do as `chunks.each`; one that is silent for long is asked after, and waited for on."""
        while True:
            try:
                async with asyncio.timeout(None) as self._patience:
                    return await chunks.each(take)
            except TimeoutError:
                self._patience = None
                goes_on = looks()
                if goes_on is None:
                    raise stalled(self._preset.stall) from None
                if not await goes_on:
                    return False  # Its rest is to be fetched.
                self._heard, self.silence = clock.now(), self._preset.stall
            finally:
                self._patience = None

    def _take(self, chunk: bytes) -> bool:
        """Keep a chunk; say whether to stop: at the end, or until Redis has taken the backlog."""
        self._spoke = True
        if len(chunk) > _AT_ONCE or self._held:
            self._held, chunk = chunk[_AT_ONCE:], chunk[:_AT_ONCE]
        self._keep(self._frames.feed(chunk))
        if self._frames.odd and not self.completion.closed:
            self._look_at_odd()
        return self.completion.closed or self._log.backlog > BACKLOG or bool(self._held)

    def _look_at_odd(self) -> None:
        self._frames.odd = False
        self.completion.hear(self._frames.strays)
        if self._frames.noisy:
            raise _too_large("upstream_noise", "The upstream sends too much that is no event.")
        if self._frames.overflow:
            raise _too_large("event_too_large", "An event of the upstream is too large.")

    def _keep(self, events: list[Event]) -> None:
        room = self._limits.log_bytes - self._log.size
        fit = events
        if sum([len(event.data) for event in events]) > room:
            fit = _that_fit(events, room)
        if fit:
            for event in fit:
                self.completion.see(event)
            if self.completion.closed:
                fit = events = self._to_the_close(fit)
            self._log.append(fit)
        if len(fit) < len(events):
            raise _too_large("log_full", "The completion is larger than a stream may be.")
        self.silence = self._preset.stall
        finished = self.completion.finished  # Not for good: text after it shows that it was none.
        if finished != (self.finished_at is not None):
            self.finished_at = clock.now() if finished else None

    def _to_the_close(self, events: list[Event]) -> list[Event]:
        """Return what is of the answer: whether more came in the same read is chance."""
        closes = self._protocol.closes
        ends = [number for number, event in enumerate(events, 1) if closes(event)]
        return events[: ends[0]] if ends else events

    async def _let_others(self) -> None:
        await asyncio.sleep(0)
        if self._log.backlog > BACKLOG:
            await self.wait_for_store()

    async def wait_for_store(self) -> None:
        """Wait until Redis has what was read."""
        self.silence = None  # It is not the upstream who is silent.
        await self._log.flushed()
        self._heard, self.silence = clock.now(), self._preset.stall

    def natural_end(self) -> Ending | None:
        """Return the end that the upstream itself came to, None if it was cut off."""
        self._frames.abandon()
        self.completion.hear(self._frames.strays)
        self.completion.look_back()
        strayed = bool(self._frames.strays)
        for event in self._frames.rest():
            self.completion.suspect(event)
        if self.completion.error is not None:
            words = said(self.completion.error, self._preset) or "The upstream reported an error."
            again = self.completion.retryable
            return Ending("failed", failure("upstream_error", words, retryable=again))
        return natural_ending(self.completion, strayed=strayed)


def stalled(seconds: float) -> UpstreamFailure:
    """Return what becomes of an answer that was silent for too long."""
    words = f"The upstream was silent for {seconds:g} seconds."
    return UpstreamFailure("upstream_stalled", words, state="stalled", retryable=True)


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

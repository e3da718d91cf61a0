"""Registry: what runs on this replica, and how many streams that are.

An ended stream stays in it for two leases more: its owner writes it again if Redis comes back
empty. So does the log of one that was ended here in a dead owner's place: that owner may only have
been paused, and would write on where Redis forgot the end.
"""

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from itertools import chain

from gateway import clock
from gateway.config.presets import Preset
from gateway.eventlog.entries import EntryBatch
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.group_commit import GroupCommit
from gateway.eventlog.writer import EventLog
from gateway.limits.subjects import Limits
from gateway.runs.endings import Ending
from gateway.runs.intake import RunLimits
from gateway.runs.record import Record, fields_of
from gateway.runs.run import Run
from gateway.sse import Event
from gateway.telemetry.base import Telemetry
from gateway.upstream.client import UpstreamRequest
from gateway.upstream.protocols.base import CompletionState

_KEPT = 64 << 20  # Bytes of logs that others began: a dead replica may have run thousands.


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: with nothing logged but its fence, or with what a dead replica left."""

    epoch: int
    request: bytes
    entries: list[EntryBatch]
    events: list[Event] = field(default_factory=list)  # Of ours, logged before anything is asked.
    claimed: float = 0.0  # When it was asked for, if it begins with nothing.
    before: int = 0  # Requests that were sent, or may have been.
    completion: CompletionState | None = None  # Of an answer that goes on.
    rest: UpstreamRequest | None = None  # Where the answer comes from, if not from a new request.
    ending: Ending | None = None  # If nothing is to be asked.


class RunRegistry(Mapping[str, Run]):
    """Stream -> run; `live` is told of each that begins, and sees it to its end."""

    def __init__(
        self,
        fanout: Fanout,
        writer: GroupCommit,
        limits: Limits,
        run_limits: RunLimits,
        live: Callable[[Run, Start], object],
        telemetry: Telemetry,
    ) -> None:
        self.most = run_limits.streams
        self.count = 0  # Of the active ones: counting them at every request would take too long.
        self._fanout = fanout
        self._writer = writer
        self._limits = limits
        self._run_limits = run_limits
        self._live = live
        self._telemetry = telemetry
        self._runs: dict[str, Run] = {}
        self._kept: dict[str, tuple[EventLog, float]] = {}  # With the time of its end.
        self._kept_bytes = 0

    def __getitem__(self, stream_id: str) -> Run:
        return self._runs[stream_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def items(self) -> ItemsView[str, Run]:
        """Return all, as fast as a dict does: each sweep asks."""
        return self._runs.items()

    def values(self) -> ValuesView[Run]:
        """Return all runs."""
        return self._runs.values()

    @property
    def active(self) -> list[Run]:
        """The runs whose end is not stored yet."""
        return [run for run in self._runs.values() if run.active]

    @property
    def unsure(self) -> bool:
        """Whether Redis may lack something of any stream here."""
        return any(log.unsure for log in self.logs())

    def logs(self) -> Iterator[EventLog]:
        """Return the logs of all runs, and those that are kept without one."""
        kept = (log for log, _ in self._kept.values())
        return chain((run.log for run in self._runs.values()), kept)

    def owes(self, stream_id: str) -> bool:
        """Whether a stream is to be written again here, should Redis have forgotten it."""
        run, (kept, _) = self._runs.get(stream_id), self._kept.get(stream_id, (None, 0.0))
        if run is not None and (run.active or run.log.unsure):
            return True
        return kept is not None and kept.unsure

    def begin(self, record: Record, preset: Preset, start: Start) -> None:
        """Run what Redis has given to this replica."""
        stream_id = record.stream_id
        tail = self._fanout.own(stream_id, *start.entries)
        fields = {**fields_of(record), "request": start.request, "attempts": start.before + 1}
        log = self._writer.open(stream_id, start.epoch, tail.entries, fields)
        more = (start.before, start.completion)
        run = Run(log, tail, preset, start.request, self._run_limits, *more)
        if start.events:
            log.append(start.events, ours=True)
        if start.ending:
            run.stop(start.ending)
        if before := self._runs.get(stream_id):
            self._writer.close(before.log)  # It had ended here, and Redis forgot it.
        self._drop(stream_id)
        self._runs[stream_id] = run
        self.count += 1
        self._limits.streams.take(record.subject)
        self._telemetry.run_began(record.preset)
        self._live(run, start)

    def begin_if_room(self, record: Record, preset: Preset, start: Start) -> bool:
        """Run what a dead replica ran, unless this one is full; return whether it does."""
        if self.count >= self.most:
            return False
        self.begin(record, preset, start)
        return True

    def ended(self, run: Run, state: str = "") -> None:
        """Count a run no more, with the state that is stored; of all calls the first counts."""
        if run.finished_at is not None:
            return
        run.finished_at = clock.now()
        self.count -= 1
        self._limits.streams.give(run.subject)
        self._telemetry.run_ended(run.log.fields["preset"], state)
        if not run.log.fenced:  # Else it counts as another's.
            presets = {run.preset_at_first, run.log.fields["preset"]}
            self._limits.ended(run.subject, run.log.stream_id, *presets)

    def let_go(self, run: Run) -> None:
        """Forget a run whose stream is another one's; its viewers follow the log."""
        stream_id = run.log.stream_id
        self._fanout.disown(stream_id)
        self._writer.close(run.log)
        if self._runs.get(stream_id) is run:
            del self._runs[stream_id]

    def forget(self, run: Run) -> None:
        """Drop a run that was kept for long enough, with its tail."""
        stream_id = run.log.stream_id
        del self._runs[stream_id]
        self._writer.close(run.log)
        if self._fanout.get(stream_id) is run.tail:
            self._fanout.forget(stream_id)

    def keep(self, log: EventLog) -> None:
        """Keep a log that was sealed here without a run; close one without an end, or room."""
        sealed = bool(log.entries) and bool(log.entries[-1].state)
        if not sealed or log.fenced or self._kept_bytes + log.size > _KEPT:
            self._writer.close(log)
            return
        self._drop(log.stream_id)
        self._kept[log.stream_id] = log, clock.now()
        self._kept_bytes += log.size

    def forget_kept(self, until: float) -> list[str]:
        """Drop what is kept since before then; return the streams that may lack their end."""
        over = [
            (stream_id, log)
            for stream_id, (log, since) in self._kept.items()
            if log.fenced or (since < until and not log.unsure)
        ]
        for stream_id, _ in over:
            self._drop(stream_id)
        return [stream_id for stream_id, log in over if log.fenced]

    def _drop(self, stream_id: str) -> None:
        if kept := self._kept.pop(stream_id, None):
            self._kept_bytes -= kept[0].size
            self._writer.close(kept[0])

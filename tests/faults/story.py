"""Story: all that is known of one stream, of what was injected, and what is said of both. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.plays import Call
from tests.faults.schedule import Stream
from tests.faults.viewer import Transcript

# All that may be wrong; the report says each, also where it is zero.
KINDS = (
    *("lost", "repeated", "reordered", "altered", "extra call", "false done", "false end"),
    *("no end", "after the end", "gap", "differ", "viewer lost", "silence", "process", "mistake"),
    *("not stopped", "booked", "overrun", "unheard", "channel"),
)


DRAIN = 4.0  # Seconds.
_RETURN = 2.5  # Seconds of a Redis that answers, in which an owner writes again what it forgot.


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault of one replica that may end its streams, from the first to the last moment of it."""

    kind: str
    replica: str
    at: float
    until: float

    @property
    def leaves(self) -> float:
        """From when on it may be gone: who drains may have nothing that runs any more."""
        return self.at - DRAIN if self.kind == "term" else self.at


@dataclass(frozen=True, slots=True)
class Loss:
    """A Redis that lost what it had acknowledged: `empty` all of it, `failover` the newest."""

    kind: str
    at: float
    until: float


class Outage(NamedTuple):
    """A time in which Redis did not answer."""

    at: float
    until: float


def answered(outages: Iterable[Outage], since: float, seconds: float) -> float:
    """Return when Redis has answered for so long at a stretch, after a moment."""
    due = since + seconds
    for outage in sorted(outages):
        if outage.until > since and outage.at < due:
            due = max(due, outage.until + seconds)
    return due


@dataclass(slots=True)
class Deletion:
    """A DELETE, and its answer."""

    at: float
    status: int
    state: str


@dataclass
class Story:
    """All that is known of one stream."""

    stream: Stream
    posted: float = 0.0
    calls: list[Call] = field(default_factory=list)
    transcripts: list[Transcript] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    path: str = ""

    @property
    def ended(self) -> float:
        """When its last viewer was through."""
        return max((each.ended for each in self.transcripts), default=self.posted)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was injected into the processes; `lease` in seconds."""

    hits: Sequence[Hit] = ()
    losses: Sequence[Loss] = ()
    outages: Sequence[Outage] = ()
    lease: float = 1.0
    stalls: Sequence[Hit] = ()  # Pauses of replicas that are too short to end anything.
    zero: float = 0.0  # What Redis's clock says when all times here are 0.

    def due(self, loss: Loss) -> float:
        """Return when a living owner must have written again what was lost."""
        return answered(self.outages, loss.until, _RETURN)


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    kind: str
    ticket: int
    text: str
    others: Sequence[int] = ()  # Tickets that it is about as well.


@dataclass
class Verdict:
    """What came of one stream: its state, what is wrong, and what DESIGN allows."""

    state: str = ""
    findings: list[Finding] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

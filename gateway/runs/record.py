"""Record: what Redis knows of a stream, as values that no longer change."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.errors import Unavailable
from gateway.limits.permits import Left
from gateway.limits.subjects import Held
from gateway.runs.endings import moved
from gateway.upstream.protocols.table import DEFAULT

VERSION = PACKED = 3  # The newest that is understood here: of streams whose log was packed.
FIRST = 1  # Of chats, which replicas of before understand too.
_DIALECTS = 2

_NUMBERS = ("version", "issued", "start_by", "epoch", "attempts", "cancel", "buried", "ahead")
_TEXTS = (
    "state",
    "subject",
    "preset",
    "digest",
    "owner",
    "protocol",
    "estimate",
    "ref",
    "webhook",
    "asked",
    "end_id",
)
FIELDS = (*_NUMBERS, *_TEXTS, "result")


@dataclass(frozen=True, slots=True)
class Record:
    """What Redis knows of a stream; times in milliseconds of Redis's clock."""

    stream_id: str
    state: str
    version: int
    subject: str
    preset: str
    digest: str
    issued: int
    start_by: int
    owner: str
    epoch: int
    attempts: int
    cancel: int
    buried: int  # How often it was named by a dead replica, and nobody owned it yet.
    ahead: int  # Milliseconds that its epochs are ahead of the time.
    protocol: str  # The dialect of its answer, "" for OpenAI's chat.
    estimate: str  # Tokens of prompt and completion that it may take, "" where none are bounded.
    ref: str  # What the app calls it, "" for nothing.
    webhook: str  # Who is told of its end, see `webhooks.message`, "" for nobody.
    asked: str  # The request whose repeats may look for it, see `repeats`.
    end_id: str
    result: bytes
    now: int

    @property
    def expired(self) -> bool:
        """Whether nobody redeemed it in time."""
        return self.state == "cached" and self.now > self.start_by

    @property
    def held(self) -> Held:
        """What it holds of what is its subject's, without its request."""
        return Held(self.subject, self.stream_id, 0, self.preset)

    @property
    def cancelled(self) -> bool:
        """Whether a cancel is stored, which its end will say whatever becomes of the run."""
        return bool(self.cancel)

    @property
    def running(self) -> bool:
        """Whether it has an owner and no end yet."""
        return self.state == "starting"

    def told(self, started: bool) -> str:
        """Return the state that a caller is told; `started` says that an event is logged."""
        if self.expired:
            return moved(self.state, "expired")
        return moved(self.state, "streaming") if self.running and started else self.state


@dataclass(frozen=True, slots=True)
class Created:
    """What is stored under an id after `create`, by this call or an earlier one."""

    issued: int
    start_by: int
    now: int
    digest: str
    state: str
    made: bool
    left: Left | None = None  # Of what its subject may do, where that is bounded.

    @property
    def seconds_left(self) -> int:
        """The time left to redeem it; 0 once it was redeemed."""
        left = (self.start_by - self.now) // 1000 if self.state == "cached" else 0
        return max(0, left)


class ClaimVerdict(StrEnum):
    """What came of a claim: ours, its user has spent all, or runs all that it may, another's, too
    late, of nothing, or the stream lacks its name."""

    CLAIMED = "claimed"
    EXHAUSTED = "exhausted"
    NO_SLOT = "no_slot"
    ATTACH = "attach"
    EXPIRED = "expired"
    MISSING = "missing"
    UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Claim:
    """A verdict, and where the stream is ours its epoch and request."""

    verdict: ClaimVerdict
    epoch: int = 0
    request: bytes = b""
    refusal: Unavailable | None = None


def record_of(stream_id: str, time: Sequence[bytes], values: Sequence[Any]) -> Record | None:
    """Return a record by the values of its `FIELDS`, as they are at a time of Redis's clock."""
    got = dict(zip(FIELDS, values, strict=True))
    if got["state"] is None or got["subject"] is None:
        return None
    facts: dict[str, Any] = {name: int(got[name] or 0) for name in _NUMBERS}
    facts |= {name: (got[name] or b"").decode() for name in _TEXTS}
    now = int(time[0]) * 1000 + int(time[1]) // 1000
    return Record(stream_id=stream_id, result=got["result"] or b"", now=now, **facts)


def dialect_fields(dialect: str) -> dict[str, Any]:
    """Return what a new record tells of its answer's dialect: nothing of chats.

    Replicas of before there were others would take all for chats: they wait for newer records.
    """
    return {} if dialect == DEFAULT else {"protocol": dialect, "version": _DIALECTS}


def fields_of(record: Record) -> dict[str, Any]:
    """Return what the record's owner writes again if Redis forgets it."""
    return {
        "version": record.version,
        "subject": record.subject.encode(),
        "preset": record.preset,
        "digest": record.digest,
        "issued": record.issued,
        "start_by": record.start_by,
        "attempts": record.attempts,
        **({"protocol": record.protocol} if record.protocol else {}),
        **({"estimate": record.estimate} if record.estimate else {}),
        **({"ref": record.ref} if record.ref else {}),
        **({"webhook": record.webhook} if record.webhook else {}),
        **({"asked": record.asked, "ahead": record.ahead} if record.asked else {}),
    }

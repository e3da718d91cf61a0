"""Endings: the states of a stream, the way from one to another, and what the last events tell."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gateway.eventlog.writer import EventLog
from gateway.runs.bill import Bill
from gateway.sse import Event
from gateway.upstream.protocols.base import CompletionState

EndState = Literal["done", "cancelled", "truncated", "stalled", "failed", "interrupted", "expired"]
State = Literal["cached", "starting", "streaming"] | EndState
_S = TypeVar("_S", bound=str)
_NO_BILL = Bill()
_LONGEST = 24 * 3600  # Seconds that an upstream may tell to wait.

# Every state and where it may go. `streaming` is `starting` with an event in the log.
MOVES: dict[str, frozenset[State]] = {
    "cached": frozenset({"starting", "cancelled", "expired"}),
    "starting": frozenset(
        {"streaming", "cancelled", "truncated", "stalled", "failed", "interrupted"}
    ),
    "streaming": frozenset({"done", "cancelled", "truncated", "stalled", "failed", "interrupted"}),
    "done": frozenset(),
    "cancelled": frozenset(),
    "truncated": frozenset(),
    "stalled": frozenset(),
    "failed": frozenset(),
    "interrupted": frozenset(),
    "expired": frozenset(),
}
FINAL: frozenset[str] = frozenset(state for state, moves in MOVES.items() if not moves)


def moved(before: str, after: _S) -> _S:
    """Return the state that a stream goes on to; raises ValueError if it has no such move.

    Who breaks on that has made a mistake: its run is ended as one that broke.
    """
    if after not in MOVES[before]:
        raise ValueError(f"a stream cannot go from {before} to {after}")
    return after


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ends, and what the page is told about it."""

    state: EndState
    failure: dict[str, Any] | None = None

    @property
    def reason(self) -> str:
        """What went wrong, for the log; "" if nothing did."""
        if self.failure is None:
            return ""
        status = f" ({self.failure['status']})" if "status" in self.failure else ""
        return f"{self.failure['code']}{status}: {self.failure['message']}"

    def of(self, log: EventLog) -> EndState:
        """Return the state that this log ends with; raises ValueError if it cannot."""
        started = log.count or any(entry.number for entry in log.entries)
        return moved("streaming" if started else "starting", self.state)


def failure(
    code: str,
    message: str,
    *,
    retryable: bool,
    status: int | None = None,
    retry_after: float | None = None,
) -> dict[str, Any]:
    """Return the data of a `failure` event; `retry_after` in seconds."""
    data: dict[str, Any] = {"code": code, "message": message, "retryable": retryable}
    if status is not None:
        data["status"] = status
    if retry_after is not None:
        data["retry_after"] = math.ceil(min(_LONGEST, retry_after))
    return data


def natural_ending(completion: CompletionState, *, strayed: bool) -> Ending | None:
    """Return the end that an upstream itself came to, None if it was cut off before any.

    `strayed`: it sent what is of no event stream. Its error, if it told one, is not for here.
    """
    if completion.finished:
        return Ending("done")
    if completion.broken_off:
        words = f"The upstream broke the completion off: {completion.finish_reason}."
        return Ending("truncated", failure("upstream_broke_off", words, retryable=True))
    if strayed and completion.empty:
        words = "The upstream answered with something else than an event stream."
        return Ending("failed", failure("upstream_not_a_stream", words, retryable=False))
    if completion.over and completion.empty:
        words = "The upstream ended the stream without an answer."
        return Ending("failed", failure("empty_answer", words, retryable=True))
    return None


def ending_events(
    ending: Ending, completion: CompletionState | None, attempts: int, bill: Bill = _NO_BILL
) -> tuple[list[Event], Event, bytes]:
    """Return the last events, the lone `end` if a cancel came first, and the record's result."""
    reason = usage = None
    if completion is not None:
        # Who finished told the price or does not count; who was broken off had no time to tell.
        usage = completion.usage if ending.state == "done" else completion.estimate()
        reason = completion.finish_reason
    result = {"finish_reason": reason, "usage": usage, **bill.members(), "attempts": attempts}
    last = [Event(_json({"state": ending.state, **result}), b"end")]
    if ending.failure is not None:
        last.insert(0, Event(_json(ending.failure), b"failure"))
    cancelled = Event(_json({"state": "cancelled", **result}), b"end")
    kept = result if ending.failure is None else {**result, "failure": ending.failure}
    return last, cancelled, _json(kept)  # For who asks for the answer and never sees events.


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

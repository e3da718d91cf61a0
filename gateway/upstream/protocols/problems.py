"""Problems: how a stream that is not whole is told as a status of HTTP. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.upstream.protocols.refusals import SURE

_STATUSES = {
    "quota_exhausted": 429,
    "upstream_stalled": 504,
    "run_too_long": 504,
    "interrupted": 503,
    "internal": 500,
}
_ASKED_NOBODY = frozenset({"upstream_unreachable", "quota_exhausted"})


class Problem(NamedTuple):
    """What went wrong, as a client is to hear of it; the status is HTTP's."""

    status: int
    code: str
    message: str
    again: bool = False  # Whether an SDK may ask again by itself: nothing can have been paid for.
    after: int | None = None  # Seconds that the upstream said to wait before.


CANCELLED = Problem(409, "cancelled", "The stream was cancelled.")


def problem_of(failure: Mapping[str, Any] | None) -> Problem:
    """Return what a stream that failed so is told as; one without a failure was cancelled."""
    if failure is None:
        return CANCELLED
    code, told = str(failure.get("code")), failure.get("status")
    status = _STATUSES.get(code, 502)
    if code == "upstream_refused" and isinstance(told, int) and 400 <= told < 600:
        status = told
    again = asked_nobody(failure) and bool(failure.get("retryable"))
    wait = failure.get("retry_after")
    after = wait if again and isinstance(wait, int) else None
    return Problem(status, code, str(failure.get("message", "")), again, after)


def asked_nobody(failure: Mapping[str, Any]) -> bool:
    """Whether a failure is one after which nothing can have been paid for."""
    refused = failure.get("code") == "upstream_refused" and failure.get("status") in SURE
    return refused or failure.get("code") in _ASKED_NOBODY

"""Reasons: why an answer ended, in an upstream's word, and those that are no good end. Pure."""

import re
from typing import Any

BROKEN_OFF = frozenset(  # Reasons that finish nothing.
    {"insufficient_system_resource", "abort", "aborted", "cancelled", "canceled", "interrupted"}
    | {"timeout", "user_cancel"}
)

_ERROR = re.compile(r"error|errored|failed|failure|error_.*|.*_error", re.IGNORECASE | re.DOTALL)
_NONE = frozenset({"", "null", "none", "nil", "undefined"})
_LONG = 100  # Characters: it goes into `end` and the record.


def reason_of(value: Any) -> str | None:
    """Return a value as a reason, bounded; None if it tells none."""
    if not isinstance(value, str) or value.strip().lower() in _NONE:
        return None
    return value[:_LONG]


def is_error(reason: str) -> bool:
    """Whether a reason is an error: some say so instead of an error object."""
    return _ERROR.fullmatch(reason) is not None

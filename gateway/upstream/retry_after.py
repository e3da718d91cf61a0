"""Retry after: how long a server asks to be left alone. Pure."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")
_DATE = 64  # Characters; all forms are shorter.

Headers = Sequence[tuple[str, str]]  # Names in lower case, one for each line.


def retry_after(headers: Headers) -> float | None:
    """Return the seconds to wait (RFC 9110 §10.2.3: a number or a date), None if not told."""
    for value in lines_of(headers, "retry-after-ms"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value) / 1000
    for value in lines_of(headers, "retry-after"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value)
        if (seconds := _until(value.strip())) is not None:
            return seconds
    return None


def lines_of(headers: Headers, name: str) -> list[str]:
    """Return the values of a header, line by line."""
    return [value for each, value in headers if each == name]


def _until(date: str) -> float | None:
    """Return the seconds until an HTTP date, all three forms of RFC 9110 §5.6.7."""
    try:
        when = parsedate_to_datetime(date[:_DATE])
        when = when.replace(tzinfo=when.tzinfo or UTC)  # That of asctime has none, and means UTC.
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

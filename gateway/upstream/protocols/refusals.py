"""Refusals: what a status and its headers mean for who would ask again. Pure."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gateway.config.presets import Preset
from gateway.upstream.protocols.base import Refusal
from gateway.upstream.protocols.complaints import is_final, passes, stray_complaint
from gateway.upstream.protocols.error_text import words_of

# Refusals before anything was paid for. Other statuses come also from gateways and CDNs that had
# asked their provider by then: who knows that his do not lists them in `retry_on`.
SURE = frozenset({429, 503, 529})

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")
_DATE = 64  # Characters; all forms are shorter.

Headers = Sequence[tuple[str, str]]  # Names in lower case, one for each line.


def judged(preset: Preset, status: int, headers: Headers, body: bytes) -> Refusal:
    """Tell a refusal that cannot have been paid for from one that may have been."""
    # An upstream that knows better says so; that it may be asked again does not make it sure.
    told = ", ".join(_lines(headers, "x-should-retry")).strip().lower()
    sure = (status in SURE or status in preset.retry_on) and told != "false"
    again = sure or passes(status)
    if error := stray_complaint(body):
        again = again and not is_final(error)
    retryable = told == "true" or (told != "false" and again)
    return Refusal(words_of(body), sure, retryable, retry_after(headers))


def retry_after(headers: Headers) -> float | None:
    """Return the seconds to wait (RFC 9110 §10.2.3: a number or a date), None if not told."""
    for value in _lines(headers, "retry-after-ms"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value) / 1000
    for value in _lines(headers, "retry-after"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value)
        if (seconds := _until(value.strip())) is not None:
            return seconds
    return None


def _lines(headers: Headers, name: str) -> list[str]:
    return [value for each, value in headers if each == name]


def _until(date: str) -> float | None:
    """Return the seconds until an HTTP date, all three forms of RFC 9110 §5.6.7."""
    try:
        when = parsedate_to_datetime(date[:_DATE])
        when = when.replace(tzinfo=when.tzinfo or UTC)  # That of asctime has none, and means UTC.
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

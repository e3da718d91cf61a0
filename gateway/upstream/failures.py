"""Failures: how an upstream request can end badly, and what a page may be told of it."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.upstream.messages import message_of, said
from gateway.upstream.protocols.complaints import is_final, passes, stray_complaint

# Refusals before anything was paid for. Other statuses come also from gateways and CDNs that had
# asked their provider by then: who knows that his do not lists them in `retry_on`.
SURE = frozenset({429, 503, 529})

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")
_DATE = 64  # Characters; all forms are shorter.


def broken(error: Exception) -> UpstreamFailure:
    """Return what becomes of an answer that breaks off, or cannot be read on."""
    how = "The connection to the upstream broke before the completion was whole."
    if isinstance(error, httpx.DecodingError):
        how = "The upstream's compressed answer is corrupt, cut, or too large."
    return UpstreamFailure("upstream_cut", how, state="truncated", retryable=True)


def unanswered(error: Exception) -> UpstreamFailure:
    """Tell a connection that was never made from one that may have carried the request."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return UpstreamFailure(
            "upstream_unreachable",
            "The upstream could not be reached.",
            state="failed",
            retryable=True,
            sure=True,
        )
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError)):
        return UpstreamFailure(
            "upstream_misconfigured", "The upstream's address is wrong.", state="failed"
        )
    said_no_http = isinstance(error, httpx.RemoteProtocolError)
    return UpstreamFailure(
        "upstream_cut",
        "The upstream took the request, and its answer is no HTTP that can be read."
        if said_no_http
        else "The upstream took the request and closed the connection.",
        state="truncated",
        retryable=True,
    )


def refused(status: int, headers: httpx.Headers, body: bytes, preset: Preset) -> UpstreamFailure:
    """Tell a refusal that cannot have been paid for from one that may have been."""
    # An upstream that knows better says so; that it may be asked again does not make it sure.
    told = headers.get("x-should-retry", "").strip().lower()
    sure = (status in SURE or status in preset.retry_on) and told != "false"
    again = sure or passes(status)
    if error := stray_complaint(body):
        again = again and not is_final(error)
    return UpstreamFailure(
        "upstream_refused",
        message_of(body, preset) or _answered(status, headers, preset),
        state="failed",
        status=status,
        retryable=told == "true" or (told != "false" and again),
        sure=sure,
        retry_after=_retry_after(headers),
    )


def _answered(status: int, headers: httpx.Headers, preset: Preset) -> str:
    words = f"The upstream answered {status}"
    where = headers.get("location", "").partition("?")[0]
    if where and 300 <= status < 400:
        words += f" and points to {said(where, preset)}; redirects are not followed"
    return words + "."


def no_stream(status: int, kinds: list[str], body: bytes, preset: Preset) -> UpstreamFailure:
    """Return what becomes of an answer that is no stream."""
    words = message_of(body, preset) if body.lstrip()[:1] in {b"{", b"["} else ""
    shown = said(", ".join(kinds), preset) or "something without a type"
    return UpstreamFailure(
        "upstream_not_a_stream",
        words or f"The upstream answered with {shown} instead of an event stream.",
        state="failed",
        status=status,
    )


def not_readable(status: int, coding: str, preset: Preset) -> UpstreamFailure:
    """Return what becomes of an answer in a coding that nobody here knows."""
    return UpstreamFailure(
        "upstream_not_a_stream",
        f"The upstream answered in an encoding that cannot be read: {said(coding, preset)}.",
        state="failed",
        status=status,
    )


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds to wait (RFC 9110 §10.2.3: a number or a date), None if not told."""
    for value in headers.get_list("retry-after-ms"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value) / 1000
    for value in headers.get_list("retry-after"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value)
        if (seconds := _until(value.strip())) is not None:
            return seconds
    return None


def _until(date: str) -> float | None:
    """Return the seconds until an HTTP date, all three forms of RFC 9110 §5.6.7."""
    try:
        when = parsedate_to_datetime(date[:_DATE])
        when = when.replace(tzinfo=when.tzinfo or UTC)  # That of asctime has none, and means UTC.
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

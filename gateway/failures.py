"""Failures: how an upstream request can end badly, and what a page may be told of it."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from gateway.errors import UpstreamFailure
from gateway.presets import Preset
from gateway.words import message_of, said


def broken() -> UpstreamFailure:
    """Return what becomes of an answer whose connection broke."""
    return UpstreamFailure(
        "upstream_cut",
        "The connection to the upstream broke before the completion was whole.",
        state="truncated",
        retryable=True,
    )


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
    return UpstreamFailure(
        "upstream_cut",
        "The upstream took the request and closed the connection.",
        state="truncated",
        retryable=True,
    )


def refused(response: httpx.Response, body: bytes, preset: Preset) -> UpstreamFailure:
    """Tell a refusal that cannot have been paid for from one that may have been."""
    status = response.status_code
    again = status == 429 or status >= 500
    return UpstreamFailure(
        "upstream_refused",
        message_of(body, preset) or f"The upstream answered {status}.",
        state="failed",
        status=status,
        retryable=again,
        sure=again,
        retry_after=_retry_after(response.headers),
    )


def no_stream(kind: str, body: bytes, preset: Preset) -> UpstreamFailure:
    """Return what becomes of an answer that is no stream."""
    words = message_of(body, preset) if kind == "application/json" else ""
    shown = said(kind, preset) or "something without a type"
    return UpstreamFailure(
        "upstream_not_a_stream",
        words or f"The upstream answered with {shown} instead of an event stream.",
        state="failed",
        status=200,
    )


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds to wait (RFC 9110 §10.2.3: a number or a date), None if not told."""
    value = headers.get("retry-after", "").strip()
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None

"""Failures: how an upstream request can end badly, and what a page may be told of it."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from gateway.chat import decoded
from gateway.errors import UpstreamFailure
from gateway.presets import Preset

_SECRET = 8  # Characters; what is shorter is a word.
_MESSAGE = 500  # Characters of it that a page gets to see.


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
        _message(body, preset) or f"The upstream answered {status}.",
        state="failed",
        status=status,
        retryable=again,
        sure=again,
        retry_after=_retry_after(response.headers),
    )


def no_stream(kind: str, body: bytes, preset: Preset) -> UpstreamFailure:
    """Return what becomes of an answer that is no stream."""
    said = _message(body, preset) if kind == "application/json" else ""
    shown = kind or "something without a type"
    return UpstreamFailure(
        "upstream_not_a_stream",
        said or f"The upstream answered with {shown} instead of an event stream.",
        state="failed",
        status=200,
    )


def _message(body: bytes, preset: Preset) -> str:
    """Return an error body's message, bounded, and without our keys should it quote them."""
    error = decoded(body).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    if not isinstance(error, str):
        text = body.decode("utf-8", "replace").strip()
        error = "" if text.startswith("<") else text
    for secret in (preset.api_key.get_secret_value(), *preset.headers.values()):
        if len(secret) >= _SECRET:
            error = error.replace(secret, "***").replace(secret.removeprefix("Bearer "), "***")
    return error[:_MESSAGE]


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

"""Failures: how an upstream request can end badly, and what a page may be told of it."""

import httpx

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.upstream.messages import message_of, said
from gateway.upstream.protocols.error_text import may_be_answer
from gateway.upstream.protocols.table import protocol_of


def broken(error: Exception) -> UpstreamFailure:
    """Return what becomes of an answer that breaks off, or cannot be read on."""
    how = "The connection to the upstream broke before the completion was whole."
    if isinstance(error, httpx.DecodingError):
        how = "The upstream's compressed answer is corrupt, cut, or too large."
    return UpstreamFailure("upstream_cut", how, state="truncated", retryable=True)


def broken_off(words: str = "") -> UpstreamFailure:
    """Return what becomes of an answer that ended before it was whole."""
    words = words or "The upstream ended the stream before the completion was whole."
    return UpstreamFailure("upstream_cut", words, state="truncated", retryable=True)


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
    """Return what becomes of a request that was answered with no success."""
    told = protocol_of(preset).refused(preset, status, headers.multi_items(), body)
    return UpstreamFailure(
        "upstream_refused",
        said(told.words, preset) or _answered(status, headers, preset),
        state="failed",
        status=status,
        retryable=told.retryable,
        sure=told.sure,
        retry_after=told.retry_after,
    )


def _answered(status: int, headers: httpx.Headers, preset: Preset) -> str:
    words = f"The upstream answered {status}"
    where = headers.get("location", "").partition("?")[0]
    if where and 300 <= status < 400:
        words += f" and points to {said(where, preset)}; redirects are not followed"
    return words + "."


def no_stream(status: int, kinds: list[str], body: bytes, preset: Preset) -> UpstreamFailure:
    """Return what becomes of an answer that is no stream."""
    # The log has the words of a failure, and is to have none of a model.
    told = body.lstrip()[:1] in {b"{", b"["} and not may_be_answer(body)
    words = message_of(body, preset) if told else ""
    shown = said(", ".join(kinds), preset) or "something without a type"
    events = "text/event-stream" in protocol_of(preset).types
    wanted = "an event stream" if events else "lines of JSON"
    return UpstreamFailure(
        "upstream_not_a_stream",
        words or f"The upstream answered with {shown} instead of {wanted}.",
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

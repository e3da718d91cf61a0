"""Responses state: what the events of a streamed response tell. Pure.

Whole is what its last snapshot says is whole: `response.completed`, or `response.incomplete` with a
reason. `[DONE]` and the end of the body prove nothing: LiteLLM sends `[DONE]` after a failure. No
JSON is decoded but of an event whose bytes show an end or an error.
"""

import re
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols import complaints
from gateway.upstream.protocols.chat_chunks import DONE, decoded, is_whole
from gateway.upstream.protocols.reasons import reason_of
from gateway.upstream.protocols.responses_events import End, end_of, may_end
from gateway.upstream.protocols.usage import Usage

_may_fail = re.compile(
    rb'"(?:type|object|event)"\s*:\s*"error"|"errors?"\s*:\s*[^\sn]',
).search
_speaks = re.compile(rb'"(?:\w*(?:[mM]essage|msg)|errors?|detail|description|reason)"').search
_no_answer = re.compile(
    rb'"type"\s*:\s*"(?:response\.(?:created|queued|in_progress|completed|incomplete|failed|done'
    rb'|cancell?ed)|keepalive|ping|error)"'
).search
_NOTHING = frozenset({b"", b"{}", b"null", b'""'})
_SHORT = 128  # Bytes that `[DONE]` and the white space around it may have.


class ResponsesState:
    """What a streamed response has told so far."""

    choices = 1

    def __init__(self) -> None:
        self._usage = Usage()
        self.error: dict[str, Any] | None = None
        self.finished = False
        self.closed = False
        self.over = False
        self.empty = True
        self.broken_off = False
        self.finish_reason: str | None = None
        self.pieces = 0
        self._last = b""

    @property
    def usage(self) -> dict[str, Any] | None:
        """What its last snapshot told of the price."""
        return self._usage.told

    @property
    def at_rest(self) -> bool:
        """Whether it is whole: whatever else is silent may go on."""
        return self.finished

    @property
    def retryable(self) -> bool:
        """Whether asking again may mend the error."""
        return complaints.retryable(self.error or {})

    def see(self, event: Event) -> None:
        """Take note of one event."""
        data, name, _ = event
        if self.closed:
            return
        if len(data) < _SHORT and data.strip() == DONE:
            self.closed = True
            self.end(framed=True)
            return
        self.pieces += b'.delta"' in data
        typed = b'"response.' in data
        if may_end(data) or _may_fail(data) or (not typed and _speaks(data)):
            self._read(decoded(data), len(data))
        if self.empty:
            self.empty = data.strip() in _NOTHING or bool(_no_answer(data))
        if name and name.lower() in complaints.ERROR_NAMES:
            self._fail(complaints.named_complaint(decoded(data), data))
        self._last = b"" if typed else data

    def _read(self, chunk: dict[str, Any], size: int) -> None:
        end = end_of(chunk)
        if error := _error(chunk, end):
            self._fail(error)
        if end is None:
            return
        self.closed = True
        self._usage.see([chunk, end.response], size)
        if end.kind == "failed":
            self._fail({})
        elif self.error is None:
            self.finish_reason = _reason(end)
            self.broken_off = end.kind == "cancelled"
            self.finished = not self.broken_off

    def _fail(self, error: dict[str, Any]) -> None:
        if not self.finished and not self.error:
            self.error = error

    def hear(self, strays: bytes | bytearray) -> None:
        """Take note of what came outside of all events: it may be the JSON of an error."""
        if strays and not self.closed and (error := complaints.stray_complaint(strays)):
            self._fail(error)

    def suspect(self, event: Event) -> None:
        """Take an event that was cut off for an error, if it is one: it is not for anyone else."""
        chunk = decoded(event.data) if not self.closed else {}
        if error := _error(chunk, end_of(chunk)):
            self._fail(error)
        if event.name.lower() in complaints.ERROR_NAMES and is_whole(event.data):
            self._fail(complaints.named_complaint(chunk, event.data))

    def look_back(self) -> None:
        """Take the last event for an error if it looks like one: nothing came after it."""
        chunk = decoded(self._last) if self._last else {}
        if error := complaints.complaint(chunk) or complaints.last_words(chunk):
            self._fail(error)

    def end(self, *, framed: bool) -> None:
        """Take note of the end, which proves nothing but that there is no more."""
        self.look_back()
        self.over = self.over or framed

    @property
    def tokens(self) -> tuple[Any, Any]:
        """Tokens of the prompt and of the answer, estimated if need be; whatever was told."""
        usage = self.estimate() or {}
        return usage.get("input_tokens"), usage.get("output_tokens")

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, or a guess where the upstream never told it: a piece is a token."""
        if self.usage is not None or not self.pieces:
            return self.usage
        return {"output_tokens": self.pieces, "estimated": True}


def _error(chunk: dict[str, Any], end: End | None) -> dict[str, Any] | None:
    """Return the error that an event tells; that of a tool does not end the answer."""
    told = chunk.get("type")
    if end is None and isinstance(told, str) and told.startswith("response."):
        is_of_item = "." in told.removeprefix("response.")
        whole = {key: chunk.get(key) for key in ("response", "error")}
        return None if is_of_item else complaints.complaint(whole)
    return complaints.complaint(chunk)


def _reason(end: End) -> str:
    """Return why an answer ended, in the upstream's word."""
    details = end.response.get("incomplete_details")
    told = details.get("reason") if end.kind == "incomplete" and isinstance(details, dict) else None
    return reason_of(told) or end.kind

"""Responses state: what the events of a streamed response tell. Pure.

Whole is what its last snapshot says is whole: `response.completed`, or `response.incomplete` with a
reason. `[DONE]` and the end of the body prove nothing: LiteLLM sends `[DONE]` after a failure.
"""

import re
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols import complaints
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.responses_events import End, end_of, may_end
from gateway.upstream.protocols.terminal_state import TerminalState
from gateway.upstream.protocols.usage import count_in

_TYPED = b'"response.'
_may_fail = re.compile(rb'"(?:type|object|event)"\s*:\s*"error"|"errors?"\s*:\s*[^\sn]').search
_speaks = re.compile(rb'"(?:\w*(?:[mM]essage|msg)|errors?|detail|description|reason)"').search
_is_snapshot = re.compile(
    rb'"type"\s*:\s*"response\.(?:created|queued|in_progress|completed|incomplete|failed|done'
    rb'|cancell?ed)"'
).search


class ResponsesState(TerminalState):
    """What a streamed response has told so far."""

    def _tells(self, event: Event) -> bool:
        data = event.data
        if _TYPED in data:
            return may_end(data) or bool(_may_fail(data))
        return bool(_speaks(data))

    def _is_piece(self, data: bytes) -> bool:
        return b'.delta"' in data

    def _begins(self, data: bytes) -> bool:
        return _TYPED in data and not _is_snapshot(data)

    def _complaint(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Return the error that an event tells; that of a tool does not end the answer."""
        end, told = end_of(chunk), chunk.get("type")
        if end is None and isinstance(told, str) and told.startswith("response."):
            is_of_item = "." in told.removeprefix("response.")
            whole = {key: chunk.get(key) for key in ("response", "error")}
            return None if is_of_item else complaints.complaint(whole)
        error = complaints.complaint(chunk)
        return {} if error is None and end is not None and end.kind == "failed" else error

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        end = end_of(chunk)
        if end is None:
            return
        self.note_usage([chunk, end.response], len(event.data))
        if self.error is None and not self.note_reason(_reason(end)):
            self.note_reason(end.kind)
        self.finish()

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        cached = count_in(usage, "input_tokens_details.cached_tokens")
        return Tokens(count_in(usage, "input_tokens"), count_in(usage, "output_tokens"), cached)


def _reason(end: End) -> Any:
    """Return why an answer is incomplete, in the upstream's word."""
    details = end.response.get("incomplete_details") if end.kind == "incomplete" else None
    return details.get("reason") if isinstance(details, dict) else None

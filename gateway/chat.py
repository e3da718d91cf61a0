"""Chat: what the events of a streamed chat completion tell. Pure.

The bytes go to the viewers untouched. What is read from them is the end, the errors and the price,
and only from events whose bytes say that they hold one: no JSON is decoded for the rest.

The end of a connection is not the end of a completion. That is a finish reason, or `[DONE]`, which
some servers never send.
"""

import json
import re
from typing import Any

from gateway.sse import Event

DONE = b"[DONE]"
_TELLING = re.compile(rb'"(?:finish_reason|usage|error)"\s*:\s*[^\sn]')


class Reading:
    """What a streamed chat completion has told so far."""

    def __init__(self, choices: int = 1) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.closed = False
        self.pieces = 0
        self._choices = choices
        self._finished: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether the upstream said that the completion is whole."""
        return self.error is None and (self.closed or len(self._finished) >= self._choices)

    def see(self, event: Event) -> None:
        """Take note of one event."""
        data = event.data
        if data == DONE:
            self.closed = True
            return
        self.pieces += b'"content"' in data
        if _TELLING.search(data):
            self._read(decoded(data))

    def _read(self, chunk: dict[str, Any]) -> None:
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in _choices_of(chunk):
            reason, index = choice.get("finish_reason"), choice.get("index", 0)
            if reason and isinstance(index, int):
                if reason == "error":  # Some say so instead of, or beside, an error object.
                    self._fail(choice.get("error") or chunk.get("error") or {})
                self._finished.add(index)
                if index == 0:
                    self.finish_reason = str(reason)
        if chunk.get("error"):
            self._fail(chunk["error"])

    def _fail(self, error: Any) -> None:
        if not self.finished:  # After a clean finish nothing can undo it.
            self.error = error if isinstance(error, dict) else {"message": str(error)}

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, or a guess where the upstream never told it: a piece is a token."""
        if self.usage is not None or not self.pieces:
            return self.usage
        return {"completion_tokens": self.pieces, "estimated": True}


def text_of(data: bytes) -> str:
    """Return the text that an event adds to choice 0; "" for anything else."""
    if b'"content"' not in data:
        return ""
    for choice in _choices_of(decoded(data)):
        delta = choice.get("delta")
        if choice.get("index", 0) == 0 and isinstance(delta, dict):
            content = delta.get("content")
            return content if isinstance(content, str) else ""
    return ""


def decoded(data: bytes) -> dict[str, Any]:
    """Return a JSON object, {} for whatever else the bytes are."""
    try:
        chunk = json.loads(data, parse_constant=lambda _: None)  # NaN would not be JSON for a page.
    except (ValueError, RecursionError):
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _choices_of(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def choices_of(request: bytes) -> int:
    """Return how many choices a completion request asks for."""
    wanted = json.loads(request or b"{}").get("n")
    return wanted if isinstance(wanted, int) and wanted > 0 else 1

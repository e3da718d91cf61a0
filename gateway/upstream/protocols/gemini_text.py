"""Gemini text: the text of generated content, event by event. Pure."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded, written
from gateway.upstream.protocols.gemini_state import candidates_of, parts_of

_LOOKED_AT = 200  # Events in which the first candidate is looked for.


class GeminiText:
    """The text of candidate 0, or of the lowest where none has that number."""

    def __init__(self, index: int | None = None) -> None:
        self.anew = False  # Whether the last text begins it anew: that before was of another one.
        self._index = index  # The lowest seen so far.

    @property
    def index(self) -> int | None:
        """The number of the one that speaks, None where nobody has."""
        return self._index

    @classmethod
    def after(cls, events: Iterable[Event], choices: int = 1) -> "GeminiText":
        """Return the one that speaks in a stream which began with these events."""
        text = cls(0 if choices > 1 else None)
        for event in islice(events, _LOOKED_AT):
            if text._index == 0:
                break
            text._look(decoded(event.data))
        return text

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds; thoughts and calls of functions are none."""
        self.anew = False
        if self._index == 0 and b'"text"' not in event.data:
            return ""
        candidates = self._look(decoded(event.data))
        return "".join([_text(each) for index, each in candidates if index == self._index])

    def _look(self, chunk: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        candidates = candidates_of(chunk)
        lowest = min((index for index, _ in candidates), default=self._index)
        if lowest is not None and (self._index is None or lowest < self._index):
            self.anew, self._index = self._index is not None, lowest
        return candidates


def said_in(chunk: dict[str, Any]) -> list[str]:
    """Return all that an event has of each candidate, thoughts and calls too."""
    return ["".join(map(_said, parts_of(candidate))) for _, candidate in candidates_of(chunk)]


def _said(part: dict[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else written(part.get("functionCall"))


def _text(candidate: dict[str, Any]) -> str:
    spoken = [part.get("text") for part in parts_of(candidate) if part.get("thought") is not True]
    return "".join([text for text in spoken if isinstance(text, str)])

"""Gemini readings: what the parts of generated content say. Pure."""

from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.gemini_state import candidates_of, parts_of
from gateway.upstream.protocols.gemini_text import GeminiText
from gateway.upstream.protocols.readings import (
    Called,
    Reading,
    Said,
    Thought,
    objects,
    source_in,
    string,
    whole_call,
)


class GeminiReadings:
    """The candidate whose text is the answer's."""

    def __init__(self) -> None:
        self._text = GeminiText()
        self._calls = 0

    def of(self, event: Event) -> list[Reading]:
        """Return what the parts of an event say, in their order, and the pages they go back to."""
        self._text.text_of(event)
        found: list[Reading] = []
        for index, candidate in candidates_of(decoded(event.data)):
            if index == self._text.index:
                for part in parts_of(candidate):
                    found += self._part(part, index)
                found += _sources(candidate.get("groundingMetadata"))
        return found

    def _part(self, part: dict[str, Any], index: int) -> list[Reading]:
        call = part.get("functionCall")
        if isinstance(call, dict):
            key, self._calls = self._calls, self._calls + 1
            called = Called(key, string(call.get("name")), string(call.get("id")))
            signature = string(part.get("thoughtSignature"))
            noted = {"google": {"thoughtSignature": signature}} if signature else {}
            return whole_call(key, called, call.get("args"), noted)
        text = string(part.get("text"))
        if not text:
            return []
        return [Thought(text, index) if part.get("thought") is True else Said(text, index)]


def _sources(grounds: Any) -> list[Reading]:
    chunks = objects(grounds.get("groundingChunks")) if isinstance(grounds, dict) else []
    return [source for each in chunks for source in source_in(each.get("web"), "uri")]

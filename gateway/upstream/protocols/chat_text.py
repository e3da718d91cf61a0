"""Chat text: the text of a streamed chat completion, event by event. Pure."""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import choices_of, decoded

_TEXT = re.compile(rb'"(?:content|text|refusal|response)"')
_TEXTS = frozenset({"text", "output_text", "refusal"})
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LOOKED_AT = 200  # Events in which a choice 0 is looked for.


class ChatText:
    """Whose text the answer is: that of choice 0, or of the lowest where none has that number."""

    def __init__(self, index: int | None = None) -> None:
        self.anew = False  # Whether the last text begins it anew: that before was of another one.
        self._index = index  # The lowest seen so far.
        self._has_deltas = False

    @property
    def index(self) -> int | None:
        """The number of the one that speaks, None where nobody has."""
        return self._index

    @classmethod
    def after(cls, events: Iterable[Event], choices: int = 1) -> "ChatText":
        """Return the one that speaks in a stream which began with these events."""
        text = cls(0 if choices > 1 else None)
        for event in islice(events, _LOOKED_AT):
            if text._index == 0 and text._has_deltas:
                break
            text._look(decoded(event.data))
        return text

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds to the answer; "" for anything else."""
        self.anew = False
        if self._index == 0 and not _TEXT.search(event.data):
            return ""
        chunk = decoded(event.data)
        if "choices" not in chunk:
            return _string(chunk.get("response"))  # Workers AI.
        choices = self._look(chunk)
        return "".join([self._text(choice) for index, choice in choices if index == self._index])

    def _look(self, chunk: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        choices = choices_of(chunk)
        lowest = min((index for index, _ in choices), default=self._index)
        if lowest is not None and (self._index is None or lowest < self._index):
            self.anew, self._index = self._index is not None, lowest
        self._has_deltas |= any(isinstance(choice.get("delta"), dict) for _, choice in choices)
        return choices

    def _text(self, choice: dict[str, Any]) -> str:
        text = _said(choice.get("delta")) or _string(choice.get("text"))
        # Beside or after deltas a message repeats what they said.
        return text if text or self._has_deltas else _said(choice.get("message"))


def said_in(chunk: dict[str, Any]) -> list[str]:
    """Return all that an event has of each choice, thoughts and calls too."""
    if "choices" not in chunk:
        return [_string(chunk.get("response"))]
    return [_generated(choice) for _, choice in choices_of(chunk)]


def _generated(choice: dict[str, Any]) -> str:
    message = choice.get("delta") or choice.get("message")
    if not isinstance(message, dict):
        return _string(choice.get("text"))
    # Servers that have two names for thoughts send them under both.
    thoughts = next(filter(None, [_string(message.get(name)) for name in _THOUGHTS]), "")
    return thoughts + _said(message) + _called(message) or _string(choice.get("text"))


def _called(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    functions = [each.get("function") for each in calls if isinstance(each, dict)]
    functions.append(message.get("function_call"))
    told = [each for each in functions if isinstance(each, dict)]
    return "".join([_string(each.get(name)) for each in told for name in ("name", "arguments")])


def _said(message: Any) -> str:
    """Return the text of a delta or a message; a refusal is one."""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    if not isinstance(content, str):
        parts = content if isinstance(content, list) else [content]
        content = "".join(map(_part, parts))
    return content + _string(message.get("refusal"))


def _part(part: Any) -> str:
    """Return the text of a part that is one, and no thought, image or call."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or str(part.get("type", "text")) not in _TEXTS:
        return ""
    return _string(part.get("text")) or _string(part.get("refusal"))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""

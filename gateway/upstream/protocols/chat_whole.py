"""Chat whole: the chunks of a streamed chat completion as the one object that they are of. Pure.

What a member is, is not known beforehand: servers have many of their own. So they are merged as
OpenAI's own SDKs do it: texts are joined, lists by the `index` of their parts, and of anything else
the last one counts.
"""

from collections.abc import Mapping
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import choices_of, decoded

_SAID_ONCE = frozenset({"id", "type", "role", "name", "status"})  # Texts that some tell each time.
_OF_CHUNKS = frozenset({"choices", "obfuscation", "object"})
_MOST = 1000  # Choices.
_DEEP = 64  # Objects in objects that are merged: servers stream pieces of some two or three.


class ChatWhole:
    """A chat completion, from chunks."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._messages: dict[int, _Merged] = {}

    def see(self, event: Event) -> None:
        """Take note of one chunk."""
        chunk = decoded(event.data)
        for name, value in chunk.items():
            if name not in _OF_CHUNKS and (value is not None or name not in self._head):
                self._head[name] = value
        for index, choice in choices_of(chunk):
            if index in self._choices or len(self._choices) < _MOST:
                self._note(index, choice)

    def answer(self) -> dict[str, Any]:
        """Return the completion."""
        choices = []
        for index in sorted(self._choices):
            told = dict(self._choices[index])
            reason = told.pop("finish_reason", None)
            message = _message(self._messages[index].value())
            choices.append({"index": index, "message": message, **told, "finish_reason": reason})
        return {**self._head, "object": "chat.completion", "choices": choices}

    def _note(self, index: int, choice: dict[str, Any]) -> None:
        known = self._choices.setdefault(index, {"logprobs": None})
        message = self._messages.setdefault(index, _Merged())
        for name, value in choice.items():
            if name == "logprobs" and isinstance(value, dict):
                known[name] = _with(known[name] or {}, value)
            elif name not in ("index", "delta", "message") and value is not None:
                known[name] = value
        said = choice.get("delta")
        if isinstance(said, dict):
            message.add(said)
        elif isinstance(whole := choice.get("message"), dict) and message.empty:
            message.add(whole)  # Beside or after deltas it would repeat them.


class _Merged:
    """An object of which each part is a piece; texts are joined once, at the end."""

    def __init__(self, left: int = _DEEP) -> None:
        self._parts: dict[str, Any] = {}
        self._left = left

    @property
    def empty(self) -> bool:
        return not self._parts

    def add(self, piece: Mapping[str, Any]) -> None:
        for name, value in piece.items():
            if value is None:
                self._parts.setdefault(name, None)
            elif isinstance(value, str) and name not in _SAID_ONCE:
                self._texts(name).append(value)
            elif isinstance(value, dict) and self._left:
                self._part(name, _Merged).add(value)
            elif isinstance(value, list) and self._left:
                self._part(name, _List).add(value)
            else:
                self._parts[name] = value

    def _texts(self, name: str) -> list[str]:
        known = self._parts.get(name)
        if isinstance(known, _List):
            return known.texts()  # Mistral tells thoughts as parts, and what follows as text.
        if not isinstance(known, _Text):
            known = self._parts[name] = _Text()
        return known

    def _part(self, name: str, kind: Any) -> Any:
        known = self._parts.get(name)
        if isinstance(known, _Text) and kind is _List:
            before, known = known, _List(self._left - 1)
            known.texts().extend(before)
        elif not isinstance(known, kind):
            known = kind(self._left - 1)
        self._parts[name] = known
        return known

    def value(self) -> dict[str, Any]:
        return {name: _value(part) for name, part in self._parts.items()}


class _Text(list[str]):
    """The pieces of a text."""

    def value(self) -> str:
        return "".join(self)


class _List:
    """The parts of a list, those with an `index` each in its place."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._parts: list[Any] = []
        self._places: dict[int, _Merged] = {}

    def add(self, pieces: list[Any]) -> None:
        for piece in pieces:
            index = piece.get("index") if isinstance(piece, dict) else None
            if not isinstance(index, int):
                self._parts.append(piece)
                continue
            if index not in self._places:
                self._places[index] = _Merged(self._left)
                self._parts.append(self._places[index])
            self._places[index].add({k: v for k, v in piece.items() if k != "index"})

    def texts(self) -> list[str]:
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _TextPart):
            last = _TextPart()
            self._parts.append(last)
        return last

    def value(self) -> list[Any]:
        return [_value(part) for part in self._parts]


class _TextPart(list[str]):
    """The pieces of a text that is one part among others."""

    def value(self) -> dict[str, str]:
        return {"type": "text", "text": "".join(self)}


def _value(part: Any) -> Any:
    return part.value() if isinstance(part, (_Merged, _Text, _TextPart, _List)) else part


def _with(known: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return lists with what follows them; of anything else the last that is something."""
    joined = dict(known)
    for name, value in more.items():
        before = joined.get(name)
        if isinstance(before, list) and isinstance(value, list):
            before.extend(value)
        elif value is not None or name not in joined:
            joined[name] = list(value) if isinstance(value, list) else value
    return joined


def _message(said: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, **said}
    if message.get("tool_calls") and not message["content"]:
        message["content"] = None  # As it is where nothing is streamed.
    return message

"""Messages: what a page of the AI SDK sends, as a conversation. Pure.

What has no meaning to a model is left out, as the SDK's own conversion does: steps, `data-*` parts
and sources. What has one, and cannot be sent on, is refused by its name.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gateway.errors import Rejected
from gateway.upstream.protocols.conversation import (
    Mused,
    Part,
    Picture,
    Result,
    Turn,
    Use,
    Words,
)
from gateway.upstream.protocols.readings import Noted

OWN = frozenset({"id", "messages", "trigger", "messageId"})  # What the transport itself sends.

_LONGEST = 200  # Characters of an id.
_MOST = 10_000  # Messages and parts: while they are read nobody's stream goes on.
_SILENT = ("step-start", "source-url", "source-document")
_TRIGGERS = ("submit-message", "regenerate-message")
_DENIED = "The user denied this."


class ChatRequest(NamedTuple):
    """One POST of a chat."""

    chat_id: str
    turns: list[Turn]
    anew: bool  # Whether an answer is to be made again.
    continued: str  # The message that the answer goes on with, "" for one of its own.


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """Return what a body asks for; raises Rejected."""
    chat_id, trigger = body.get("id"), body.get("trigger", _TRIGGERS[0])
    if not isinstance(chat_id, str) or not usable(chat_id):
        raise Rejected("bad_chat", f'"id" takes 1 to {_LONGEST} printable characters, no "/".')
    if trigger not in _TRIGGERS:
        raise Rejected("bad_chat", f'"trigger" is one of: {", ".join(_TRIGGERS)}.')
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise Rejected("bad_chat", '"messages" is a list of UI messages.')
    if sum(1 + _count(each.get("parts")) for each in messages) > _MOST:
        raise Rejected("bad_chat", f"Its messages and their parts are more than {_MOST}.")
    turns = [turn for at, each in enumerate(messages) for turn in _turns(f"messages[{at}]", each)]
    if not turns:
        raise Rejected("bad_chat", "Its messages say nothing.")
    anew = trigger != _TRIGGERS[0]
    return ChatRequest(chat_id, turns, anew, "" if anew else _continued(messages[-1]))


def _continued(last: dict[str, Any]) -> str:
    """Return which message an answer goes on with, "" if with none; raises Rejected."""
    message_id = last.get("id")
    if last.get("role") != "assistant" or not isinstance(message_id, str):
        return ""
    if len(message_id) > _LONGEST or not message_id.isprintable():  # It is kept.
        raise Rejected("bad_chat", f'The last "id" takes up to {_LONGEST} printable characters.')
    return message_id


def usable(chat_id: str) -> bool:
    """Whether an id can be a part of a path."""
    named = chat_id.isprintable() and "/" not in chat_id and chat_id not in (".", "..")
    return named and 1 <= len(chat_id) <= _LONGEST


def _turns(where: str, message: dict[str, Any]) -> Iterator[Turn]:
    role, parts = message.get("role"), message.get("parts")
    if not isinstance(parts, list) or not all(_kind(each) for each in parts):
        raise Rejected("bad_chat", f'"{where}.parts" is a list of parts, each with its type.')
    if role == "assistant":
        yield from _answer(where, parts)
    elif role in ("system", "user"):
        said = [
            told
            for at, each in enumerate(parts)
            if (told := _part(f"{where}.parts[{at}]", each, of_user=role == "user"))
        ]
        if said:
            yield Turn(role, said)
    else:
        raise Rejected("bad_chat", f'"{where}.role" is user, assistant or system.')


def _count(parts: Any) -> int:
    return len(parts) if isinstance(parts, list) else 0


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _answer(where: str, parts: list[dict[str, Any]]) -> Iterator[Turn]:
    """Yield what the model said, step by step, and after each what its tools gave."""
    said: list[Part] = []
    results: list[Part] = []
    for at, part in enumerate([*parts, {"type": "step-start"}]):
        kind = _kind(part)
        if kind == "step-start":
            if said:
                yield Turn("assistant", said)
            if results:
                yield Turn("tool", results)
            said, results = [], []
        elif kind == "dynamic-tool" or kind.startswith("tool-"):
            _note_call(f"{where}.parts[{at}]", part, said, results)
        elif told := _part(f"{where}.parts[{at}]", part, of_user=False):
            said.append(told)


def _part(where: str, part: dict[str, Any], *, of_user: bool) -> Part | None:
    """Return a part that a model can be told, None for one that is not for it; raises Rejected."""
    kind = _kind(part)
    if kind in _SILENT or kind.startswith("data-"):
        return None
    if kind in ("text", "reasoning"):
        text = part.get("text")
        if not isinstance(text, str):
            raise Rejected("bad_chat", f'"{where}.text" is a string.')
        if kind == "reasoning":
            return Mused(text, _noted(part.get("providerMetadata")))
        return Words(text) if text else None
    if kind == "file" and of_user:
        return _picture(where, part)
    raise Rejected("part_not_supported", f'"{where}" is a "{kind[:60]}".')


def _picture(where: str, part: dict[str, Any]) -> Picture:
    media_type, url = str(part.get("mediaType")), str(part.get("url"))
    told = Picture(media_type, url)
    shown = url.startswith(("http://", "https://")) or told.data
    if not (media_type.startswith("image/") and shown):
        words = f'"{where}" is a "file" of {media_type[:60]!r}: images are sent on, by data or URL.'
        raise Rejected("part_not_supported", words)
    return told


def _note_call(where: str, part: dict[str, Any], said: list[Part], results: list[Part]) -> None:
    """Note a call of a tool, and what it came to, if it has; raises Rejected."""
    state, call_id = part.get("state"), part.get("toolCallId")
    kind = _kind(part)
    name = part.get("toolName") if kind == "dynamic-tool" else kind.removeprefix("tool-")
    if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(state, str):
        raise Rejected("bad_chat", f'"{where}" has a toolCallId, a name and a state.')
    if state == "input-streaming" or part.get("providerExecuted"):
        return  # It was never whole, or its provider knows of it.
    given = part.get("input", part.get("rawInput"))
    said.append(Use(call_id, name, given, _noted(part.get("callProviderMetadata"))))
    told = part.get("approval")
    approval: dict[str, Any] = told if isinstance(told, dict) else {}
    if state == "output-available":
        results.append(Result(call_id, name, part.get("output")))
    elif state == "output-error":
        results.append(Result(call_id, name, str(part.get("errorText")), failed=True))
    elif approval.get("approved") is False:
        reason = str(approval.get("reason") or _DENIED)
        results.append(Result(call_id, name, reason, failed=True))


def _noted(value: Any) -> Noted:
    if not isinstance(value, dict):
        return {}
    return {name: each for name, each in value.items() if isinstance(each, dict)}

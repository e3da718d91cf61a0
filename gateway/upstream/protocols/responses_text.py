"""Responses text: the text of a streamed response, event by event. Pure.

An answer's text comes in pieces, and once more whole with the end of each part, of each item and of
the response. What has come in smaller pieces is no text where it is repeated in a larger one; a
server that sends only the larger ones is read from these.
"""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded

_speaks = re.compile(
    rb'"type"\s*:\s*"response\.(?:((?:output_text|refusal)\.delta)|((?:output_text|refusal)\.done)'
    rb'|(content_part\.done)|(output_item\.done)|(completed|incomplete|failed|cancell?ed|done))"'
).search
_DELTA, _TEXT, _PART, _ITEM, _RESPONSE = range(1, 6)  # The groups of that, from small to large.
_LOOKED_AT = 10_000  # Events in which the smallest pieces are looked for.


class ResponsesText:
    """The output text, and a refusal, of all messages in order; no thoughts and no calls."""

    def __init__(self, begun: Iterable[Event] = ()) -> None:
        self.anew = False
        self._size = _RESPONSE  # The smallest pieces in which text has come.
        for event in islice(begun, _LOOKED_AT):
            if self._size == _DELTA:
                break
            self.text_of(event)

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds to the answer; "" for anything else."""
        found = _speaks(event.data)
        size = found.lastindex if found else None
        if size is None or size > self._size:
            return ""
        text = _text(decoded(event.data), size)
        if text:
            self._size = size
        return text


def said_in(chunk: dict[str, Any]) -> list[str]:
    """Return what an event adds to what was generated: thoughts and calls too, but no sound."""
    kind = chunk.get("type")
    of_text = isinstance(kind, str) and kind.endswith(".delta") and not kind.endswith("audio.delta")
    return [_string(chunk.get("delta"))] if of_text else []


def _text(chunk: dict[str, Any], size: int) -> str:
    if size == _DELTA:
        return _string(chunk.get("delta"))
    if size == _TEXT:
        return _string(chunk.get("text")) or _string(chunk.get("refusal"))
    if size == _PART:
        return _part(chunk.get("part"))
    if size == _ITEM:
        return _item(chunk.get("item"))
    whole = chunk.get("response")
    return "".join(map(_item, _list(whole.get("output")))) if isinstance(whole, dict) else ""


def _item(item: Any) -> str:
    if not isinstance(item, dict) or item.get("type") != "message":
        return ""
    content = item.get("content")
    return content if isinstance(content, str) else "".join(map(_part, _list(content)))


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("output_text", "text", "refusal"):
        return ""
    return _string(part.get("refusal" if kind == "refusal" else "text"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""

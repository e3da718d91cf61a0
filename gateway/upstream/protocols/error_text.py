"""Error text: the words in an upstream's error of any shape, as they came. Pure.

They may quote our keys: whoever shows them takes those out first, see `upstream.messages`.
"""

import json
from typing import Any

from gateway.sse import FRAMES, parse

_DEPTH = 6  # Objects in objects.
_NAMES = ("error", "message", "detail", "msg", "errors", "error_description")
_ANSWERS = frozenset(("choices", "candidates", "output", "content", "response", "done"))


def words_of(body: bytes) -> str:
    """Return the words of a refusal's body: its message, or as it is; "" if it is a web page."""
    body = body.removeprefix(b"\xef\xbb\xbf").lstrip()
    if body.startswith(FRAMES):  # As one that fails after it has decided to stream.
        body = b"\n".join([event.data for event in parse(body + b"\n\n")])
    elif body.startswith(b"<"):
        return ""
    words = words_in(_value(body))
    return body.decode("utf-8", "replace") if words is None else words


def may_be_answer(body: bytes) -> bool:
    """Return whether JSON may have what a model wrote: it has, or cannot be read to its end."""
    value = _value(body)
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return value is None
    return not first.get("error") and not _ANSWERS.isdisjoint(first)


def _value(body: bytes) -> Any:
    """Return the JSON value that a body, or its first line, is; None if it is none."""
    for each in (body, body.partition(b"\n")[0]):
        try:
            return json.loads(each)
        except (ValueError, RecursionError):
            continue
    return None


def words_in(value: Any, depth: int = _DEPTH) -> str | None:
    """Return the words of an error, None if nothing in it looks like any."""
    if isinstance(value, str):
        return value
    if not depth or not isinstance(value, (dict, list)):
        return None
    inner = value if isinstance(value, list) else [value.get(name) for name in _NAMES]
    words = [words for each in inner if (words := words_in(each, depth - 1)) is not None]
    return next((each for each in words if each), words[0] if words else None)

"""Events of a streamed response: which one ends it, their numbers, what echoes a prompt. Pure.

What an event is stands in its data as `type`: some servers name none, or only some of them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gateway.sse import Event
from gateway.upstream.protocols.base import NONE
from gateway.upstream.protocols.chat_chunks import DONE, decoded

ECHOED = frozenset({"instructions", "input", "input_messages", "prompt"})  # In a snapshot.

_CANCELLED = ("cancelled", "canceled")
_ENDS = ("completed", "incomplete", "failed", *_CANCELLED, "done")
_KIND = r"response\.(?:completed|incomplete|failed|cancell?ed|done)"
_may_end = re.compile(rf'"type"\s*:\s*"{_KIND}"|"status"\s*:\s*"cancell?ed"'.encode()).search
_type = re.compile(rb'"type"\s*:\s*"response\.([a-z_.]*)"')
_named = re.compile(rf"(?:^|\n)event: ?{_KIND}(?:\n|$)".encode()).search
_has_snapshot = re.compile(rb'"response"\s*:\s*\{').search
_HEAD = 1024  # Bytes at either end of a large event in which its type is looked for.

_numbers = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})(?![\d.eE])').findall
_ID = re.compile("[A-Za-z0-9_=-][A-Za-z0-9_.=-]{0,999}")  # It goes into a URL, as it is.

# A name may be written with escapes, which hides it from who looks at bytes.
_may_echo = re.compile(rb'"(?:response|instructions)"\s*:|\\u00[2-7]').search
_SPACE = re.compile(r"[ \t\n\r]*")
_MARK = re.compile(r"[ \t\n\r]*([:,}])[ \t\n\r]*")
# Only where a value ends is of interest, not which number it is: Python reads none of any length.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


class End(NamedTuple):
    """How an answer ends, as `completed`, `incomplete`, `failed` or `cancelled`; its snapshot."""

    kind: str
    response: dict[str, Any]


def may_end(data: bytes) -> bool:
    """Whether an event's bytes show what one has that ends an answer."""
    return bool(_may_end(data))


def end_of(chunk: dict[str, Any]) -> End | None:
    """Return how an answer ends by an event, None if it goes on."""
    told = chunk.get("type")
    if not isinstance(told, str) or not told.startswith("response."):
        return None
    kind = told.removeprefix("response.")
    whole = chunk.get("response")
    response = whole if isinstance(whole, dict) else {}
    status = response.get("status")
    if status in _CANCELLED or kind in _CANCELLED:  # No event of its own is known to tell it.
        return End("cancelled", response)
    if kind not in _ENDS:
        return None
    if kind != "failed" and status in ("failed", "incomplete"):
        kind = str(status)
    return End("completed" if kind == "done" else kind, response)


def snapshot_in(data: bytes) -> bool:
    """Whether an event has the response as it is by then."""
    return bool(_has_snapshot(data)) and bool(_type.search(data))


def closes(data: bytes) -> bool:
    """Whether nothing after this event is of the answer."""
    return data.strip() == DONE or (may_end(data) and end_of(decoded(data)) is not None)


def is_large(block: bytes, whole: bool) -> bool:
    """Whether a block, or one that begins so, is the end of an answer: it repeats all of it."""
    if found := _type.search(block[:_HEAD]):
        return found[1].decode() in _ENDS
    if _named(block[:_HEAD]):
        return True
    if not whole:
        return bool(_has_snapshot(block))  # Some have their type after it.
    types = _type.findall(block[-_HEAD:])
    return bool(types) and types[-1].decode() in _ENDS


def number_of(data: bytes) -> int | None:
    """Return the number of an event, None if it has none."""
    found = _numbers(data)
    if len(found) < 2:
        return int(found[0]) if found else None
    number = decoded(data).get("sequence_number")
    return number if type(number) is int and 0 <= number < 1 << 53 else None


def is_logged(data: bytes, last: int) -> bool:
    """Whether an event is one up to the number `last`; an error is not, as it may count anew."""
    number = number_of(data)
    return number is not None and number <= last and bool(_type.search(data))


def id_in(seen: Iterable[Event]) -> str:
    """Return the id of an answer that began with these events, "" if none can be in a URL."""
    return next(filter(None, map(_id, seen)), "")


def place_in(seen: Iterable[Event]) -> tuple[str, int] | None:
    """Return an answer's id and the number of its last event; None if they are not numbered up."""
    name, last = "", NONE
    for event in seen:
        if not _type.search(event.data):
            continue
        number = number_of(event.data)
        if number is None or number <= last:
            return None
        name, last = name or _id(event), number
    return (name, last) if name else None


def _id(event: Event) -> str:
    whole = decoded(event.data).get("response") if _has_snapshot(event.data) else None
    name = whole.get("id") if isinstance(whole, dict) else None
    return name if isinstance(name, str) and _ID.fullmatch(name) else ""


def without_echo(data: bytes) -> bytes:
    """Return an event's data with null for what its snapshot has of a prompt, else as they are.

    Of data that may have some and cannot be read nothing is left but `null`.
    """
    if not _may_echo(data):
        return data
    text = data.decode("utf-8", "surrogateescape")
    try:
        spans = list(_echoes(text))
    except (ValueError, RecursionError):
        return b"null"
    for start, end in reversed(spans):
        text = f"{text[:start]}null{text[end:]}"
    return text.encode("utf-8", "surrogateescape") if spans else data


def _echoes(text: str) -> Iterator[tuple[int, int]]:
    """Yield where in an event the values are that echo a prompt; raises ValueError."""
    for name, start, end in _members(text, 0):
        if name == "instructions":
            yield start, end
        elif name == "response" and text[start] == "{":
            for inner, first, last in _members(text, start):
                if inner in ECHOED and text[first:last] != "null":
                    yield first, last


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of the value of each member; raises ValueError."""
    opened = _SPACE.match(text, at)
    at = opened.end() if opened else at
    if text[at : at + 1] != "{":
        raise ValueError("not an object")
    first = _SPACE.match(text, at + 1)
    at = first.end() if first else at
    mark = text[at : at + 1]
    while mark != "}":
        name, at = _DECODER.raw_decode(text, at)
        mark, start = _mark(text, at)
        _, end = _DECODER.raw_decode(text, start)
        if mark != ":" or not isinstance(name, str):
            raise ValueError("not a member")
        yield name, start, end
        mark, at = _mark(text, end)


def _mark(text: str, at: int) -> tuple[str, int]:
    found = _MARK.match(text, at)
    if found is None:
        raise ValueError("no JSON")
    return found[1], found.end()

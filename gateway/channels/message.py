"""Message: what may be pushed to a user's channel, as one event of a stream. Pure."""

import hashlib
import json
import re
from typing import Any, NamedTuple

from gateway.errors import Rejected
from gateway.sse import OURS, RESERVED, lines

MEMBERS = frozenset(("event", "data", "message_id", "ttl"))

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,99}")
# What the gateway says itself on any stream, now or later.
_KEPT = OURS | RESERVED | {b"retry"}
_LONGEST = 255


class Bounds(NamedTuple):
    """The most bytes of a message's data, and the longest that one is kept, in seconds."""

    size: int
    ttl: float


class Message(NamedTuple):
    """A message as it is stored: an event without its id; `ttl` is in seconds."""

    lines: bytes
    ttl: float
    message_id: str = ""

    @property
    def digest(self) -> str:
        """What two have in common that say the same."""
        return hashlib.sha256(self.lines).hexdigest()[:32]

    @classmethod
    def of(cls, event: Any, text: str, message_id: Any, ttl: Any, bounds: Bounds) -> "Message":
        """Return a message; `text` is its data. Raises Rejected."""
        name = _name(event)
        # No line of an event can hold a carriage return: a browser takes it for the line's end.
        data = text.replace("\r\n", "\n").replace("\r", "\n")
        try:
            coded = data.encode()
        except UnicodeEncodeError:
            raise Rejected("bad_data", "It has half of a surrogate pair.") from None
        if len(coded) > bounds.size:
            raise Rejected("event_too_large", f"The limit is {bounds.size} bytes.")
        return cls(lines(coded, name), _ttl(ttl, bounds.ttl), _message_id(message_id))


def text_of(data: Any) -> str:
    """Return the text of data that a program gives: a string, or JSON; raises Rejected."""
    if isinstance(data, str):
        return data
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected("bad_data", str(error)[:200]) from None


def _name(event: Any) -> bytes:
    if event is None:
        return b""
    if not isinstance(event, str) or not _NAME.fullmatch(event) or event.encode() in _KEPT:
        told = "It is a letter or _, then up to 99 letters, digits, _ . : -, and no name of ours."
        raise Rejected("bad_event", told)
    return event.encode()


def _message_id(given: Any) -> str:
    if given is None:
        return ""
    if not isinstance(given, str) or not 0 < len(given) <= _LONGEST or not given.isprintable():
        raise Rejected("bad_message_id", f"It has 1 to {_LONGEST} printable characters.")
    return given


def _ttl(given: Any, most: float) -> float:
    if given is None:
        return most
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or not 0 < given <= most:
        raise Rejected("bad_ttl", f"It is in seconds, above 0, and {most:g} at most.")
    return float(given)

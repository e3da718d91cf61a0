"""Events: an event stream's bytes read as a browser reads them (WHATWG HTML §9.2), and its grammar.

Data is kept byte for byte: what is no UTF-8 becomes surrogates, never a replacement character.
"""

import re
from typing import NamedTuple

OURS = frozenset({"failure", "reset", "gap", "end"})
RESERVED = frozenset({"open", "message", "error", "abort", "readystatechange"})

_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_ID = re.compile(rb"(%b)-(%b)" % (_NUMBER, _NUMBER))
_RETRY = re.compile(rb"\Aretry: [1-9][0-9]*\n")
_HEARTBEAT = b":\n"
_BLOCK = re.compile(
    rb"(?:event: [^\r\n\0]+\n)?(?:data: [^\r\n]*\n)+id: %b-%b\n\n" % (_NUMBER, _NUMBER)
)


class Event(NamedTuple):
    """One event as a page gets it; an empty name is `message`."""

    name: str
    data: str
    id: str


class Parser:
    """Bytes in, events out, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        self._rest += chunk
        held = b"\r" if self._rest.endswith(b"\r") else b""  # It may be half a CRLF.
        text = self._rest.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = text.split(b"\n\n")
        self._rest = rest + held
        return [event for block in blocks if (event := _event(block)) is not None]


def _event(block: bytes) -> Event | None:
    data: list[bytes] = []
    name = event_id = b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id":
            event_id = value
    if not data:
        return None
    return Event(_text(name), _text(b"\n".join(data)), _text(event_id))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def bare(raw: bytes) -> bytes:
    """Return a stream without what differs between two viewers: `retry:` and heartbeats."""
    rest = _RETRY.sub(b"", raw, count=1)
    parts: list[bytes] = []
    while rest:
        if rest.startswith(_HEARTBEAT):
            rest = rest.removeprefix(_HEARTBEAT)
            continue
        block, blank, rest = rest.partition(b"\n\n")
        parts.append(block + blank)
    return b"".join(parts)


def misframed(raw: bytes) -> str:
    """Return the first place of a whole stream that is not of the grammar, "" if there is none."""
    if not _RETRY.match(raw):
        return f"it does not begin with a retry line: {raw[:80]!r}"
    rest = bare(raw)
    at = 0
    while at < len(rest):
        block = _BLOCK.match(rest, at)
        if block is None:
            return f"this is no block: {rest[at : at + 120]!r}"
        at = block.end()
    return ""


def place(event_id: str) -> tuple[int, int]:
    """Return an id's epoch and number; raises ValueError."""
    found = _ID.fullmatch(event_id.encode("utf-8", "surrogateescape"))
    if found is None:
        raise ValueError(f"{event_id!r} is not <epoch>-<seq>")
    return int(found[1]), int(found[2])

"""Server-sent events as bytes: Event, encode, and an incremental Parser.

Pure: no I/O and no clock. The format is WHATWG HTML §9.2 "Server-sent events". Data is kept byte
for byte and never decoded, so what an upstream sent is what a viewer gets.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

HEARTBEAT = b":\n"  # No blank line after it: some clients turn an empty block into an event.
HEARTBEAT_EVENT = b"event: heartbeat\ndata: {}\n\n"  # Without an id: the reader's own stays.
OURS = frozenset({b"failure", b"reset", b"gap", b"end"})
RESERVED = frozenset(
    {b"open", b"message", b"error", b"abort", b"readystatechange", b"snapshot", b"heartbeat"}
)
FRAMES = (b"data:", b"event:", b"id:", b"retry:", b":")  # What a stream can begin with.

_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({b"data", b"event", b"id", b"retry", b""})
_NAME = 200  # Bytes of an event's name, which is written back into every frame.
_LARGER = 8  # Limits that an event may have which is expected to be large.
_HEAD = 1024  # Bytes of it by which it is known before its end.
_STRAYS = 64 * 1024  # Bytes kept of what is no event stream.
_PIECES = 1024  # That an event's start is kept in: each has an overhead of its own.
_BLOCK = 128  # Bytes that an ignored block counts as, beside its own: empty ones cost time too.
_COLON = ord(":")
_ID, _EVENT = b"id: ", b"event: "
_CONTROLS = bytes([*range(32), 127])


class Event(NamedTuple):
    """One event; an empty name is the default one, an empty id is none."""

    data: bytes
    name: bytes = b""
    id: bytes = b""


def encode(data: bytes, event_id: bytes, name: bytes = b"") -> bytes:
    """Return one event as one block, its id last: a client cut before the end keeps its old id."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    if name:
        return b"event: %s\ndata: %s\nid: %s\n\n" % (name, data, event_id)
    return b"data: %s\nid: %s\n\n" % (data, event_id)


def without_id(data: bytes) -> bytes:
    """Return an event of nothing but its data."""
    return b"data: %s\n\n" % data.replace(b"\n", b"\ndata: ")


def lines(data: bytes, name: bytes = b"") -> bytes:
    """Return an event's lines but for its id and the blank line: whoever has the id adds them."""
    data = data.replace(b"\n", b"\ndata: ")
    return b"event: %s\ndata: %s\n" % (name, data) if name else b"data: %s\n" % data


def after(frames: bytes, event_id: bytes) -> bytes:
    """Return what follows the event with this id, among what `encode` made."""
    return frames.partition(b"\nid: %s\n\n" % event_id)[2]


def position(event_id: bytes, seen: bool = False) -> bytes:
    """Return a block from which a browser has the id to go on from: no event, or a heartbeat."""
    lines = HEARTBEAT_EVENT.removesuffix(b"\n") if seen else b""
    return b"%sid: %s\n\n" % (lines, event_id)


def comment(words: bytes) -> bytes:
    """Return a line that nobody takes for an event's."""
    return b": %s\n" % words


def retry(milliseconds: int) -> bytes:
    """Return a `retry:` line, to be sent as the first line of a block that follows."""
    return b"retry: %d\n" % milliseconds


def safe_name(name: bytes) -> bytes:
    """Return an upstream's event name, prefixed where it is ours or has a meaning to browsers."""
    return b"upstream-" + name if name in OURS or name in RESERVED else name


def parse(blocks: bytes) -> list[Event]:
    """Return the events of complete blocks."""
    return Parser(limit=len(blocks) + 1).feed(blocks)


class Parser:
    """Bytes in, events out, however they are cut.

    An event of more than `limit` bytes sets `overflow`; the events before it are still returned,
    and nothing after it is. More than `noise` bytes outside of all events set `noisy` as well.
    Lines of no event stream are kept as `strays`: they may be an error. `odd` tells of any.
    `is_large` tells of a block, or of its head until it is whole, whether it may have eight limits.
    """

    def __init__(
        self,
        limit: int,
        noise: int | None = None,
        is_large: Callable[[bytes, bool], bool] | None = None,
    ) -> None:
        self.overflow = False
        self.noisy = False
        self.strays: bytes | bytearray = b""
        self.odd = False
        self._limit = limit
        self._noise = noise
        self._is_large = is_large
        self._ignored = 0
        self._pieces: list[bytes] = []  # Of the event that is not complete yet.
        self._size = 0
        self._after_cr = False
        self._head: bytes | None = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        if self._is_one_line(chunk):
            return [Event(chunk[6:-2])]  # What happens at nearly every event.
        if self._head is not None:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_newlines(chunk)
        if not chunk:
            return []  # Nothing, or the rest of a CRLF: it must not stand where the seam is sought.
        if self._pieces:
            # Joined only once the event is complete: else an event in many pieces costs its square.
            seam = self._pieces[-1][-1:] + chunk
            self._pieces.append(chunk)
            self._size += len(chunk)
            if b"\n\n" not in seam:
                self._check(self._size - chunk.endswith(b"\n"))  # That may begin its end.
                if len(self._pieces) > _PIECES:
                    self._pieces = [b"".join(self._pieces)]
                return []
            chunk = b"".join(self._pieces)
        *blocks, rest = chunk.split(b"\n\n")
        self._pieces, self._size = [rest] if rest else [], len(rest)
        events = self._events(blocks)
        self._check(len(rest) - rest.endswith(b"\n"))
        return events

    def rest(self) -> list[Event]:
        """Return the last event of a whole body, where the blank line after it is missing."""
        block = b"".join(self._pieces).rstrip(b"\n")
        self._pieces, self._size = [], 0
        return self._events([block]) if block else []

    def abandon(self) -> None:
        """Look at what was cut off: it is no event, but it may be of no event stream."""
        lines = b"".join(self._pieces).split(b"\n")
        if lines and any(field.startswith(lines[-1]) for field in _FIELDS):
            lines.pop()  # The start of a field, cut off.
        for line in lines:
            if line.partition(b":")[0] not in _FIELDS:
                self._stray(line)

    def _check(self, size: int) -> None:
        if size > self._limit and not self._may_be_large(size):
            self.overflow = self.odd = True

    def _may_be_large(self, size: int) -> bool:
        """Whether what is incomplete begins as an event that is known to be large."""
        if self._is_large is None or size > self._limit * _LARGER:
            return False
        if len(self._pieces[0]) < _HEAD:
            self._pieces = [b"".join(self._pieces)]  # Once: then its start has all of the head.
        return self._is_large(self._pieces[0][:_HEAD], False)

    def _is_known(self, block: bytes) -> bool:
        """Whether a block above the limit is an event that is known to be large."""
        if self._is_large is None or len(block) > self._limit * _LARGER:
            return False
        return self._is_large(block, True)

    def _is_one_line(self, chunk: bytes) -> bool:
        return (
            chunk.find(b"\n") == len(chunk) - 2
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n")
            and b"\r" not in chunk
            and not (self._pieces or self._after_cr or self._head or self.overflow)
            and len(chunk) <= self._limit
        )

    def _events(self, blocks: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for block in blocks:
            if self.overflow or (len(block) > self._limit and not self._is_known(block)):
                self.overflow = self.odd = True
                break
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(Event(block[6:]))
            elif not block or (block[0] == _COLON and b"\n" not in block):
                self._ignored += len(block) + _BLOCK  # A comment; a flood of them must be cheap.
            elif event := self._event(block):
                events.append(event)
            else:
                self._ignored += len(block) + _BLOCK
        if self._noise is not None and self._ignored > self._noise:
            self.overflow = self.noisy = self.odd = True
        return events

    def _event(self, block: bytes) -> Event | None:
        """Return the event of one block, None if it has no data: comments, retry, an id alone."""
        data: list[bytes] = []
        name = event_id = b""
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
            elif field == b"id" and b"\0" not in value:
                event_id = value
            elif field not in _FIELDS:
                self._stray(line)
        if not data:
            return None
        joined = b"\n".join(data)
        self._ignored += len(block) - len(joined)
        return Event(joined, _name(name), event_id)

    def _stray(self, line: bytes) -> None:
        self.strays = self.strays or bytearray()  # Not sooner: most have none.
        if len(self.strays) < _STRAYS:
            self.strays += line[:_STRAYS] + b"\n"
            self.odd = True

    def _without_bom(self, chunk: bytes) -> bytes:
        head = (self._head or b"") + chunk
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _with_newlines(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")  # The rest of a CRLF that was cut in two.
            self._after_cr = False
        if chunk.endswith(b"\r"):
            self._after_cr = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _name(name: bytes) -> bytes:
    """Return an event's name as it may be written back; `message` is the default one's."""
    if not name or name == b"message":
        return b""
    if len(name) > _NAME:
        name = name[:_NAME].decode("utf-8", "ignore").encode()  # None of its characters is cut.
    name = name.translate(None, _CONTROLS)
    return b"" if name == b"message" else name


class Renaming:
    """Events on their way, under other names and ids; `whole` unless one of them is half sent.

    They are as `encode` makes them and may be cut anywhere: of one that is not whole no more is
    held back than the line that may be its id.
    """

    def __init__(self, name: bytes = b"") -> None:
        self.whole = True
        self._name = name  # Comes before an event's own, with a dot; b"" for none.
        self._event = b""  # The name of the one that is half sent.
        self._rest = b""
        self._at_line = True  # Whether what comes next begins a line.

    def feed(self, frames: bytes, renew: Callable[[bytes, bytes], bytes]) -> Iterator[bytes]:
        """Yield what is to be sent; `renew` gives an event's new id for its name and id."""
        frames, start = self._rest + frames, 0
        while start < len(frames):
            if self.whole:
                head = self._head(frames, start)
                if head is None:
                    break
                yield head
                start += len(_EVENT) + len(self._event) + 1 if self._event else 0
            end = frames.find(b"\n\n", start)
            if end < 0:
                cut = self._cut(frames, start)
                yield frames[start:cut]
                start = cut
                break
            line = max(start, frames.rfind(b"\n", start, end) + 1)
            new = renew(self._event, frames[line + len(_ID) : end])
            self.whole = True
            yield b"%b%b%b\n\n" % (frames[start:line], _ID, new)
            start = end + 2
        self._rest = frames[start:]

    def _head(self, frames: bytes, start: int) -> bytes | None:
        """Return the first line of the event that begins here, None if it is not all there."""
        self._event = b""
        if frames.startswith(_EVENT, start):
            end = frames.find(b"\n", start)
            if end < 0:
                return None
            self._event = frames[start + len(_EVENT) : end]
        elif _EVENT.startswith(frames[start : start + len(_EVENT)]):
            return None
        self.whole, self._at_line = False, True
        name = b".".join(filter(None, (self._name, self._event)))
        return b"%b%b\n" % (_EVENT, name) if name else b""

    def _cut(self, frames: bytes, start: int) -> int:
        """Return up to where to send of an event that is not whole: its last line may be its id."""
        line = frames.rfind(b"\n", start, len(frames) - 1) + 1
        if not line:
            line = start if self._at_line else len(frames)
        begun = frames[line : line + len(_ID)]
        cut = line if begun and _ID.startswith(begun) else len(frames)
        if cut > start:
            self._at_line = frames.endswith(b"\n", start, cut)
        return cut

"""NDJSON: an answer of JSON objects, one a line; each is an event without a name. Pure.

A newline alone ends a line: what Unicode calls one (U+2028) may stand in a text.
"""

from gateway.sse import Event

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_STRAYS = 64 * 1024  # Bytes kept of what is no line of JSON.
_PIECES = 1024  # That a line's start is kept in: each has an overhead of its own.
_BLANK = 128  # Bytes that an ignored line counts as, beside its own: empty ones cost time too.


class JsonLines:
    """Bytes in, events out, however they are cut; see `base.Frames`."""

    def __init__(self, limit: int, noise: int | None = None) -> None:
        self.overflow = False
        self.noisy = False
        self.strays: bytes | bytearray = b""
        self.odd = False
        self._limit = limit
        self._noise = noise
        self._ignored = 0
        self._pieces: list[bytes] = []  # Of the line that is not complete yet.
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        if b"\n" not in chunk:
            # Joined only once the line is complete: else one in many pieces costs its square.
            self._keep(chunk)
            return []
        *lines, rest = b"".join([*self._pieces, chunk]).split(b"\n")
        self._pieces, self._size = [], 0
        events = self._events(lines)
        self._keep(rest)
        return events

    def rest(self) -> list[Event]:
        """Return the last line of a whole body, where the newline after it is missing."""
        line = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return self._events([line])

    def abandon(self) -> None:
        """Look at what was cut off: it is no event, but it may be of something else than lines."""
        line = b"".join(self._pieces).strip(_SPACE)
        if line and not line.startswith(b"{"):
            self._stray(line)

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            self._check(self._size)
        if len(self._pieces) > _PIECES:
            self._pieces = [b"".join(self._pieces)]

    def _check(self, size: int) -> None:
        if size > self._limit:
            self.overflow = self.odd = True

    def _events(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            self._check(len(line))
            if self.overflow:
                break
            line = self._plain(line)
            if line.startswith(b"{") and line.endswith(b"}"):
                events.append(Event(line))
            else:
                self._ignored += len(line) + _BLANK
                self._stray(line)
        if self._noise is not None and self._ignored > self._noise:
            self.overflow = self.noisy = self.odd = True
        return events

    def _plain(self, line: bytes) -> bytes:
        if self._first:
            self._first, line = False, line.removeprefix(_BOM)
        line = line.strip(_SPACE)
        # It is white space in JSON, and would end a line of the event that a viewer gets.
        return line.replace(b"\r", b"\n") if b"\r" in line else line

    def _stray(self, line: bytes) -> None:
        if line and len(self.strays) < _STRAYS:
            self.strays = self.strays or bytearray()
            self.strays += line[:_STRAYS] + b"\n"
            self.odd = True

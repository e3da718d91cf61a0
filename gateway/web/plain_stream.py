"""Plain stream: the text in `data:` lines and nothing else, for loops that split on these by hand.

It is a raw stream in frames: what is not whole is a refusal or is broken off, never told of within.
"""

import re

from gateway.sse import without_id
from gateway.web.event_stream import utf8
from gateway.web.raw_stream import RawStream, RawText
from gateway.web.responses import STREAM_HEADERS

_DONE = without_id(b"[DONE]")
# What such loops look for: a text that has it is cut in two frames, and none has it whole.
_MARKS = re.compile(r"(?<=da)(?=ta:)|(?<=\[DO)(?=NE\])")


class FramedText(RawText):
    """Frames to frames of text, without ids or names; a CR waits for its LF."""

    def rest(self) -> bytes:
        """Return what waited for more, and the mark of a whole answer."""
        return super().rest() + _DONE

    def unfinished(self, text: str) -> str:
        """Return the end of a text that waits for what follows it."""
        return "\r" if text.endswith("\r") else super().unfinished(text)

    def written(self, text: str) -> bytes:
        """Return frames of a text; no event stream can carry a CR."""
        parts = _MARKS.split(text.replace("\r\n", "\n").replace("\r", "\n"))
        return b"".join(without_id(utf8(each)) for each in parts if each)


class PlainStream(RawStream):
    """One viewer's response."""

    head = STREAM_HEADERS
    made_of = FramedText

    __slots__ = ()

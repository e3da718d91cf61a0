"""Codings: the compression of a body, taken off in slices.

A megabyte can hold a gigabyte. What comes out is handed over slice by slice, with the others' time
in between, so that who reads can stop at his bound; what goes in is read only when all of it came
out. Two compressions in one another may be all work and no bytes, so that has a bound of its own.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator

import httpx

SLICE = 8 * 1024  # Bytes that come out at once: of the oddest events, some milliseconds.
READABLE = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP = b"\x1f\x8b"
_NONE = frozenset({"identity", "none", "utf-8", "utf8", "binary", "8bit", "chunked"})
_PIECE = 4 * 1024  # Bytes that go in at once: what is left of them is copied for every slice.
_MOST = 3  # Codings of one body.
_FREE = 16 << 20  # Bytes that may come out whatever went in.
_RATIO = 100  # Bytes for each that went in, above that; events are below 30.


def compressions(codings: list[str]) -> list[str]:
    """Return the codings that change anything, in the order in which they were put on."""
    return [each for each in codings if each not in _NONE]


def unreadable(codings: list[str]) -> str:
    """Return the name of what cannot be taken off, "" if all can be."""
    unknown = [each for each in codings if each not in READABLE]
    return unknown[0] if unknown else ", ".join(codings) if len(codings) > _MOST else ""


def unpacked(
    body: AsyncIterator[bytes], codings: list[str], first: bytes = b""
) -> AsyncIterator[bytes]:
    """Return a body without its codings; `first` was read of it already.

    What is returned raises httpx.DecodingError where the body is corrupt or cut.
    """
    for each in reversed(codings):
        body, first = _Unpacked(body, each, first), b""
    return body


class _Unpacked:
    """A body without one of its codings. No generator: nobody may read it to its end."""

    def __init__(self, body: AsyncIterator[bytes], coding: str, first: bytes) -> None:
        self._body = body
        self._member = _Member(coding == "deflate")
        self._chunk = first  # What came and did not go in.
        self._piece = b""
        self._more = False  # Is to come out of what went in.
        self._went_in = self._came_out = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        part = b""
        while not part:
            if self._more or self._chunk:
                await asyncio.sleep(0)
            if not self._more:
                await self._next_piece()
            part, self._piece = self._member.slice(self._piece)
            self._more = bool(self._piece) or len(part) == SLICE
            self._came_out += len(part)
            if self._came_out > max(_FREE, self._went_in * _RATIO):
                raise httpx.DecodingError("it is compressed too well to be an answer")
        return part

    async def _next_piece(self) -> None:
        try:
            chunk = self._chunk or await anext(self._body)
        except StopAsyncIteration:
            if not self._member.whole:
                raise httpx.DecodingError("the compressed body is cut") from None
            raise
        self._piece, self._chunk = chunk[:_PIECE], chunk[_PIECE:]
        self._went_in += len(self._piece)


class _Member:
    """One gzip member after another, or one deflated body, with zlib's header or without."""

    def __init__(self, deflated: bool) -> None:
        self._deflated = deflated
        self._begun = b""  # What is too short to be told.
        self._zlib: zlib._Decompress | None = None
        self._count = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self._zlib is None and (bool(self._count) or not self._begun)

    def slice(self, data: bytes) -> tuple[bytes, bytes]:
        """Return some of what comes out, and what is still to go in."""
        if self._zlib is None:
            data = self._begun + data
            self._begun = data if len(data) < len(_GZIP) else b""
            if self._begun or self._is_padding(data):
                return b"", b""
            self._zlib = self._start(data)
        try:
            part = self._zlib.decompress(data, SLICE)
        except zlib.error as error:
            raise httpx.DecodingError(str(error)) from error
        if not self._zlib.eof:
            return part, self._zlib.unconsumed_tail
        rest, self._zlib = self._zlib.unused_data, None
        self._count += 1
        return part, rest

    def _is_padding(self, data: bytes) -> bool:
        return bool(self._count) and (self._deflated or not data.startswith(_GZIP))

    def _start(self, data: bytes) -> "zlib._Decompress":
        if not self._deflated:
            return zlib.decompressobj(wbits=31)
        header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=15 if header else -15)

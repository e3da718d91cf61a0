"""Codings: the compression of a body, taken off in slices.

A megabyte can hold a gigabyte. What comes out is handed over slice by slice, with the others' time
in between, so that who reads can stop at his bound; what goes in is read only when all of it came
out. Two compressions in one another may be all work and no bytes, so that has a bound of its own.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator

import httpx

SLICE = 32 * 1024  # Bytes that come out at once.
READABLE = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP = b"\x1f\x8b"
_NONE = frozenset({"identity", "none", "utf-8", "utf8", "binary", "8bit", "chunked"})
_PIECE = 4 * 1024  # Bytes that go in at once: what is left of them is copied for every slice.
_MOST = 3  # Codings of one body.
_FREE = 32 << 20  # Bytes that may come out whatever went in.
_RATIO = 100  # Bytes for each that went in, above that; events are below 30.


def compressions(codings: list[str]) -> list[str]:
    """Return the codings that change anything, in the order in which they were put on."""
    return [each for each in codings if each not in _NONE]


def unreadable(codings: list[str]) -> str:
    """Return the name of what cannot be taken off, "" if all can be."""
    unknown = [each for each in codings if each not in READABLE]
    return unknown[0] if unknown else ", ".join(codings) if len(codings) > _MOST else ""


def unpacked(body: AsyncIterator[bytes], codings: list[str]) -> AsyncIterator[bytes]:
    """Return a body without its codings; raises httpx.DecodingError where it is corrupt or cut."""
    for each in reversed(codings):
        body = _inflated(body, deflated=each == "deflate")
    return body


async def _inflated(body: AsyncIterator[bytes], *, deflated: bool) -> AsyncIterator[bytes]:
    member = _Member(deflated)
    went_in = came_out = 0
    async for chunk in body:
        for at in range(0, len(chunk), _PIECE):
            left, more = chunk[at : at + _PIECE], True
            went_in += len(left)
            while more:
                part, left = member.slice(left)
                came_out += len(part)
                if came_out > max(_FREE, went_in * _RATIO):
                    raise httpx.DecodingError("it is compressed too well to be an answer")
                if part:
                    yield part
                more = bool(left) or len(part) == SLICE
                if more or at:
                    await asyncio.sleep(0)
    if not member.whole:
        raise httpx.DecodingError("the compressed body is cut")


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

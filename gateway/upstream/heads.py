"""Heads: what the head of a response means that a strict parser does not read. Pure.

Proxies and small servers send a length twice, a line without a colon, a folded one, bare newlines.
Who can tell what is meant reads it all the same, as the answer is paid for. What tells two ends of
the body tells none, and is not read.
"""

import re

_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"\r?\n")
_BEGINS = (b"HTTP", b"ICY")
_STATUS = re.compile(rb"(?:HTTP/\S*|ICY)\s+(\d{3})(?!\d)", re.IGNORECASE)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = bytes.maketrans(b"\0\r", b"  ")  # Others are for who shows it.
_CODING, _LENGTH = b"transfer-encoding", b"content-length"


def ends_in(part: bytes) -> bool:
    """Whether a head may end in this part of it."""
    return _END.search(part) is not None


def tidied(seen: bytes) -> bytes:
    """Return a head as it is meant, and what follows it; b"" if it is not whole yet.

    Raises ValueError where it is none.
    """
    start = seen.lstrip(b"\r\n")[:4].upper()
    if not any(each[: len(start)] == start[: len(each)] for each in _BEGINS):
        raise ValueError("it begins with no status")
    while end := _END.search(seen := seen.lstrip(b"\r\n")):
        first, *lines = _LINE.split(seen[: end.start()])
        status = _STATUS.match(first)
        if status is None:
            raise ValueError("it begins with no status")
        if status[1].startswith(b"1") and status[1] != b"101":
            seen = seen[end.end() :]  # Another one follows.
            continue
        fields = _fields(lines)
        kept = [each for each in fields if each[0].lower() not in (_CODING, _LENGTH)]
        head = [b"HTTP/1.1 %b -" % status[1]]
        head += [b"%b: %b" % each for each in [*kept, *_framing(fields)]]
        return b"\r\n".join([*head, b"", seen[end.end() :]])
    return b""


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the lines that are any header's, those unfolded that go on in the next."""
    whole: list[bytes] = []
    for line in lines:
        if line[:1] in b" \t" and whole:
            whole[-1] += line
        else:
            whole.append(line)
    pairs = (line.translate(_CONTROLS).partition(b":") for line in whole)
    return [
        (name.strip(), value.strip()) for name, _, value in pairs if _NAME.fullmatch(name.strip())
    ]


def _framing(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return how the body ends, in one line at most; raises ValueError for two answers to that."""
    codings = [value for name, value in fields if name.lower() == _CODING and value]
    if codings:
        return [(_CODING, b", ".join(codings))]
    told = b",".join([value for name, value in fields if name.lower() == _LENGTH]).split(b",")
    lengths = {int(each) for each in told if each.strip().isdigit() and len(each) < 19}
    if len(lengths) > 1:
        raise ValueError("it tells two lengths")
    return [(_LENGTH, b"%d" % length) for length in lengths]

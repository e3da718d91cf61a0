"""Positions: where one is in a channel and in several streams at once, as one event id. Pure.

The id has a digest of the streams that it is about, the place in the channel and in each stream,
numbers in base 36: it is on every event, and it has to pass as a header.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from enum import StrEnum
from hashlib import sha256

from gateway.eventlog.entries import NOTHING, EventId

MOST = 32  # Streams.

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NUMBER = "(?:0|[1-9a-z][0-9a-z]{0,12})"
_PLACE = f"(?:{_NUMBER}-{_NUMBER}|[EFX])?"
_ID = re.compile(rf"[A-Za-z0-9_-]{{8}}(?:\.{_PLACE}){{2,{MOST + 1}}}")


class Mark(StrEnum):
    """A place in a stream of which no event follows from its log."""

    ENDED = "E"  # Its `end` was told.
    FAILED = "F"  # Its `failure` was told, and an `end` that says `failed` is due.
    EXPIRED = "X"  # The same, and the `end` says `expired`.


Place = EventId | Mark | None  # None: before all that is there.


class Positions:
    """The places of a viewer in a channel, the first, and in the streams with these ids."""

    def __init__(self, stream_ids: Sequence[str], channel: EventId | None) -> None:
        self._places: list[Place] = [channel, *(None for _ in stream_ids)]
        self._texts = [_text(each) for each in self._places]
        self._digest = _digest(stream_ids)

    @property
    def channel(self) -> EventId | None:
        """The place in the channel."""
        place = self._places[0]
        return place if isinstance(place, EventId) else None

    def __getitem__(self, number: int) -> Place:
        return self._places[number]

    def __setitem__(self, number: int, place: Place) -> None:
        self._places[number] = place
        self._texts[number] = _text(place)

    def __str__(self) -> str:
        return ".".join([self._digest, *self._texts])

    def moved(self, number: int, place: Place) -> bytes:
        """Go on to a place in one of them, and return the event id."""
        self[number] = place
        return str(self).encode()


def positions(wanted: str, stream_ids: Sequence[str], channel: EventId | None) -> Positions:
    """Return the positions that an event id tells; without one that of the channel is given.

    What is no id is before everything. One of other streams tells only where its user was in the
    channel; in each stream it is a place that never was, so that a `gap` says so.
    """
    told = Positions(stream_ids, channel_place(wanted) if wanted else channel)
    if not _ID.fullmatch(wanted):
        return told
    digest, _, *places = wanted.split(".")
    known = len(places) <= len(stream_ids) and digest == _digest(stream_ids[: len(places)])
    for number, _ in enumerate(stream_ids, 1):
        if not known:
            told[number] = NOTHING
        elif number <= len(places):
            told[number] = _place(places[number - 1])
    return told


def channel_place(wanted: str) -> EventId | None:
    """Return where in the channel an event id is, alone or of several streams; None for none."""
    if not _ID.fullmatch(wanted):
        return EventId.parse(wanted)
    place = _place(wanted.split(".", 2)[1])
    return place if isinstance(place, EventId) else None


def _digest(stream_ids: Sequence[str]) -> str:
    digest = sha256("\0".join(stream_ids).encode()).digest()
    return urlsafe_b64encode(digest[:6]).decode()


def _place(text: str) -> Place:
    if not text:
        return None
    if text in _MARKS:
        return Mark(text)
    epoch, _, seq = text.partition("-")
    return EventId.parse(f"{int(epoch, 36)}-{int(seq, 36)}")


def _text(place: Place) -> str:
    if isinstance(place, EventId):
        return f"{_base36(place.epoch)}-{_base36(place.seq)}"
    return place or ""


def _base36(number: int) -> str:
    digits = ""
    while number >= 36:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return _DIGITS[number] + digits


_MARKS = frozenset(Mark)

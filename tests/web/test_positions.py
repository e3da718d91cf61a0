"""Positions: one id for a channel and several streams, which says again what it was made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.eventlog.entries import END, NOTHING, EventId
from gateway.web.positions import MOST, Mark, Place, Positions, channel_place, positions

_NUMBERS = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))
_IDS = st.builds(EventId, _NUMBERS, _NUMBERS)
_PLACES: st.SearchStrategy[Place] = st.one_of(st.none(), _IDS, st.sampled_from(Mark))

CHANNEL = EventId(1_790_000_000_000, 35)


def names(count: int) -> list[str]:
    """Return the ids of so many streams."""
    return [f"stream-{number}" for number in range(count)]


def made(channel: EventId | None, places: list[Place]) -> Positions:
    """Return positions as they are after some events."""
    told = Positions(names(len(places)), channel)
    for number, place in enumerate(places, 1):
        told[number] = place
    return told


def places_of(told: Positions, count: int) -> list[Place]:
    """Return the places in the streams."""
    return [told[number] for number in range(1, count + 1)]


@given(st.one_of(st.none(), _IDS), st.lists(_PLACES, min_size=1, max_size=MOST), st.integers(0, 3))
def test_an_id_tells_its_places_again_also_to_a_longer_list(
    channel: EventId | None, places: list[Place], more: int
) -> None:
    text = str(made(channel, places))
    count = min(MOST, len(places) + more)
    again = positions(text, names(count), END)
    assert again.channel == channel == channel_place(text)
    assert places_of(again, count) == places + [None] * (count - len(places))
    if count == len(places):
        assert str(again) == text


def test_the_longest_id_passes_as_a_header() -> None:
    text = str(made(END, [END] * MOST))
    assert len(text) < 1024
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert len(str(made(CHANNEL, [CHANNEL] * MOST))) < 400


@pytest.mark.parametrize(
    "ids",
    [names(3)[::-1], names(2), ["other", *names(3)[1:]], [*names(2), "other"]],
    ids=["turned", "shorter", "first", "last"],
)
def test_an_id_of_another_list_tells_only_where_its_user_was_in_the_channel(
    ids: list[str],
) -> None:
    told = positions(str(made(CHANNEL, [EventId(7, 7), None, Mark.ENDED])), ids, END)
    assert told.channel == CHANNEL
    assert set(places_of(told, len(ids))) == {NOTHING}
    again = positions(str(told), ids, END)
    assert places_of(again, len(ids)) == places_of(told, len(ids))


def test_an_id_of_the_channel_alone_is_one_of_no_stream() -> None:
    told = positions(str(CHANNEL), names(2), END)
    assert (told.channel, told[1], told[2]) == (CHANNEL, None, None)


def test_without_an_id_the_channel_begins_where_it_was_asked_to() -> None:
    for start in (END, None):
        told = positions("", names(1), start)
        assert (told.channel, told[1]) == (start, None)


_VALID = str(made(CHANNEL, [EventId(7, 7)]))


@pytest.mark.parametrize(
    "text",
    [
        *("x", "1-", ".", "..", _VALID[1:], _VALID + "\n", _VALID.upper()),
        *(_VALID[:-3] + each for each in ("7-07", "7-_7", "7-٧", "e", "EE", "7", "7-7-7", " 7-7")),
        _VALID[:-3] + "7-" + "z" * 14,
        _VALID + ".7-7" * MOST,
    ],
    ids=lambda text: ascii(text)[:24] + str(len(text)),
)
def test_what_is_no_id_is_before_everything(text: str) -> None:
    told = positions(text, names(1), END)
    assert (told.channel, told[1]) == (None, None)


def test_a_number_that_is_too_large_is_no_place() -> None:
    told = positions(_VALID[:-3] + "7-" + "z" * 13, names(1), END)
    assert (told.channel, told[1]) == (CHANNEL, None)

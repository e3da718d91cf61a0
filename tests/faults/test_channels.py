"""The oracle of channels: what is lost, doubled, disordered or falsely told is found."""

import json
from collections.abc import Callable

import pytest

from tests.faults.channels import Message, Told, judge_channel
from tests.faults.story import Facts, Loss
from tests.faults.viewer import Got, Transcript

NOTHING = Facts(lease=2.0)
LOST = Facts(losses=(Loss("failover", 4.5, 5.5),), lease=2.0)
EMPTY = Facts(losses=(Loss("empty", 4.5, 5.5),), lease=2.0)


def told(change: Callable[[list[Got]], object] = lambda events: None) -> Told:
    """Return a channel of six messages, one a second, and a page of it that is changed."""
    messages = [Message(f"m{number}", float(number), [f"7-{number}"] * 2) for number in range(1, 7)]
    events = [Got(b"", each.text.encode(), each.ids[0]) for each in messages]
    whole, other = Transcript([*events]), Transcript([*events])
    change(other.events)
    return Told("she", messages, [whole, other])


def gap(at: int) -> Callable[[list[Got]], object]:
    """Return what tells a gap, after which all that is kept comes again."""

    def told_at(events: list[Got]) -> None:
        data = json.dumps({"from": f"7-{at}", "to": "7-0"}).encode()
        events[at:at] = [Got(b"gap", data, "7-0"), *events[:at]]

    return told_at


def found(channel: Told, facts: Facts = NOTHING) -> list[str]:
    """Return what is found wrong."""
    return [each.text for each in judge_channel(channel, facts)]


def test_a_page_that_has_all_is_not_blamed() -> None:
    assert found(told()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events.pop(2),
        lambda events: events.pop(),
        lambda events: events.insert(3, events[2]),
        lambda events: events.insert(2, events.pop(3)),
        lambda events: events.insert(0, Got(b"", b"of another", "7-0")),
        gap(3),
    ],
    ids=["lost", "last lost", "repeated", "reordered", "foreign", "gap"],
)
def test_what_is_wrong_is_found(change: Callable[[list[Got]], object]) -> None:
    assert found(told(change))


def test_a_message_that_has_two_ids_is_found() -> None:
    channel = told()
    channel.messages[1].ids[1] = "7-9"
    assert found(channel)


def test_a_push_that_was_refused_is_found() -> None:
    channel = told()
    channel.problems.append("a push was answered 400")
    assert found(channel)


@pytest.mark.parametrize(
    ("lost", "facts", "excused"),
    [
        (4, LOST, True),
        (2, LOST, False),
        (2, EMPTY, True),
        (5, EMPTY, False),
    ],
)
def test_only_what_redis_lost_may_be_missing(lost: int, facts: Facts, excused: bool) -> None:
    channel = told(lambda events: events.pop(lost - 1 if lost < 5 else -2))
    channel.messages[4].at = 5.8 if lost == 5 else 5.0
    assert (found(channel, facts) == []) is excused


def test_after_a_gap_all_that_is_kept_comes_once_more() -> None:
    assert found(told(gap(3)), LOST) == []
    forgetful = told(gap(3))
    del forgetful.pages[1].events[4:6]
    assert found(forgetful, LOST)

"""The oracle of webhooks: an end that nobody heard of is seen, and one that is told falsely."""

from dataclasses import replace

import pytest

from tests.faults.schedule import Answer, Stream, Watch
from tests.faults.story import Facts, Loss, Story
from tests.faults.viewer import Got, Transcript
from tests.faults.webhooks import Told, judge_webhooks

FACTS = Facts(lease=2.0)
HEARD = Told("msg_a_1", 3, "done", signed=True, heard=True, at=9.0)
REFUSED = HEARD._replace(heard=False)


def ended() -> Story:
    """Return the story of a stream that a viewer saw end at 9 s."""
    end = Got(b"end", b'{"state":"done"}', "7-1")
    watched = Transcript([end], "204", connections=1, began=0.5, ended=11.0, over=9.0)
    return Story(Stream(3, 0.0, Answer(30, 0.1), (Watch(),)), 0.4, [], [watched])


def found(*told: Told, facts: Facts = FACTS) -> list[str]:
    """Return what is found wrong where this was told."""
    return [each.text for each in judge_webhooks([ended()], told, facts)]


def test_what_was_heard_at_last_however_often_is_not_blamed() -> None:
    assert found(REFUSED, REFUSED, HEARD, HEARD) == []


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ((), "its end was not heard, of 0 tries"),
        ((REFUSED,), "its end was not heard, of 1 tries"),
        ((HEARD._replace(number=4),), "its end was not heard"),
        ((HEARD, HEARD._replace(id="msg_b_1")), "it was told under"),
        ((HEARD._replace(state="failed"),), "it ended ['done'], and was told as ['failed']"),
        ((HEARD._replace(signed=False),), "its webhook has a false signature"),
    ],
    ids=range(6),
)
def test_what_is_not_heard_or_told_falsely_is_found(told: tuple[Told, ...], words: str) -> None:
    (text,) = found(*told)
    assert text.startswith(words)


@pytest.mark.parametrize(
    ("loss", "excused"),
    [
        (Loss("failover", 8.5, 9.0), True),
        (Loss("empty", 12.0, 13.0), True),
        (Loss("failover", 3.0, 4.0), False),
    ],
    ids=["at its end", "later", "before"],
)
def test_an_end_may_be_unheard_only_where_redis_lost_it(loss: Loss, excused: bool) -> None:
    assert (found(facts=replace(FACTS, losses=(loss,))) == []) is excused


@pytest.mark.parametrize(("at", "excused"), [(3.5, True), (8.5, False)], ids=["before", "after"])
def test_an_end_may_have_been_another_only_before_redis_lost_it(at: float, excused: bool) -> None:
    told = HEARD._replace(state="cancelled", at=at)
    facts = replace(FACTS, losses=(Loss("empty", 4.0, 5.0),))
    assert (found(told, HEARD, facts=facts) == []) is excused


def test_a_stream_that_nobody_saw_end_need_not_be_told() -> None:
    story = ended()
    story.transcripts[0].events = []
    assert list(judge_webhooks([story], [], FACTS)) == []

"""The oracle of usage: what is booked twice, or not, or falsely is seen, and who ran too much."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.plays import PROMPT_TOKENS, Call, packed
from tests.faults.schedule import Answer, Stream, Watch
from tests.faults.story import DRAIN, Facts, Hit, Loss, Outage, Story
from tests.faults.usage import Place, Row, judge_slots, judge_tokens, judge_usage, rows_of
from tests.faults.viewer import Got, Transcript

PLACE: Place = ("user 3", "default")
WHOLE = {"prompt": 20, "completion": 30, "cached": None}
GUESS = {"prompt": PROMPT_TOKENS, "completion": 29, "cached": None, "estimated": True}
FACTS = Facts(lease=2.0)


def ended(number: int = 3, tokens: dict[str, Any] | None = None, **end: Any) -> Story:
    """Return the story of a stream of 30 texts that ended at 9 s; its usage is told if whole."""
    tokens = WHOLE if tokens is None else tokens
    texts = [b'{"choices":[{"delta":{"content":"x"}}]}'] * 30
    if not tokens.get("estimated"):
        usage = {"prompt_tokens": 20, "completion_tokens": 30}
        texts.append(b'{"choices":[],"usage":%b}' % packed(usage))
    events = [Got(b"", data, f"7-{n}") for n, data in enumerate(texts, 1)]
    said = {"state": "done", "usage": None, "tokens": tokens, "attempts": 1, **end}
    events.append(Got(b"end", json.dumps(said).encode(), "7-99"))
    call = Call(number, 0, "replica-1-1", 1.0, outcome="whole", ended=8.9)
    watched = Transcript(events, "204", connections=1, began=0.5, over=8.95, ended=9.0)
    stream = Stream(number, 0.0, Answer(30, 0.1), (Watch(),))
    return Story(stream, 0.4, [call] if said["attempts"] else [], [watched])


def found(stories: list[Story], row: Row, facts: Facts = FACTS) -> list[str]:
    """Return what is found wrong where this is booked."""
    findings = list(judge_usage(stories, {PLACE: row}, facts))
    findings += [each for story in stories for each in judge_tokens(story)]
    return [each.text for each in findings]


def test_books_that_are_true_are_not_blamed() -> None:
    both = [ended(), ended(8, GUESS)]
    guess = PROMPT_TOKENS + 29
    assert found(both, Row(2, 20 + PROMPT_TOKENS, 59, guess)) == []


@pytest.mark.parametrize(
    "row", [Row(2, 40, 60), Row(), Row(1, 20, 31), Row(1, 21, 30), Row(1, 20, 30, 50)]
)
def test_what_is_booked_twice_or_never_or_falsely_is_found(row: Row) -> None:
    assert len(found([ended()], row)) == 1


def test_what_is_booked_for_nobody_is_found() -> None:
    assert found([], Row(1, 20, 30))


@pytest.mark.parametrize(
    ("loss", "allowed"),
    [
        (Loss("failover", 8.5, 9.0), True),
        (Loss("failover", 3.0, 4.0), False),
        (Loss("failover", 12.0, 13.0), False),
        (Loss("empty", 12.0, 13.0), True),
        (Loss("empty", 9.1, 9.4), False),
        (Loss("empty", 3.0, 4.0), False),
    ],
)
def test_a_booking_may_be_missing_only_where_redis_lost_it(loss: Loss, allowed: bool) -> None:
    facts = Facts(losses=(loss,), lease=2.0)
    assert (found([ended()], Row(), facts) == []) is allowed
    assert found([ended()], Row(1, 20, 30), facts) == []
    assert found([ended()], Row(2, 40, 60), facts)


@pytest.mark.parametrize(
    ("hit", "allowed"),
    [
        (Hit("kill", "replica-1-1", 9.6, 9.6), True),
        (Hit("kill", "replica-1-1", 20.0, 20.0), False),
        (Hit("kill", "replica-2-1", 9.6, 9.6), False),
        (Hit("term", "replica-1-1", 9.6 + DRAIN, 50.0), True),
    ],
)
def test_who_knows_what_redis_forgot_must_book_it_again(hit: Hit, allowed: bool) -> None:
    facts = Facts((hit,), losses=(Loss("empty", 9.1, 9.4),), lease=2.0)
    assert (found([ended()], Row(), facts) == []) is allowed


def test_an_end_is_as_old_as_a_viewer_saw_it_however_late_it_was_sent_away() -> None:
    story, facts = ended(), Facts(losses=(Loss("empty", 15.0, 16.0),), lease=2.0)
    story.transcripts[0].ended = 30.0
    assert found([story], Row(), facts) == []
    story.transcripts[0].over = 20.0  # It came back late, and Redis had both.
    assert found([story], Row(), facts)


def test_an_end_that_a_failover_took_may_be_booked_all_the_same() -> None:
    facts = Facts(losses=(Loss("failover", 3.0, 4.0),), lease=2.0)
    assert found([ended()], Row(1, 20, 12), facts) == []
    assert found([ended()], Row(1, 20, 12))
    assert found([ended()], Row(1, 20, 31), facts)


def test_a_stream_that_never_began_need_not_be_booked() -> None:
    cancelled = ended(tokens={}, state="cancelled", attempts=0)
    cancelled.transcripts[0].events = cancelled.transcripts[0].events[-1:]
    assert found([cancelled], Row()) == []


@pytest.mark.parametrize(
    "tokens",
    [
        {**WHOLE, "completion": 29},
        {**GUESS, "completion": 12},
        {**GUESS, "prompt": 0},
    ],
)
def test_an_end_that_tells_other_tokens_than_were_served_is_found(tokens: dict[str, Any]) -> None:
    told = tokens["prompt"] + tokens["completion"]
    row = Row(1, tokens["prompt"], tokens["completion"], told if "estimated" in tokens else 0)
    assert len(found([ended(tokens=tokens)], row)) == 1


def test_a_guess_that_is_not_marked_is_found() -> None:
    story = ended(tokens=GUESS)
    end = json.loads(story.transcripts[0].events[-1].data)
    del end["tokens"]["estimated"]
    story.transcripts[0].events[-1] = Got(b"end", json.dumps(end).encode(), "7-99")
    assert found([story], Row(1, PROMPT_TOKENS, 29))


def test_days_and_models_are_added_up() -> None:
    day = {"preset": "default", "streams": 1, "prompt_tokens": 2, "completion_tokens": 3}
    day |= {"estimated_tokens": 0}
    other = {**day, "day": "2026-11-29", "estimated_tokens": 5}
    rows = rows_of({"user 3": {"days": [{**day, "day": "2026-11-28"}, other]}})
    assert rows == {PLACE: Row(2, 4, 6, 5)}


HIT = Hit("kill", "replica-1-1", 4.0, 4.0)
STALL = Hit("pause_short", "replica-1-1", 4.0, 4.5)


@pytest.mark.parametrize(
    ("facts", "excused"),
    [
        (FACTS, False),
        (replace(FACTS, hits=(HIT,)), True),
        (replace(FACTS, hits=(replace(HIT, replica="replica-2-1"),)), False),
        (replace(FACTS, losses=(Loss("empty", 4.0, 4.5),)), True),
        (replace(FACTS, losses=(Loss("empty", 0.1, 0.2),)), False),
        (replace(FACTS, outages=(Outage(2.0, 4.5),)), True),
        (replace(FACTS, outages=(Outage(4.0, 4.5),)), False),
        (replace(FACTS, outages=(Outage(3.2, 3.9), Outage(4.0, 4.5))), True),  # It had no time.
        (replace(FACTS, outages=(Outage(1.2, 1.9), Outage(4.0, 4.5))), False),
        (replace(FACTS, outages=(Outage(3.2, 4.0),), stalls=(STALL,)), True),
        (replace(FACTS, outages=(Outage(3.2, 4.0),), stalls=(replace(STALL, replica="b"),)), False),
        (replace(FACTS, outages=(Outage(0.2, 1.9),)), False),  # All have been heard since.
    ],
)
def test_who_runs_more_than_it_may_is_found(facts: Facts, excused: bool) -> None:
    first, second = ended(3), ended(8)
    second.calls[0].at = 5.0
    assert (list(judge_slots([first, second], facts, 1)) == []) is excused
    assert list(judge_slots([first, second], facts, 2)) == []
    second.calls[0].at = 8.95  # The first one has ended just now.
    assert list(judge_slots([first, second], facts, 1)) == []


@pytest.mark.parametrize(("claimed", "excused"), [(3.5, True), (4.5, False)])
def test_a_slot_is_as_old_as_its_log_however_late_the_call_came(
    claimed: float, excused: bool
) -> None:
    first, second = ended(3), ended(8)
    second.calls[0].at = 5.0
    epoch = int((1000 + claimed) * 1000)
    events = second.transcripts[0].events
    events[:] = [each._replace(id=f"{epoch}-{n}") for n, each in enumerate(events, 1)]
    facts = replace(FACTS, losses=(Loss("empty", 2.0, 3.0),), zero=1000.0)
    assert (list(judge_slots([first, second], facts, 1)) == []) is excused

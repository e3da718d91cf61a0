"""The oracle: each broken promise is seen, and what DESIGN allows is allowed there only."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.oracle import judge
from tests.faults.plays import Call, Sent
from tests.faults.schedule import Answer, Stream, Watch
from tests.faults.story import Deletion, Facts, Hit, Loss, Outage, Story
from tests.faults.viewer import Got, Transcript

Doctor = Callable[[Story], None]

OWNER = "replica-1-1"
HIT = Hit("kill", OWNER, 5.0, 5.0)


def sent(count: int, *, finished: bool = True, call: int = 0) -> list[Sent]:
    """Return what an upstream sent."""
    events = [(b"", b'{"ticket":3,"call":%d,"n":%d}' % (call, n)) for n in range(count)]
    end = [(b"", b'{"ticket":3,"call":%d,"finish_reason":"stop"}' % call), (b"", b"[DONE]")]
    return events + (end if finished else [])


def shown(events: list[Sent], state: str = "done", epoch: int = 7) -> list[Got]:
    """Return what a viewer gets of it, with its end."""
    attempts = {"state": state, "finish_reason": None, "usage": None, "attempts": 1}
    end = [(b"end", json.dumps(attempts).encode())]
    if state not in {"done", "cancelled"}:
        end.insert(0, (b"failure", b'{"code":"x"}'))
    numbered = enumerate(events + end, start=1)
    return [Got(name, data, f"{epoch}-{n}") for n, (name, data) in numbered]


def story(state: str = "done", outcome: str = "whole") -> Story:
    """Return the story of a stream with two viewers and one call, in which all is well."""
    whole = sent(4, finished=outcome == "whole")
    call = Call(3, 0, OWNER, 1.0, whole, outcome == "whole", outcome, 6.0)
    stream = Stream(3, 0.0, Answer(4, 0.1), (Watch(), Watch()))
    viewers = [
        Transcript(shown(whole, state), "204", connections=2, began=0.5, ended=9.0)
        for _ in range(2)
    ]
    return Story(stream, 0.4, [call], viewers)


def kinds(told: Story, *hits: Hit, losses: tuple[Loss, ...] = ()) -> set[str]:
    """Return the kinds of what the oracle finds."""
    return {each.kind for each in judge(told, Facts(hits, losses, lease=2.0)).findings}


@pytest.mark.parametrize(
    ("state", "outcome", "hits"),
    [
        ("done", "whole", ()),
        ("truncated", "cut", ()),
        ("stalled", "stalled", ()),
        ("failed", "error", ()),
        ("interrupted", "left", (HIT,)),
        ("truncated", "cut", (HIT,)),
    ],
)
def test_what_is_sound_is_not_blamed(state: str, outcome: str, hits: tuple[Hit, ...]) -> None:
    verdict = judge(story(state, outcome), Facts(hits))
    assert (verdict.findings, verdict.allowed, verdict.state) == ([], [], state)


def doctored(*changes: Callable[[list[Got]], object]) -> Doctor:
    """Return what changes the events of the first viewer."""

    def doctor(told: Story) -> None:
        for change in changes:
            change(told.transcripts[0].events)

    return doctor


def renumbered(events: list[Got]) -> None:
    """Give ids without holes, as a gateway that lost an event before its log would."""
    events[:] = [replace_id(event, f"7-{n}") for n, event in enumerate(events, start=1)]


def without(index: int) -> Callable[[list[Got]], None]:
    """Return what takes an event out, and leaves no hole."""

    def change(events: list[Got]) -> None:
        del events[index]
        renumbered(events)

    return change


def replace_id(event: Got, name: str) -> Got:
    """Return an event under another id."""
    return Got(event.name, event.data, name)


def swapped(events: list[Got]) -> None:
    """Exchange two events, ids and all."""
    events[1], events[2] = events[2], events[1]


def with_the_ids_kept(events: list[Got]) -> None:
    """Exchange the data of two events."""
    events[1], events[2] = replace_id(events[2], "7-2"), replace_id(events[1], "7-3")


def changed(events: list[Got]) -> None:
    """Change one byte."""
    events[1] = Got(b"", events[1].data.replace(b"1}", b"1 }"), events[1].id)


def named(events: list[Got]) -> None:
    """Change one name."""
    events[1] = Got(b"other", events[1].data, events[1].id)


def ends_as(state: str) -> Callable[[list[Got]], None]:
    """Return what puts another state in the end."""

    def change(events: list[Got]) -> None:
        events[:] = shown([(e.name, e.data) for e in events if e.name == b""], state)

    return change


def every_viewer(change: Callable[[list[Got]], object]) -> Doctor:
    """Return what changes the events of both viewers."""

    def doctor(told: Story) -> None:
        for each in told.transcripts:
            change(each.events)

    return doctor


def gap(events: list[Got]) -> None:
    """Begin anew after a gap."""
    events[:0] = [*events[:3], Got(b"gap", b"{}", "7-0")]


def a_second_call(told: Story, at: float = 3.0) -> None:
    """Let another replica ask too."""
    told.calls.append(Call(3, 1, "replica-2-1", at, outcome="left"))


def a_deletion(told: Story) -> None:
    """Let a DELETE be told that it is cancelled."""
    told.deletions.append(Deletion(2.0, 200, "cancelled"))


def final(what: str) -> Doctor:
    """Return what ends the first viewer in another way."""

    def doctor(told: Story) -> None:
        told.transcripts[0].final = what

    return doctor


def without_end(told: Story) -> None:
    """Take the ends away."""
    for each in told.transcripts:
        each.events.pop()


DOCTORS: list[tuple[str, Doctor]] = [
    ("lost", doctored(lambda events: events.pop(2))),
    ("lost", doctored(lambda events: events.pop(0))),
    ("lost", doctored(lambda events: events.pop(2), renumbered)),
    ("lost", every_viewer(lambda events: events.pop(-2))),
    ("lost", every_viewer(without(-2))),
    ("repeated", doctored(lambda events: events.insert(2, events[1]))),
    ("repeated", doctored(lambda events: events.insert(2, events[1]), renumbered)),
    ("reordered", doctored(swapped)),
    ("lost", doctored(with_the_ids_kept)),
    ("altered", doctored(changed)),
    ("altered", doctored(named)),
    ("altered", doctored(lambda events: events.insert(6, Got(b"", b"more", "7-7")))),
    ("differ", doctored(changed)),
    ("differ", doctored(lambda events: events.pop(5), renumbered)),
    ("false done", every_viewer(without(4))),
    ("false end", every_viewer(ends_as("interrupted"))),
    ("false end", every_viewer(ends_as("truncated"))),
    ("false end", every_viewer(ends_as("cancelled"))),
    ("false end", a_deletion),
    ("after the end", doctored(lambda events: events.append(Got(b"", b"x", "7-8")))),
    ("after the end", doctored(lambda events: events.append(replace_id(events[-1], "8-1")))),
    ("after the end", final("unfinished")),
    ("gap", doctored(gap)),
    ("extra call", a_second_call),
    ("viewer lost", final("refused")),
    ("viewer lost", lambda told: told.problems.append("POST was answered 400")),
    ("no end", without_end),
    ("no end", lambda told: told.transcripts[0].events.clear()),
    ("silence", lambda told: setattr(told.transcripts[0], "silences", 1)),
]


@pytest.mark.parametrize(("kind", "doctor"), DOCTORS)
def test_every_broken_promise_is_seen(kind: str, doctor: Doctor) -> None:
    told = story()
    doctor(told)
    assert kind in kinds(told)


@pytest.mark.parametrize("outcome", ["cut", "stalled", "error", "left", ""])
def test_a_done_that_the_upstream_never_said_is_false(outcome: str) -> None:
    assert "false done" in kinds(story("done", outcome))


def test_an_end_needs_the_fault_of_its_own_replica_and_of_its_own_time() -> None:
    told = story("interrupted", "left")
    assert kinds(told, replace(HIT, replica="replica-2-1")) == {"false end"}
    assert kinds(told, replace(HIT, at=10, until=10)) == {"false end"}
    assert kinds(told, HIT) == set()


def test_a_fault_excuses_no_lost_event() -> None:
    told = story("interrupted", "left")
    told.transcripts[0].events.pop(1)
    assert "lost" in kinds(told, HIT)


def test_what_came_before_an_early_end_must_be_whole_where_the_upstream_ended_it() -> None:
    told = story("truncated", "cut")
    told.calls[0].sent.append((b"", b"one more"))
    assert kinds(told) == {"lost"}


def test_a_second_call_is_allowed_only_after_a_failover_that_may_have_lost_the_claim() -> None:
    told = story()
    a_second_call(told)
    assert kinds(told, losses=(Loss("failover", 1.5, 4.0),)) == set()
    assert kinds(told, losses=(Loss("failover", 3.0, 4.0),)) == {"extra call"}
    assert kinds(told, losses=(Loss("empty", 1.5, 4.0),)) == {"extra call"}


def test_refusals_are_counted_and_bounded() -> None:
    told = story()
    refused = [Call(3, n, OWNER, 1.0, outcome="refused", ended=1.0) for n in range(4)]
    told.calls[:0] = refused[:2]
    told.calls[2].number = 2
    events = sent(4, call=2)
    told.calls[2].sent = events
    for each in told.transcripts:
        each.events = shown(events)
        each.events[-1] = Got(
            b"end", each.events[-1].data.replace(b'ts": 1', b'ts": 3'), each.events[-1].id
        )
    assert kinds(told) == set()
    told.calls[:0] = refused[2:]
    assert "extra call" in kinds(told)


def test_attempts_must_be_the_calls_that_came() -> None:
    told = story()
    told.calls.clear()
    a_second_call(told, 1.0)
    told.calls[0].number, told.calls[0].finished, told.calls[0].sent = 0, True, sent(4)
    assert kinds(told) == set()
    end = told.transcripts[0].events[-1]
    for each in told.transcripts:
        each.events[-1] = Got(end.name, end.data.replace(b'ts": 1', b'ts": 2'), end.id)
    assert kinds(told) == {"false end"}


def forgotten() -> Story:
    """Return the story of a stream that Redis forgot: 204, but no end."""
    told = story("interrupted", "left")
    for each in told.transcripts:
        del each.events[-2:]
    return told


def test_a_stream_may_be_forgotten_only_with_its_owner() -> None:
    empty = Loss("empty", 5.5, 6.0)
    assert kinds(forgotten()) == {"no end"}
    assert kinds(forgotten(), HIT) == {"no end"}
    assert kinds(forgotten(), losses=(empty,)) == {"no end"}
    assert kinds(forgotten(), HIT, losses=(empty,)) == set()
    assert kinds(forgotten(), replace(HIT, replica="replica-0-1"), losses=(empty,)) == {"no end"}
    assert kinds(forgotten(), HIT, losses=(Loss("empty", 0.1, 0.2),)) == {"no end"}


def test_who_waits_for_a_forgotten_stream_may_wait_as_long_as_redis_forgets_again() -> None:
    """Until two leases after the last time nobody knows whether its owner lives (DESIGN §5)."""
    told, empty = forgotten(), Loss("empty", 5.5, 6.0)
    for each in told.transcripts:
        each.final, each.ended = "unfinished", 60.0
    assert kinds(told, HIT, losses=(empty,)) == {"no end"}
    assert kinds(told, HIT, losses=(empty, Loss("empty", 49.0, 50.0))) == set()


def test_nor_does_anybody_know_while_redis_goes_away_again_and_again() -> None:
    """Whoever answers next may be another server, that knows less: two leases from then on."""
    told, empty = forgotten(), Loss("empty", 5.5, 6.0)
    for each in told.transcripts:
        each.final, each.ended = "unfinished", 60.0
    facts = Facts((HIT,), (empty,), (Outage(49.0, 50.0),), lease=2.0)
    assert judge(told, facts).findings == []
    assert judge(told, replace(facts, outages=(Outage(39.0, 40.0),))).findings
    assert judge(told, replace(facts, losses=())).findings


def test_an_owner_has_the_time_that_redis_answers_to_write_a_stream_again() -> None:
    empty, late = Loss("empty", 5.5, 6.0), replace(HIT, at=9.5, until=9.5)
    told = forgotten()
    told.calls[0].ended = 9.5
    facts = Facts((late,), (empty,), (), lease=2.0)
    assert [each.kind for each in judge(told, facts).findings] == ["no end", "no end"]
    facts = replace(facts, outages=(Outage(5.5, 6.0), Outage(6.1, 7.5)))
    assert judge(told, facts).findings == []
    facts = replace(facts, outages=(Outage(5.5, 6.0), Outage(8.6, 9.4)))
    assert judge(told, facts).findings


def test_a_stream_that_was_never_redeemed_may_be_forgotten() -> None:
    told = forgotten()
    told.calls.clear()
    for each in told.transcripts:
        each.events.clear()
        each.final, each.why = "refused", "410"
    assert kinds(told, losses=(Loss("empty", 1.5, 2.0),)) == set()
    assert kinds(told) == {"viewer lost"}


def test_a_gap_is_allowed_where_redis_lost_something_and_what_follows_is_judged_anew() -> None:
    told = story()
    gap(told.transcripts[0].events)
    loss = Loss("failover", 2.0, 4.0)
    assert kinds(told, losses=(loss,)) == set()
    told.transcripts[0].events.pop(5)
    assert "lost" in kinds(told, losses=(loss,))


# Of an upstream that keeps its answer


def kept(state: str, cancels: int, *, finished: bool = False) -> Story:
    """Return the story of a stream whose owner died, and that another replica went on with."""
    told = story(state, "whole" if finished else "left")
    told.calls[0] = replace(
        told.calls[0], replica="replica-0-1", kept=True, others=[OWNER], cancels=cancels
    )
    return told


@pytest.mark.parametrize(
    ("told", "hits", "found"),
    [
        (kept("done", 0, finished=True), (HIT,), set()),
        (kept("interrupted", 1), (HIT,), {"false end"}),
        (kept("interrupted", 1), (replace(HIT, kind="pause_long"),), {"false end"}),
        (kept("interrupted", 1), (replace(HIT, kind="term"),), set()),
        (kept("done", 1, finished=True), (), {"not stopped"}),
    ],
    ids=["went on", "killed", "paused", "drained", "done, and told to stop"],
)
def test_a_kept_answer_outlives_whoever_shows_it(
    told: Story, hits: tuple[Hit, ...], found: set[str]
) -> None:
    assert kinds(told, *hits) == found


@pytest.mark.parametrize(
    ("cancels", "finished", "found"),
    [
        (1, False, set()),
        (0, False, {"not stopped"}),
        (2, False, {"not stopped"}),
        (0, True, set()),
    ],
    ids=["once", "never", "twice", "it was whole"],
)
def test_an_upstream_that_keeps_an_answer_hears_of_a_cancel_once(
    cancels: int, finished: bool, found: set[str]
) -> None:
    told = kept("cancelled", cancels, finished=finished)
    told.deletions.append(Deletion(2.0, 200, "cancelled"))
    assert kinds(told) == found


def test_a_second_request_for_a_kept_answer_is_one_too_many() -> None:
    told = kept("done", 0, finished=True)
    told.calls.append(replace(told.calls[0], number=1, at=2.0))
    assert "extra call" in kinds(told, HIT)

"""Usage: what the gateway booked for each user, against what its streams' ends told and what was
served; and whether a user ever ran more streams at once than it may. Pure.

A stream adds to its user's usage exactly once. It may be missing only where Redis lost what it had
acknowledged at about its end, or where nobody saw how it ended.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tests.faults.plays import PROMPT_TOKENS, Call, tokens_of
from tests.faults.story import Facts, Finding, Hit, Loss, Outage, Story, answered
from tests.faults.viewer import Got

_LAG = 1.0  # Seconds before a failover of which the new master may know nothing.
_LATE = 3.0  # Seconds until a viewer sees the end, and its booking may be lost with it.
_ASKED = 2.0  # Seconds from a claim to its call, where nobody knows.
_UNSEEN = 0.3  # Seconds until the upstream sees that a call is left.

Place = tuple[str, str]  # User and preset.


class Row(NamedTuple):
    """What a user's streams of a preset took."""

    streams: int = 0
    prompt: int = 0
    completion: int = 0
    estimated: int = 0

    def plus(self, other: "Row") -> "Row":
        """Return the sum."""
        return Row(*map(sum, zip(self, other, strict=True)))

    def most(self, other: "Row") -> "Row":
        """Return the larger of each."""
        return Row(*map(max, zip(self, other, strict=True)))


class Due(NamedTuple):
    """What a stream has added at least, and at most."""

    least: Row
    most: Row


def rows_of(answers: dict[str, dict[str, Any]]) -> dict[Place, Row]:
    """Return what `GET /users/{user}/usage` told, by user: all days and models together."""
    rows: dict[Place, Row] = {}
    for user, answer in answers.items():
        for day in answer["days"]:
            names = ("streams", "prompt_tokens", "completion_tokens", "estimated_tokens")
            place, row = (user, str(day["preset"])), Row(*(int(day[name]) for name in names))
            rows[place] = rows.get(place, Row()).plus(row)
    return rows


def judge_usage(
    stories: Sequence[Story], rows: dict[Place, Row], facts: Facts
) -> Iterable[Finding]:
    """Yield who has something booked twice, or misses it, or has another than the ends told."""
    places: dict[Place, list[Story]] = {place: [] for place in rows}
    for story in stories:
        stream = story.stream
        places.setdefault((stream.user, stream.preset or "default"), []).append(story)
    for place, told in places.items():
        dues = [_due(story, facts) for story in told]
        if words := _wrong(dues, rows.get(place, Row())):
            numbers = [story.stream.number for story in told]
            yield Finding("booked", -1, f"{place}: {words}; the streams: {numbers}", numbers)


def _wrong(dues: list[Due], booked: Row) -> str:
    least, most = Row(), Row()
    for due in dues:
        least, most = least.plus(due.least), most.plus(due.most)
    for name, low, value, high in zip(Row._fields, least, booked, most, strict=True):
        if not low <= value <= high:
            return f"{value} of {name} where the ends told {low} to {high}"
    return ""


def _due(story: Story, facts: Facts) -> Due:
    ends = {_end(each.events) for each in story.transcripts} - {b""}
    if len(ends) != 1:
        return Due(Row(), _all(story))
    end = json.loads(ends.pop())
    row, begun = _told(end), end["attempts"] > 0 or bool(story.calls)
    seen = min(each.over for each in story.transcripts if _end(each.events))
    past = [each for each in facts.losses if each.at - _LAG <= seen]
    # Of a Cluster's servers one may forget an end and another one keep what was booked for it.
    least, most = row, row
    if any(each.until >= story.posted for each in past):
        least, most = Row(1), row.most(_all(story))
    lost = any(
        _is_emptied(story, seen, each, facts) if each.kind == "empty" else _is_cut(seen, each)
        for each in facts.losses
    )
    return Due(Row() if lost or not begun else least, most)


def _is_cut(seen: float, loss: Loss) -> bool:
    """Whether a failover may have lost an end, or its booking."""
    return loss.at - _LAG <= seen <= loss.until + _LATE


def _is_emptied(story: Story, seen: float, loss: Loss, facts: Facts) -> bool:
    """Whether a Redis that came back empty may have forgotten an end that nobody wrote again.

    Who saw it later saw what Redis had, or what a living owner did, who knows it for two leases.
    """
    due = facts.due(loss)
    if seen > due:
        return False
    calls = story.calls
    ended = max((each.ended or each.at for each in calls), default=story.posted)
    owners = {name for each in calls[-1:] for name in (each.replica, *each.others)}
    hit = any(
        (not owners or each.replica in owners) and each.leaves <= due and each.until >= ended - 1
        for each in facts.hits
    )
    known_until = min(ended - _UNSEEN, seen) + 2 * facts.lease
    return hit or (seen <= loss.until and due > known_until)


def _all(story: Story) -> Row:
    """Return the most that a stream may have taken, whatever its end was."""
    tokens = sum(_volume([_text(data) for _, data in call.sent])[1] for call in story.calls)
    prompt = 2 * PROMPT_TOKENS * max(1, len(story.calls))
    completion = tokens + max(2, tokens // 10)
    return Row(1, prompt, completion, prompt + completion)


def _told(end: dict[str, Any]) -> Row:
    tokens = end["tokens"] or {}
    prompt, completion = tokens.get("prompt") or 0, tokens.get("completion") or 0
    return Row(1, prompt, completion, (prompt + completion) if tokens.get("estimated") else 0)


def _end(events: list[Got]) -> bytes:
    return events[-1].data if events and events[-1].name == b"end" else b""


def judge_tokens(story: Story) -> Iterable[Finding]:
    """Yield where an end tells another usage than was served; about, where that was never told."""
    whole = [each.events for each in story.transcripts if _end(each.events)]
    if not whole or any(each.name == b"gap" for each in whole[0]):
        return
    row, served = _told(json.loads(_end(whole[0]))), _served(whole[0])
    tokens, most = _volume([_text(each.data) for each in whole[0]])
    if served is not None:
        if (row.prompt, row.completion, row.estimated) != (*served, 0):
            yield Finding("booked", story.stream.number, f"{row} where {served} was served")
    elif tokens and not (
        _about(row.completion, tokens, most) and _about(row.prompt, PROMPT_TOKENS, PROMPT_TOKENS)
    ):
        said = f"{row} where {tokens} to {most} tokens came for {PROMPT_TOKENS}"
        yield Finding("booked", story.stream.number, said)
    elif tokens and row.estimated != row.prompt + row.completion:
        yield Finding("booked", story.stream.number, f"{row} is a guess and not marked")


def _served(events: list[Got]) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion that the upstream told a viewer."""
    for event in events:
        if b'"usage":{' in event.data and event.name != b"end":
            told = json.loads(event.data)
            usage = told.get("response", told)["usage"]
            names = [name for name in ("prompt_tokens", "input_tokens") if name in usage]
            other = "completion_tokens" if "completion_tokens" in usage else "output_tokens"
            return usage[names[0]], usage[other]
    return None


def _volume(texts: list[str]) -> tuple[int, int]:
    """Return how many tokens these are at least and at most.

    Most are of no language: whether each is a token or several nobody can tell.
    """
    tokens = sum(map(tokens_of, texts))
    return tokens, max(tokens, sum(len(each.encode()) for each in texts) // 4)


def _text(data: bytes) -> str:
    """Return what an event says of the answer, "" for any other."""
    if b'"delta":' not in data:
        return ""
    told = json.loads(data)
    return str(told["choices"][0]["delta"]["content"] if "choices" in told else told["delta"])


def _about(guess: int, least: int, most: int) -> bool:
    return least - max(2, least / 10) <= guess <= most + max(2, most / 10)


def judge_slots(stories: Sequence[Story], facts: Facts, most: int) -> Iterable[Finding]:
    """Yield the calls that began while their user ran as many streams as it may."""
    users: dict[str, list[Story]] = {}
    for story in stories:
        if story.calls:
            users.setdefault(story.stream.user, []).append(story)
    for user, theirs in users.items():
        calls = [call for story in theirs for call in story.calls]
        for story in theirs:
            others, call = _others(story, calls, facts, most), story.calls[0]
            if len(others) >= most:
                words = f"{user} ran {others} of {most} when it began on {call.replica}"
                yield Finding("overrun", call.ticket, words, [call.ticket, *others])


def _others(story: Story, calls: list[Call], facts: Facts, most: int) -> list[int]:
    """Return the tickets that ran when a stream's call began, if those were too many."""
    call = story.calls[0]
    running = [each for each in calls if _runs(each, call, facts)]
    # Frozen between its claim and its call it may have lost its own slot.
    if len(running) < most or _is_hit(call, call.at, facts.hits, "pause_long"):
        return []
    claimed = _claimed(story, facts)
    return sorted({each.ticket for each in running if not _has_lapsed(each, claimed, call, facts)})


def _claimed(story: Story, facts: Facts) -> float:
    """Return when a stream got its slot: its events' ids tell, by Redis's clock."""
    began = story.calls[0].at
    ids = (each.id.partition("-")[0] for seen in story.transcripts for each in seen.events)
    epochs = [int(each) for each in ids if each.isdigit()]
    claimed = min(epochs, default=0) / 1000 - facts.zero
    return claimed if story.posted <= claimed <= began else began - _ASKED


def _runs(other: Call, call: Call, facts: Facts) -> bool:
    """Whether a call of another stream went on, and held its slot as far as one can know."""
    here = other.at < call.at and (not other.ended or other.ended > call.at + _UNSEEN)
    return here and other.ticket != call.ticket and not _is_hit(other, call.at, facts.hits)


def _is_hit(call: Call, when: float, hits: Iterable[Hit], kind: str = "") -> bool:
    names = {call.replica, *call.others}
    return any(
        each.replica in names
        and call.at - 1 <= each.until
        and each.at <= when
        and kind in {"", each.kind}
        for each in hits
    )


def _has_lapsed(other: Call, claimed: float, call: Call, facts: Facts) -> bool:
    """Whether Redis may have forgotten a slot, or had no word of its owner for a lease.

    That is since another stream `claimed` its place, and until its call. An owner prolongs a slot
    every third of a lease, so within half of one where it is heard at all.
    """
    half, names = facts.lease / 2, {other.replica, *other.others}
    stalls = [Outage(each.at, each.until) for each in facts.stalls if each.replica in names]
    away = [*facts.outages, *stalls]
    # One after the other they are one: between two there may have been no time for a word.
    times = [(each.at, answered(away, each.at, half) - half) for each in away]
    times = [(since, until) for since, until in times if until - since > half]
    times += [(each.at - _LAG, each.until) for each in facts.losses]
    return any(
        since <= call.at and claimed <= answered(away, until, half) for since, until in times
    )

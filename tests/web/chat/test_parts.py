"""Parts: an answer as a UI message stream, the same wherever it is cut and whoever makes it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.eventlog.entries import EventId
from gateway.sse import Event, encode, parse
from gateway.upstream.protocols.readings import (
    Called,
    CallOver,
    Given,
    Reading,
    Said,
    Source,
    Thought,
    ThoughtOver,
)
from gateway.web.chat.parts import UiParts

Told = list[Reading] | tuple[str, dict[str, Any]]
DONE = ("end", {"state": "done", "finish_reason": "stop"})


class Script:
    """Reads events whose data are the numbers of these readings."""

    def __init__(self, told: list[Told]) -> None:
        self.told = told

    def of(self, event: Event) -> list[Reading]:
        told = self.told[int(event.data)]
        assert isinstance(told, list)
        return told


def log(told: list[Told]) -> list[bytes]:
    """Return the frames of a log, one for each event."""
    frames = []
    for number, each in enumerate(told):
        name, data = ("", number) if isinstance(each, list) else each
        frames.append(encode(json.dumps(data).encode(), b"1-%d" % (number + 1), name.encode()))
    return frames


def made(told: list[Told], after: int = 0) -> UiParts:
    """Return what makes the parts of a log, for who has so many of its events."""
    place = EventId(1, after) if after else None
    return UiParts("s", "m", lambda: Script(told), place)


def parts_of(told: list[Told]) -> list[dict[str, Any]]:
    """Return all parts of a log."""
    ui = made(told)
    return [json.loads(each.data) for each in parse(ui.start() + ui.frames(b"".join(log(told))))]


BEGUN = [{"type": "start", "messageId": "m"}, {"type": "start-step"}]


def finish(reason: str = "stop") -> list[dict[str, Any]]:
    return [{"type": "finish-step"}, {"type": "finish", "finishReason": reason}]


def text(number: int, *pieces: str, kind: str = "text", **more: Any) -> list[dict[str, Any]]:
    name = f"s-{number}"
    deltas = [{"type": f"{kind}-delta", "id": name, "delta": each} for each in pieces]
    return [
        {"type": f"{kind}-start", "id": name},
        *deltas,
        {"type": f"{kind}-end", "id": name, **more},
    ]


def called(call_id: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = [
        {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": each}
        for each in pieces
    ]
    return [{"type": "tool-input-start", "toolCallId": call_id, "toolName": "see"}, *deltas]


def available(call_id: str, given: Any, **more: Any) -> dict[str, Any]:
    named = {"toolCallId": call_id, "toolName": "see"}
    return {"type": "tool-input-available", **named, **more, "input": given}


SIGNED = {"anthropic": {"signature": "x"}}
SHAPES: dict[str, tuple[list[Told], list[dict[str, Any]]]] = {
    "text in pieces, one of them half a character": (
        [[Said("He")], [], [Said("\ud83d"), Said("\ude00")], DONE],
        [*text(1, "He", "\ud83d", "\ude00"), *finish()],
    ),
    "another block is another part": (
        [[Said("a", 0)], [Said("b", 1)], DONE],
        [*text(1, "a"), *text(2, "b"), *finish()],
    ),
    "thoughts, signed ones, and some that nobody is shown": (
        [
            [Thought("Hm")],
            [ThoughtOver(0, SIGNED)],
            [ThoughtOver(1, SIGNED), ThoughtOver(2, {})],
            [Said("a")],
            DONE,
        ],
        [
            *text(1, "Hm", kind="reasoning", providerMetadata=SIGNED),
            *text(2, kind="reasoning", providerMetadata=SIGNED),
            *text(3, "a"),
            *finish(),
        ],
    ),
    "calls: in pieces, without an end or an input, without an id, under one that is taken": (
        [
            [Said("a"), Called(0, "see", "c")],
            [Given(0, '{"a"'), Given(0, ":1}"), CallOver(0, SIGNED), Given(0, "late")],
            [Called(1, "see"), Called(2, "see", "c")],
            ("end", {"state": "done", "finish_reason": "STOP"}),
        ],
        [
            *text(1, "a"),
            *called("c", '{"a"', ":1}"),
            available("c", {"a": 1}, providerMetadata=SIGNED),
            *called("s-2"),
            *called("s-3"),
            available("s-2", {}),
            available("s-3", {}),
            *finish("tool-calls"),
        ],
    ),
    "a page that is told twice": (
        [[Source("https://a/", "A"), Source("https://a/")], [Source("https://b/")], DONE],
        [
            {"type": "source-url", "sourceId": "s-1", "url": "https://a/", "title": "A"},
            {"type": "source-url", "sourceId": "s-2", "url": "https://b/"},
            *finish(),
        ],
    ),
    "an answer that was cut short by its bound": (
        [[Said("a")], ("end", {"state": "done", "finish_reason": "length"})],
        [*text(1, "a"), *finish("length")],
    ),
    "one that was cancelled": (
        [[Said("a")], ("end", {"state": "cancelled", "finish_reason": None})],
        [*text(1, "a")[:-1], {"type": "abort"}],
    ),
    "one that failed": (
        [
            ("failure", {"code": "upstream_cut", "message": "It broke."}),
            ("end", {"state": "failed"}),
        ],
        [{"type": "error", "errorText": "It broke."}],
    ),
    "one of which nothing more is known": (
        [[Said("a")], ("end", {"state": "interrupted"})],
        [
            *text(1, "a")[:-1],
            {"type": "error", "errorText": "The answer broke off before it was whole."},
        ],
    ),
    "one that was begun anew before anything was shown": (
        [[], ("reset", {}), [Said("a")], DONE],
        [*text(1, "a"), *finish()],
    ),
}


@pytest.mark.parametrize(("told", "parts"), SHAPES.values(), ids=SHAPES)
def test_readings_become_parts(told: list[Told], parts: list[dict[str, Any]]) -> None:
    assert parts_of(told) == BEGUN + parts


@pytest.mark.parametrize("given_", ["{", "[NaN]", '{"a":1e999}', "x" * 9, "[" * 100_000])
def test_what_is_no_json_is_an_input_that_failed(given_: str) -> None:
    told: list[Told] = [[Called(0, "see", "c"), Given(0, given_), CallOver(0, {})], DONE]
    failed = parts_of(told)[-3]
    assert (failed["type"], failed["input"]) == ("tool-input-error", given_)
    assert "JSON" in failed["errorText"]


def test_who_was_at_an_earlier_answer_has_this_one_from_its_start() -> None:
    told: list[Told] = [[], [Said("a")], DONE]
    ui = UiParts("s", "m", lambda: Script(told), EventId(0, 7))
    assert ui.start() == b""
    sent = [json.loads(each.data) for each in parse(ui.frames(b"".join(log(told))))]
    assert sent == parts_of(told)


def test_what_was_shown_and_is_void_ends_without_an_end() -> None:
    told: list[Told] = [[Said("a")], ("reset", {}), [Said("b")], DONE]
    ui = made(told)
    sent = ui.frames(b"".join(log(told)))
    assert [json.loads(each.data)["type"] for each in parse(sent)] == ["text-start", "text-delta"]
    assert (ui.void, ui.state) == (True, "")


readings = st.one_of(
    st.builds(Said, st.text(min_size=1), st.integers(0, 2)),
    st.builds(Thought, st.text(min_size=1), st.integers(0, 2)),
    st.builds(ThoughtOver, st.integers(0, 2), st.sampled_from([{}, SIGNED])),
    st.builds(Called, st.integers(0, 2), st.just("see"), st.sampled_from(["", "c", "d"])),
    st.builds(Given, st.integers(0, 2), st.text(min_size=1)),
    st.builds(CallOver, st.integers(0, 2), st.just({})),
    st.builds(Source, st.sampled_from(["https://a/", "https://b/"])),
)
ends: list[Told] = [DONE, ("end", {"state": "cancelled"}), ("end", {"state": "failed"})]


@given(
    st.lists(st.lists(readings, max_size=3), max_size=8),
    st.sampled_from(ends),
    st.lists(st.integers(0, 4000), max_size=6),
)
def test_wherever_an_answer_is_cut_its_parts_are_the_same(
    told: list[Told], end: Told, cuts: list[int]
) -> None:
    told = [*told, end]
    frames = log(told)
    whole = made(told).frames(b"".join(frames))
    ui, joined = made(told), b"".join(frames)
    places = sorted({0, *(min(each, len(joined)) for each in cuts), len(joined)})
    assert b"".join(ui.frames(joined[a:b]) for a, b in pairwise(places)) == whole
    for had in range(1, len(told)):
        first, rest = made(told), made(told, had)
        assert rest.start() == b""
        assert first.frames(b"".join(frames[:had])) + rest.frames(joined) == whole


def test_of_the_parts_of_an_event_only_the_last_has_its_id() -> None:
    told: list[Told] = [[Said("a")], [], DONE]
    ui = made(told)
    sent = parse(ui.start() + ui.frames(b"".join(log(told))))
    assert [each.id for each in sent] == [b"", b"", b"", b"1-1", b"", b"", b"1-3"]

"""What the events of a response tell of its end, its errors, its price and its text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runs.endings import ending_events, natural_ending
from gateway.sse import Event, Parser
from gateway.upstream.protocols import terminal_state
from gateway.upstream.protocols.responses import Responses
from gateway.upstream.protocols.responses_events import closes
from gateway.upstream.protocols.responses_state import ResponsesState
from gateway.upstream.protocols.responses_text import ResponsesText
from tests.support import sse


def of(kind: str, /, **members: Any) -> bytes:
    """Return the data of an event."""
    return json.dumps({"type": f"response.{kind}", **members}).encode()


def told_by(*data: bytes) -> ResponsesState:
    """Return what these events tell."""
    seen = ResponsesState()
    for each in data:
        seen.see(Event(each))
    return seen


HEL, LO = of("output_text.delta", delta="hel"), of("output_text.delta", delta="lo")
END = of("completed", response={"status": "completed", "usage": {"output_tokens": 2}})
SHORT = sse(of("created"), HEL, LO, END)


def test_an_answer_cut_at_any_byte_is_whole_only_with_its_last_event() -> None:
    for framed in (True, False):
        for cut in range(len(SHORT) + 1):
            parser, seen = Parser(1 << 20), ResponsesState()
            found = parser.feed(SHORT[:cut])
            if framed:
                found += [each for each in parser.rest() if Responses().is_whole(each)]
            for event in found:
                seen.see(event)
            seen.end(framed=framed)
            missing = len(SHORT) - cut
            assert seen.finished == (missing <= (2 if framed else 0)), cut
            assert seen.error is None


def test_the_pieces_are_counted_until_the_price_is_told() -> None:
    seen = told_by(of("created"), of("reasoning_text.delta", delta="hm"), HEL, LO)
    assert seen.estimate() == {"output_tokens": 3, "estimated": True}
    assert seen.tokens == (None, 3, None, 3)
    seen.see(Event(END))
    assert seen.estimate() == seen.usage == {"output_tokens": 2}
    assert seen.tokens == (None, 2, None, False)


def test_tokens_are_told_in_the_one_form() -> None:
    usage = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
    assert told_by(of("completed", response={"usage": usage})).tokens == (9, 2, 4, False)


@pytest.mark.parametrize(
    ("code", "again"),
    [("server_error", True), ("rate_limit_exceeded", True), ("invalid_prompt", False)],
)
def test_asking_again_is_told_by_the_code(code: str, again: bool) -> None:
    error = {"code": code, "message": "no"}
    in_snapshot = of("failed", response={"status": "failed", "error": error})
    alone = json.dumps({"type": "error", **error}).encode()
    assert [told_by(data).retryable for data in (in_snapshot, alone)] == [again, again]


def test_a_long_reason_is_cut() -> None:
    details = {"reason": "x" * 5000}
    seen = told_by(of("incomplete", response={"incomplete_details": details}))
    assert seen.finish_reason == "x" * 100


@pytest.mark.parametrize("reason", [None, 7, "", "null", [], {"x": 1}])
def test_a_reason_that_tells_none_is_that_it_is_incomplete(reason: Any) -> None:
    response = {"incomplete_details": {"reason": reason}}
    assert told_by(of("incomplete", response=response)).finish_reason == "incomplete"


TELLS_NOTHING = [
    HEL,
    of("created", response={"id": "r", "error": None, "status": "in_progress"}),
    of("output_text.delta", delta='{"error":{"message":"x"},"type":"response.completed"}'),
    of("output_text.done", text='{"type":"error"} "status":"cancelled"'),
    of("output_item.done", item={"type": "message", "status": "completed", "error": None}),
    b'{"type":"keepalive","sequence_number":3}',
]


@pytest.mark.parametrize("data", TELLS_NOTHING)
def test_an_event_that_tells_nothing_is_not_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_state, "decoded", None)
    seen = told_by(data)
    assert (seen.closed, seen.error, seen.finished) == (False, None, False)


CLOSING = [END, of("incomplete"), of("failed"), of("done"), b"[DONE]", b" [DONE] "]
CLOSING += [of("in_progress", response={"status": "cancelled"}), of("cancelled")]


@pytest.mark.parametrize("data", [*CLOSING, *TELLS_NOTHING, b"", b"[]", b"{", b"\xff"])
def test_what_closes_an_answer_is_what_its_state_takes_for_its_close(data: bytes) -> None:
    assert closes(data) == told_by(data).closed == (data in CLOSING)


def test_nothing_after_the_close_is_seen() -> None:
    seen = told_by(HEL, END, LO, of("failed", response={"usage": {"output_tokens": 9}}), b"[DONE]")
    assert (seen.finished, seen.error, seen.pieces) == (True, None, 1)
    assert seen.usage == {"output_tokens": 2}


def test_a_resumed_text_goes_on_with_the_pieces_that_it_began_with() -> None:
    events = [Event(each) for each in (of("created"), HEL, LO)]
    whole = Event(of("output_text.done", text="hello"))
    assert ResponsesText(events).text_of(whole) == ""
    assert ResponsesText(events[:1]).text_of(whole) == "hello"
    assert ResponsesText([whole]).text_of(Event(HEL)) == "hel"


# Whatever comes


leaves = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9)
leaves |= st.sampled_from(["completed", "failed", "cancelled", "incomplete", "message", "x"])
NAMES = ["type", "response", "error", "status", "usage", "output", "item", "part", "content"]
NAMES += ["delta", "text", "incomplete_details", "reason", "message", "code", "instructions", "id"]
NAMES += ["sequence_number", "errors", "object"]
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=12,
)
KINDS = ["created", "completed", "failed", "incomplete", "output_text.delta", "output_item.done"]
KINDS += ["content_part.done", "output_text.done", "done", "cancelled"]
chunks = st.builds(
    lambda kind, more: json.dumps({**more, "type": f"response.{kind}"}).encode(),
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=5),
)
datas = st.lists(chunks | st.binary(max_size=20) | values.map(lambda v: json.dumps(v).encode()))


@given(datas, st.booleans())
def test_no_event_breaks_the_run_or_its_end(data: list[bytes], framed: bool) -> None:
    seen, text = ResponsesState(), ResponsesText()
    for each in data:
        seen.see(Event(each))
        assert isinstance(text.text_of(Event(each)), str)
        seen.suspect(Event(each, b"error"))
    seen.end(framed=framed)
    ending = natural_ending(seen, strayed=False)
    if ending is not None:
        ending_events(ending, seen, 1)
    assert ResponsesText(map(Event, data)).text_of(Event(b"")) == ""

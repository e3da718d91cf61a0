"""What the events of a chat completion tell of its end, its errors and its price."""

import json
from typing import Any

import pytest

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.chat_state import ChatState
from gateway.upstream.protocols.chat_text import ChatText
from tests.support import chunk


def told_by(*data: bytes, choices: int = 1) -> ChatState:
    """Return what these events tell."""
    seen = ChatState(choices)
    for each in data:
        seen.see(Event(each))
    return seen


def of(**members: Any) -> bytes:
    """Return the data of a chunk with these members."""
    return json.dumps({"object": "chat.completion.chunk", **members}).encode()


def test_a_completion_is_not_finished_by_text() -> None:
    seen = told_by(chunk("Hel"), chunk("lo"))
    assert (seen.finished, seen.finish_reason, seen.usage) == (False, None, None)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "new"])
def test_a_finish_reason_finishes_it(reason: str) -> None:
    seen = told_by(chunk("Hello"), chunk("", finish=reason))
    assert (seen.finished, seen.finish_reason) == (True, reason)


def test_done_finishes_it_without_a_reason() -> None:
    seen = told_by(chunk("Hello"), b"[DONE]")
    assert (seen.finished, seen.closed, seen.finish_reason) == (True, True, None)


@pytest.mark.parametrize(
    "data", [b"[DONE", b"DONE", b'"[DONE]"', b"", b"[done]", b'{"x":"[DONE]"}']
)
def test_nothing_else_is_done(data: bytes) -> None:
    assert not told_by(data).finished


def test_every_choice_must_finish() -> None:
    two = [chunk("", finish="stop", index=1), chunk("", finish="length", index=0)]
    assert not told_by(two[0], choices=2).finished
    assert not told_by(two[0], two[0], choices=2).finished
    assert told_by(*two, choices=2).finished


def test_the_reason_told_is_that_of_the_first_choice() -> None:
    seen = told_by(chunk("", finish="stop", index=1), chunk("", finish="length"), choices=2)
    assert seen.finish_reason == "length"


def test_usage_is_kept_and_null_is_none() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    assert told_by(of(choices=[], usage=None)).usage is None
    assert told_by(of(choices=[], usage=usage), of(choices=[], usage=None)).usage == usage


@pytest.mark.parametrize("spaces", [b"", b" ", b"\n  "])
def test_white_space_hides_nothing(spaces: bytes) -> None:
    data = b'{"choices":[{"index":0,"finish_reason"%b:%b"stop"}]}' % (spaces, spaces)
    assert told_by(data).finish_reason == "stop"


@pytest.mark.parametrize(
    ("error", "kept"),
    [({"message": "no", "code": 1}, {"message": "no", "code": 1}), ("no", {"message": "no"})],
)
def test_an_error_is_kept_and_finishes_nothing(error: Any, kept: dict[str, Any]) -> None:
    seen = told_by(of(error=error))
    assert (seen.error, seen.finished) == (kept, False)


@pytest.mark.parametrize("error", [None, {}, "", False])
def test_no_error_is_none(error: Any) -> None:
    assert told_by(of(error=error)).error is None


TEXTS = ['"finish_reason": "stop"', '{"usage": {"x": 1}}', '"error": {"message": "x"}', "[DONE]"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_about_the_protocol_is_a_text(text: str) -> None:
    seen = told_by(chunk(text))
    assert (seen.finished, seen.usage, seen.error, seen.pieces) == (False, None, None, 1)


def test_events_that_tell_nothing_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def noted(data: bytes) -> dict[str, Any]:
        seen.append(data)
        return decoded(data)

    monkeypatch.setattr("gateway.upstream.protocols.chat_state.decoded", noted)
    last = chunk("", finish="stop")
    told_by(chunk("Hel"), chunk("lo"), b"{no JSON", b"\xff\xfe", of(usage=None), last)
    assert seen == [last]


NONSENSE = [
    *(b'{"usage":1', b'"usage":{}', b'[{"usage":{"x":1}}]', b'{"usage":[1],"choices":5}'),
    *(b'{"choices":[5,null,[]],"usage":7}', b'{"choices":[{"finish_reason":5}]}'),
    *(b'{"choices":{"finish_reason":"stop"}}', b'{"usage":' + b"[" * 100_000, b'"usage":\xff'),
    b'{"choices":[{"finish_reason":null,"delta":{"content":[[]]}}],"usage":[]}',
]


@pytest.mark.parametrize("data", NONSENSE)
def test_nonsense_tells_nothing_and_breaks_nothing(data: bytes) -> None:
    seen = told_by(data)
    assert (seen.finished, seen.usage, seen.error) == (False, None, None)
    assert ChatText(0).text_of(Event(data)) == ""


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}, (12, 40, None)),
        ({"input_tokens": 12, "output_tokens": 40}, (12, 40, None)),
        ({"prompt_tokens": 12, "prompt_tokens_details": {"cached_tokens": 8}}, (12, None, 8)),
        ({"prompt_tokens": 12, "prompt_tokens_details": None}, (12, None, None)),
        ({"input_tokens": 12, "input_tokens_details": {"cached_tokens": 0}}, (12, None, 0)),
        ({"prompt_tokens": 12, "prompt_cache_hit_tokens": 4}, (12, None, 4)),
        ({"prompt_tokens": 12.0, "completion_tokens": 40.5}, (12, None, None)),
        ({"prompt_tokens": "12", "completion_tokens": True}, (None, None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 1 << 53}, (None, None, None)),
        ({"prompt_tokens": [12], "prompt_tokens_details": [8]}, (None, None, None)),
        ({"total_tokens": 7}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_tokens_are_told_in_one_form_whatever_a_server_calls_them(
    usage: dict[str, Any], tokens: tuple[int | None, ...]
) -> None:
    assert told_by(of(choices=[], usage=usage)).tokens == (*tokens, False)


def test_thoughts_that_are_counted_in_the_total_alone_are_of_the_completion() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 152}
    assert told_by(of(choices=[], usage=usage)).tokens == (12, 140, None, False)


def test_tokens_that_were_not_told_are_estimated() -> None:
    words = chunk("Hel"), chunk("lo")
    assert told_by(*words).tokens == (None, 2, None, 2)
    assert told_by(*words, of(usage={"prompt_tokens": 7})).tokens == (7, 2, None, 2)
    assert told_by(*words, of(usage={"completion_tokens": 9})).tokens == (None, 9, None, False)
    assert not told_by().tokens.known


def test_pieces_estimate_the_usage_that_was_never_told() -> None:
    seen = told_by(chunk("Hel"), chunk("lo"))
    assert seen.estimate() == {"completion_tokens": 2, "estimated": True}


def test_a_usage_that_was_told_is_not_estimated() -> None:
    assert told_by(chunk("a"), of(usage={"completion_tokens": 9})).estimate() == {
        "completion_tokens": 9
    }


def test_nothing_received_is_not_estimated() -> None:
    assert told_by().estimate() is None

"""Ollama's chat and generate: what is sent, and what each shape of an answer ends as."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.ollama import Ollama, OllamaState
from tests.support import ask
from tests.upstream.protocols.shapes import Shape, before, check, data, read, state, survives

KIND = "application/x-ndjson"
PRESET = Preset.model_validate({"protocol": "ollama", "url": "http://u/api/chat"})
TOOL = {"function": {"name": "f", "arguments": {"done": True, "error": "no"}}}


def line(**members: Any) -> bytes:
    """Return a line as Ollama writes it."""
    return data({"model": "m", "created_at": "2026-11-28T07:00:00Z", **members}) + b"\n"


def says(text: str = "", **members: Any) -> bytes:
    """Return a line of a chat."""
    return line(message={"role": "assistant", "content": text}, **{"done": False, **members})


def last(reason: str | None = "stop", **members: Any) -> bytes:
    """Return the last line of a chat."""
    told = {"done_reason": reason} if reason else {}
    return says(**told, **{"done": True, **USAGE, **members})


USAGE = {"total_duration": 4_000_000, "prompt_eval_count": 26, "eval_count": 15}
WHOLE = [says("Hel"), says("lo"), last()]
HELLO = WHOLE[:2]
ERROR = data({"error": "BOOM"}) + b"\n"
GENERATE = [line(response="Hel", done=False), line(response="lo", done=False)]


def done(*body: bytes, text: str = "Hello", told: str | None = "stop", **more: Any) -> Shape:
    """Return a shape that is whole."""
    return Shape(b"".join(body), "done", told, text, **{"usage": USAGE, **more})


def failed(*body: bytes, text: str = "", says: str = "BOOM", **more: Any) -> Shape:
    """Return a shape that is an error."""
    return Shape(b"".join(body), "failed", None, text, says=says, **more)


def truncated(*body: bytes, text: str = "Hello", **more: Any) -> Shape:
    """Return a shape that is not whole."""
    return Shape(b"".join(body), "truncated", more.pop("told", None), text, **more)


SHAPES = {
    "whole": done(*WHOLE),
    "whole, and closed": done(*WHOLE, framed=False),
    "spaced JSON": done(*(each.replace(b":true", b": true") for each in WHOLE)),
    "CR LF": done(*(each.replace(b"\n", b"\r\n") for each in WHOLE)),
    "blank lines": done(b"\n", b"\n".join(WHOLE)),
    "generate": done(*GENERATE, line(response="", done=True, done_reason="stop", context=[1],
                                     **USAGE)),
    "cut at its length": done(*HELLO, last("length"), told="length"),
    "no reason": done(*HELLO, last(None), told=None),
    "a prompt that was cached": done(
        *HELLO, says(done=True, done_reason="stop", eval_count=15), usage={"eval_count": 15}
    ),
    "thoughts": done(
        line(message={"role": "assistant", "content": "", "thinking": "hm"}, done=False), *WHOLE
    ),
    "a call of a tool": done(
        line(message={"role": "assistant", "content": "", "tool_calls": [TOOL]}, done=False),
        last(), text="",
    ),
    "loaded": done(says(done=True, done_reason="load"), text="", told="load", usage=None),
    "all in one line": done(says("Hello", done=True, done_reason="stop", **USAGE)),
    "its end in a text": done(says('{"done":true}'), says("\u2028"), last(),
                              text='{"done":true}\u2028'),
    "the end twice, and text after it": done(*WHOLE, WHOLE[2], says("more"), WHOLE[2]),
    "an error after the end": done(*WHOLE, ERROR),
    "its last newline missing": done(*HELLO, WHOLE[2][:-1]),
    "another type": done(*WHOLE, type="application/jsonl; charset=utf-8"),
    "no type that is right": done(*WHOLE, type="application/json"),
    "a reason without done at a whole end": done(
        *HELLO, says(done=False, done_reason="stop"), usage=None
    ),
    "a reason without done that more follows": truncated(
        says("Hel", done_reason="stop"), says("lo"), told="stop"
    ),
    "a reason without done, and closed": truncated(
        *HELLO, says(done_reason="stop"), told="stop", framed=False
    ),
    "the same reason in every line": done(
        says("Hel", done_reason="stop"), says("lo", done_reason="stop"), usage=None
    ),
    "no end": truncated(*HELLO),
    "no end, and closed": truncated(*HELLO, framed=False),
    "its last newline missing, and closed": truncated(*HELLO, WHOLE[2][:-1], framed=False),
    "done that is no truth": truncated(*HELLO, says(done="true"), says(done=1)),
    "half of a line": truncated(*HELLO, WHOLE[2][:-5]),
    "a reason that breaks off": truncated(*HELLO, last("abort"), told="abort", usage=USAGE,
                                          code="upstream_broke_off"),
    "a reason that is an error": Shape(b"".join([*HELLO, last("error")]), "failed", "error",
                                       "Hello", usage=USAGE),
    "an error": failed(*HELLO, ERROR, text="Hello"),
    "an error first": failed(ERROR),
    "an error that is an object": failed(*HELLO, data({"error": {"message": "BOOM"}}) + b"\n",
                                         text="Hello"),
    "an error, and an end": failed(*HELLO, ERROR, last(None), text="Hello", usage=USAGE),
    "an error without a newline": failed(*HELLO, ERROR[:-1], text="Hello"),
    "that, and closed": failed(*HELLO, ERROR[:-1], text="Hello", framed=False),
    "a pretty error": failed(b'{\n  "error": {\n    "message": "BOOM"\n  }\n}\n'),
    "a pretty error without a newline": failed(b'{\n  "error": "BOOM"\n}'),
    "a lone end": failed(data({"done": True}), says="without an answer", code="empty_answer"),
    "nothing": failed(b"", says="without an answer", code="empty_answer"),
    "blank lines alone": failed(b"\n\n", says="without an answer", code="empty_answer"),
    "an array": failed(data([{"error": "BOOM"}])),
    "a page": failed(b"<html>\n\n<h1>BOOM</h1>\n", says="", code="upstream_not_a_stream"),
    "a page by its type": failed(b"<h1>BOOM</h1>", says="text/html", type="text/html",
                                 code="upstream_not_a_stream"),
    "an event stream": failed(b'data: {"error": "BOOM"}\n\n', type="text/event-stream", says="",
                              code="upstream_not_a_stream"),
    "an event in its type": failed(b'data: {"error": "BOOM"}\n\n'),
    "an event under a 500": failed(b'data: {"error": "BOOM"}\n\n', status=500,
                                   code="upstream_refused"),
    "words under a 404": failed(ERROR, status=404, code="upstream_refused"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_ends_as_its_upstream_meant_it(shape: Shape) -> None:
    await check(shape, KIND, {"protocol": "ollama"})


@pytest.mark.parametrize("framed", [True, False])
def test_an_answer_cut_at_any_byte_is_done_only_with_its_end(framed: bool) -> None:
    body = b"".join(WHOLE)
    for at in range(len(body) + 1):
        seen, _, text = read(PRESET, body[:at], framed=framed)
        whole = at >= len(body) - framed  # The newline is missing.
        assert (state(seen) == "done", text.startswith("Hello")) == (
            whole, at >= len(b"".join(HELLO)) - framed
        ), at  # fmt: skip


def test_where_it_is_cut_between_reads_makes_no_difference() -> None:
    body = b"".join(WHOLE)
    for at in range(len(body) + 1):
        seen, events, text = read(PRESET, body[:at], body[at:], framed=False)
        assert (state(seen), text, len(events)) == ("done", "Hello", len(WHOLE))


def test_lines_that_tell_nothing_of_the_end_are_not_decoded() -> None:
    assert not any(OllamaState()._tells(Event(each)) for each in [*HELLO, *GENERATE])


def test_the_price_of_an_answer_that_was_cut_is_estimated() -> None:
    seen, _, _ = read(PRESET, *HELLO, framed=False)
    assert seen.estimate() == {"eval_count": 2, "estimated": True}
    assert seen.tokens == Tokens(None, 2, estimated=2)


def test_tokens_are_those_of_the_last_line() -> None:
    seen, _, _ = read(PRESET, *WHOLE, framed=False)
    assert seen.tokens == Tokens(26, 15)


async def test_what_is_sent_asks_for_lines_and_a_key_is_a_bearer_token() -> None:
    async with before(b"", {"protocol": "ollama"}) as (gate, calls):
        await gate.read(await gate.ticket(ask(options={"num_predict": 7})))
    head = calls[0].head.lower()
    assert b"\r\naccept: application/x-ndjson\r\n" in head
    assert b"\r\nauthorization: bearer sk-of-the-tests\r\n" in head
    assert calls[0].json == {**ask(options={"num_predict": 7}), "stream": True}


@pytest.mark.parametrize(("wrong", "code"), [
    ({"stream": False}, "stream_required"), ({"model": "b"}, "model_not_allowed"),
])  # fmt: skip
def test_what_is_not_allowed_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejected) as raised:
        Ollama().prepare(Preset.model_validate({"models": ["a"]}), {"model": "a", **wrong})
    assert raised.value.code == code


def test_another_spelling_of_the_model_is_not_sent() -> None:
    given = Preset.model_validate({"models": ["a"]})
    assert Ollama().prepare(given, {"model": "a", "Model": "b"}) == {"model": "a", "stream": True}


NAMES = ["message", "content", "response", "done", "done_reason", "error", "eval_count", "thinking"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "error"]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(NAMES), each, max_size=5)
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), values, max_size=6), max_size=4))
def test_no_shape_of_a_line_breaks_anything(chunks: list[dict[str, Any]]) -> None:
    events = (Event(data(value)) for value in chunks)
    survives(Ollama(), events, Ollama().completion())


def test_the_tokens_of_our_prompt_do_not_come_back_with_the_last_line_of_generate() -> None:
    end = line(response='"context":[1]', done=True, done_reason="stop", context=[128006, 9125])
    whole = b"".join([*GENERATE, end])
    for system, shown in (("", [128006, 9125]), ("House rules.", None)):
        told = {"protocol": "ollama", "url": "http://u/api/generate", "system": system}
        for size in (1, 7, len(whole)):
            frames = Ollama().frames(Preset.model_validate(told), 4096)
            cuts = [whole[at : at + size] for at in range(0, len(whole), size)]
            *before, last_line = [event.data for cut in cuts for event in frames.feed(cut)]
            assert before == [each.strip() for each in GENERATE]
            assert decoded(last_line) == {**decoded(end), "context": shown}

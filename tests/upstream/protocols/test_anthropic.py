"""Anthropic's Messages: what is sent, and what each shape of an answer ends as."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event, parse, safe_name
from gateway.upstream.protocols.anthropic import Anthropic, AnthropicState
from tests.support import ask
from tests.upstream.protocols.shapes import Shape, before, check, data, event, read, state, survives

KIND = "text/event-stream"
PRESET = Preset.model_validate({"protocol": "anthropic", "url": "http://u/v1/messages"})


def named(kind: str, **members: Any) -> bytes:
    """Return an event as Anthropic sends it."""
    return event({"type": kind, **members}, kind)


def start(**usage: Any) -> bytes:
    """Return the first event; its usage is a beginning."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    usage = usage or {"input_tokens": 25, "output_tokens": 1}
    return named("message_start", message={**message, "stop_reason": None, "usage": usage})


def block(kind: str = "text", index: int = 0, **members: Any) -> bytes:
    """Return the start of a content block."""
    return named("content_block_start", index=index, content_block={"type": kind, **members})


def delta(kind: str = "text_delta", index: int = 0, **members: Any) -> bytes:
    """Return a piece of one."""
    return named("content_block_delta", index=index, delta={"type": kind, **members})


def reason(word: Any = "end_turn", **usage: Any) -> bytes:
    """Return the event that tells the reason and what the answer took."""
    said = {"stop_reason": word, "stop_sequence": None}
    return named("message_delta", delta=said, usage=usage or {"output_tokens": 15})


PING, STOP = named("ping"), named("message_stop")
CLOSE = named("content_block_stop", index=0)
OVERLOADED = named("error", error={"type": "overloaded_error", "message": "BOOM"})
HELLO = [start(), block(text=""), PING, delta(text="Hel"), delta(text="lo"), CLOSE]
WHOLE = [*HELLO, reason(), STOP]
USAGE = {"input_tokens": 25, "output_tokens": 15}


def done(*body: bytes, text: str = "Hello", told: str | None = "end_turn", **more: Any) -> Shape:
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
    "without names": done(*(each.partition(b"\n")[2] for each in WHOLE)),
    "without types": done(*(each.replace(b'"type":"message_stop"', b"") for each in WHOLE)),
    "spaced JSON": done(*(each.replace(b'":"', b'": "') for each in WHOLE)),
    **{
        f"the reason {word}": done(*HELLO, reason(word), STOP, told=word)
        for word in ("max_tokens", "stop_sequence", "pause_turn", "refusal", "a_new_one")
    },
    "a call of a tool": done(
        start(), block("tool_use", id="t", name="f", input={}),
        delta("input_json_delta", partial_json='{"text":"message_stop"'),
        delta("input_json_delta", partial_json="}"), CLOSE, reason("tool_use"), STOP,
        text="", told="tool_use",
    ),
    "thoughts before the text": done(
        start(), block("thinking", thinking="", signature=""),
        delta("thinking_delta", thinking="hm"), delta("signature_delta", signature="x"), CLOSE,
        block(index=1, text=""), delta(index=1, text="Hello"),
        delta("citations_delta", index=1, citation={"type": "page", "text": "no"}),
        reason(), STOP,
    ),
    "two blocks of text, one begun with some": done(
        start(), block(text="He"), delta(text="l"), CLOSE, block(index=1, text=""),
        delta(index=1, text="lo"), reason(), STOP,
    ),
    "the ends of events in a text": done(
        start(), block(text=""), delta(text='"type":"message_stop" "error"'), reason(), STOP,
        text='"type":"message_stop" "error"',
    ),
    "no content at all": done(start(), reason(), STOP, text=""),
    "no reason": done(*HELLO, STOP, told=None, usage={"input_tokens": 25, "output_tokens": 1}),
    "usage told twice": done(
        start(input_tokens=25, cache_read_input_tokens=7, output_tokens=1), *HELLO[1:],
        reason(input_tokens=26, cache_read_input_tokens=None, output_tokens=3),
        reason(None, output_tokens=15), STOP,
        usage={"input_tokens": 26, "cache_read_input_tokens": 7, "output_tokens": 15},
    ),
    "the end twice, and text after it": done(*WHOLE, STOP, delta(text="more"), STOP),
    "an error after the end": done(*WHOLE, OVERLOADED),
    "DONE after it": done(*WHOLE, event(b"[DONE]")),
    "no end": truncated(*HELLO),
    "no end, and closed": truncated(*HELLO, framed=False),
    "a reason, and no end": truncated(*HELLO, reason(), told="end_turn", usage=USAGE),
    "DONE in its place": truncated(*HELLO, reason(), event(b"[DONE]"), told="end_turn",
                                   usage=USAGE),
    "half of its end": truncated(*HELLO, reason(), STOP[:-10], told="end_turn", usage=USAGE),
    "its end without the blank line": done(*HELLO, reason(), STOP[:-2]),
    "that, and closed": truncated(*HELLO, reason(), STOP[:-1], told="end_turn", usage=USAGE,
                                  framed=False),
    "an error": failed(*HELLO, OVERLOADED, text="Hello"),
    "an error first": failed(OVERLOADED),
    "an error without a name": failed(*HELLO, OVERLOADED.partition(b"\n")[2], text="Hello"),
    "an error that is words": failed(*HELLO, event(b"BOOM", "error"), text="Hello"),
    "an error of a gateway": failed(*HELLO, event({"error": {"message": "BOOM"}}), text="Hello"),
    "an error, and an end": failed(*HELLO, OVERLOADED, STOP, text="Hello"),
    "an error cut off": failed(*HELLO, OVERLOADED[:-1], text="Hello", framed=False),
    "a lone end": failed(STOP, says="without an answer", code="empty_answer"),
    "a lone DONE": failed(event(b"[DONE]"), says="without an answer", code="empty_answer"),
    "nothing": failed(b"", says="without an answer", code="empty_answer"),
    "bare JSON": failed(data({"type": "error", "error": {"message": "BOOM"}})),
    "an array": failed(data([{"error": {"message": "BOOM"}}])),
    "a page": failed(b"<html>\n\n<h1>BOOM</h1>\n", says="", code="upstream_not_a_stream"),
    "a page by its type": failed(b"<h1>BOOM</h1>", says="text/html", type="text/html",
                                 code="upstream_not_a_stream"),
    "an error by its type": failed(data({"type": "error", "error": {"message": "BOOM"}}),
                                   type="application/json", code="upstream_not_a_stream"),
    "an event under a 500": failed(OVERLOADED, status=500, code="upstream_refused"),
    "words under a 400": failed(data({"type": "error", "error": {"message": "BOOM"}}), status=400,
                                type="application/json", code="upstream_refused"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_ends_as_its_upstream_meant_it(shape: Shape) -> None:
    await check(shape, KIND, {"protocol": "anthropic"})


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("sent", range(len(WHOLE) + 1))
def test_an_answer_cut_at_any_event_is_done_only_with_its_end(sent: int, framed: bool) -> None:
    seen, _, _ = read(PRESET, *WHOLE[:sent], framed=framed)
    assert (state(seen) == "done") == (sent == len(WHOLE))


@pytest.mark.parametrize("at", range(1, len(b"".join(WHOLE)), 7))
def test_where_it_is_cut_between_reads_makes_no_difference(at: int) -> None:
    body = b"".join(WHOLE)
    seen, events, text = read(PRESET, body[:at], body[at:], framed=False)
    assert (state(seen), text, len(events)) == ("done", "Hello", len(WHOLE))


def test_the_first_count_of_an_answer_that_was_cut_is_not_taken_for_its_price() -> None:
    seen, _, _ = read(PRESET, *HELLO, framed=False)
    assert seen.estimate() == {"input_tokens": 25, "output_tokens": 2, "estimated": True}
    assert seen.tokens == (25, 2, None, 2)


def test_the_prompt_has_the_tokens_that_were_read_from_a_cache_or_written_to_it() -> None:
    cache = {"cache_read_input_tokens": 7, "cache_creation_input_tokens": 100}
    begun = start(input_tokens=25, output_tokens=1, **cache)
    seen, _, _ = read(PRESET, begun, *WHOLE[1:], framed=True)
    assert seen.tokens == (132, 15, 7, False)


def test_a_log_tells_the_same_where_its_names_are_prefixed() -> None:
    seen = AnthropicState()
    for each in parse(b"".join([*HELLO, OVERLOADED])):
        seen.see(Event(each.data, safe_name(each.name)))
    assert seen.error is not None
    assert seen.retryable


async def test_what_is_sent_has_the_key_and_the_version_in_headers_of_their_own() -> None:
    async with before(b"".join(WHOLE), {"protocol": "anthropic"}) as (gate, calls):
        await gate.read(await gate.ticket(ask(max_tokens=7)))
    head = calls[0].head.lower()
    assert b"\r\nx-api-key: sk-of-the-tests\r\n" in head
    assert b"\r\nanthropic-version: 2023-06-01\r\n" in head
    assert b"\r\naccept: text/event-stream\r\n" in head
    assert b"authorization" not in head
    assert calls[0].json == {**ask(max_tokens=7), "stream": True}


def test_a_preset_may_name_another_version() -> None:
    given = Preset.model_validate({"headers": {"Anthropic-Version": "2099-01-01"}})
    sent = dict(Anthropic().request(given, b"{}").headers)
    assert {value for name, value in sent.items() if b"version" in name.lower()} == {b"2099-01-01"}


@pytest.mark.parametrize(("wrong", "code"), [
    ({"stream": False}, "stream_required"), ({"model": "b"}, "model_not_allowed"),
])  # fmt: skip
def test_what_is_not_allowed_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejected) as raised:
        Anthropic().prepare(Preset.model_validate({"models": ["a"]}), {"model": "a", **wrong})
    assert raised.value.code == code


NAMES = ["type", "delta", "message", "usage", "text", "error", "content_block", "stop_reason"]
KINDS = ["message_start", "message_delta", "message_stop", "error", "text_delta", "text"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", *KINDS]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(NAMES), each, max_size=5)
    ),
    max_leaves=20,
)


@given(st.lists(st.tuples(values, st.sampled_from(["", *KINDS])), max_size=4))
def test_no_shape_of_an_event_breaks_anything(chunks: list[tuple[Any, str]]) -> None:
    events = (Event(data(value), name.encode()) for value, name in chunks)
    survives(Anthropic(), events, Anthropic().completion())

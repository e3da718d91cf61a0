"""Declared APIs of server-sent events: what each shape of an answer ends as."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.presets import Preset
from gateway.sse import Event, parse, safe_name
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.table import logged_protocol, protocol_of
from tests.support import OK, Call, RedisServer, ask, chunk, running, scripted, sse
from tests.upstream.protocols.shapes import Shape, before, check, data, event, read, state, survives

KIND = "text/event-stream"


def typed(kind: str, **members: Any) -> bytes:
    """Return an event that tells its type in its data alone."""
    return event({"type": kind, **members})


def named(kind: str, **members: Any) -> bytes:
    """Return an event that has its type for a name too."""
    return event({"type": kind, **members}, kind)


COHERE = {
    "protocol": "sse",
    "end": {"event": "message-end"},
    "text": "delta.message.content.text",
    "usage": "delta.usage.tokens",
    "reason": "delta.finish_reason",
}
UI = {
    "protocol": "sse",
    "end": {"path": "type", "value": "finish"},
    "text": {"path": "delta", "where": {"path": "type", "value": "text-delta"}},
    "error": "errorText",
}
AG_UI = {
    "protocol": "sse",
    "end": {"path": "type", "value": "RUN_FINISHED"},
    "text": {"path": "delta", "where": {"path": "type", "value": "TEXT_MESSAGE_CONTENT"}},
    "usage": "usage.0",
}
WORKERS = {
    "protocol": "sse", "end": {"data": "[DONE]"}, "text": "response", "usage": "usage",
    "error": "errors",
}  # fmt: skip
CLOSE = {"protocol": "sse", "end": {"close": True}, "text": "text"}

ODD: list[Any] = [None, 1, "x", [], {"message": [1]}]
COUNTED = {"input_tokens": 5, "output_tokens": 2}
SAID = [
    named("message-start", id="1", delta={"message": {"role": "assistant", "content": []}}),
    named("content-start", index=0, delta={"message": {"content": {"type": "text", "text": ""}}}),
    *(named("content-delta", index=0, delta={"message": {"content": {"text": text}}})
      for text in ("Hel", "lo")),
    named("content-end", index=0),
]  # fmt: skip


def last(reason: str = "COMPLETE") -> bytes:
    """Return Cohere's last event."""
    usage = {"billed_units": {"input_tokens": 1}, "tokens": COUNTED}
    return named("message-end", delta={"finish_reason": reason, "usage": usage})


def done(*body: bytes, text: str = "Hello", **more: Any) -> Shape:
    """Return a shape that is whole."""
    return Shape(b"".join(body), "done", more.pop("reason", None), text, **more)


def failed(*body: bytes, text: str = "", says: str = "BOOM", **more: Any) -> Shape:
    """Return a shape that is an error."""
    return Shape(b"".join(body), "failed", more.pop("reason", None), text, says=says, **more)


def truncated(*body: bytes, text: str = "Hello", **more: Any) -> Shape:
    """Return a shape that is not whole."""
    return Shape(b"".join(body), "truncated", more.pop("reason", None), text, **more)


EMPTY = {"says": "without an answer", "code": "empty_answer"}
NO_STREAM = {"says": "", "code": "upstream_not_a_stream"}
BOOM = event({"message": "BOOM"}, "error")
COHERES = {
    "whole": done(*SAID, last(), reason="COMPLETE", usage=COUNTED),
    "whole, and closed": done(*SAID, last(), reason="COMPLETE", usage=COUNTED, framed=False),
    "cut at its length": done(*SAID, last("MAX_TOKENS"), reason="MAX_TOKENS", usage=COUNTED),
    "an error as a reason": failed(*SAID, last("ERROR"), reason="ERROR", usage=COUNTED,
                                   text="Hello", says="error"),
    "broken off": truncated(*SAID, last("TIMEOUT"), reason="TIMEOUT", usage=COUNTED,
                            code="upstream_broke_off"),
    "the end twice, and text after it": done(*SAID, last(), SAID[2], last(), reason="COMPLETE",
                                             usage=COUNTED),
    "an error after the end": done(*SAID, last(), BOOM, reason="COMPLETE", usage=COUNTED),
    "its end without the blank line": done(*SAID, last()[:-2], reason="COMPLETE", usage=COUNTED),
    "no end": truncated(*SAID),
    "no end, and closed": truncated(*SAID, framed=False),
    "DONE in its place": truncated(*SAID, event(b"[DONE]")),
    "its end as a text": truncated(
        *SAID, named("content-delta", delta={"message": {"content": {"text": "message-end"}}}),
        text="Hellomessage-end",
    ),
    "an end without its name": truncated(*SAID, last().partition(b"\n")[2], reason="COMPLETE",
                                         usage=COUNTED),
    "an error": failed(*SAID, BOOM, text="Hello"),
    "an error in a member": failed(*SAID, event({"error": {"message": "BOOM"}}), text="Hello"),
    "an error, and an end": failed(*SAID, BOOM, last(), text="Hello", reason="COMPLETE",
                                   usage=COUNTED),
    "an error cut off": failed(*SAID, BOOM[:-1], text="Hello", framed=False),
    "a lone end": failed(named("message-end"), **EMPTY),
    "a lone DONE": failed(event(b"[DONE]"), **EMPTY),
    "nothing": failed(b"", **EMPTY),
    "wrong types everywhere": done(
        *(named("content-delta", delta=each) for each in ODD),
        *SAID[2:4], named("message-end", delta={"finish_reason": {}, "usage": {"tokens": 1}}),
    ),
    "bare JSON": failed(data({"message": "BOOM"})),
    "an array": failed(data([{"error": {"message": "BOOM"}}])),
    "a page": failed(b"<html>\n\n<h1>BOOM</h1>\n", **NO_STREAM),
    "a page by its type": failed(b"<h1>BOOM</h1>", type="text/html", **NO_STREAM),
    "an event under a 500": failed(BOOM, status=500, code="upstream_refused"),
}  # fmt: skip

HELLO = [typed("text-delta", id="0", delta="Hel"), typed("text-delta", id="0", delta="lo")]
UIS = {
    "whole": done(typed("start"), *HELLO, typed("finish"), event(b"[DONE]")),
    "thoughts": done(typed("reasoning-delta", delta="hm"), *HELLO, typed("finish")),
    "a tool's words": done(
        *HELLO, typed("tool-output-available", output={"type": "finish", "errorText": "no"}),
        typed("finish"),
    ),
    "a type in another place": truncated(*HELLO, event({"data": {"type": "finish"}})),
    "its end in a list": truncated(*HELLO, event([{"type": "finish"}])),
    "an error": failed(*HELLO, typed("error", errorText="BOOM"), event(b"[DONE]"), text="Hello"),
    "aborted": truncated(*HELLO, typed("abort"), event(b"[DONE]")),
    "an error that is none": done(
        *HELLO, typed("x", errorText=""), typed("x", error={"message": "no"}), typed("finish")
    ),
}  # fmt: skip

SPOKEN = [typed("TEXT_MESSAGE_CONTENT", delta="Hel"), typed("TEXT_MESSAGE_CONTENT", delta="lo")]
RUN = {"inputTokens": 5, "outputTokens": 2}
AG_UIS = {
    "whole": done(*SPOKEN, typed("TOOL_CALL_ARGS", delta="no"),
                  typed("RUN_FINISHED", usage=[RUN]), usage=RUN),
    "no usage": done(*SPOKEN, typed("RUN_FINISHED", usage=[])),
    "an error": failed(*SPOKEN, typed("RUN_ERROR", message="BOOM", code="x"), text="Hello"),
}  # fmt: skip

HI = [event({"response": "Hel"}), event({"response": "lo"})]
WORKERSES = {
    "whole": done(*HI, event({"response": "", "usage": COUNTED}), event(b"[DONE]"), usage=COUNTED),
    "the end in white space": done(*HI, b"data:  [DONE] \n\n"),
    "more after the end": done(*HI, event(b"[DONE]"), *HI),
    "no end": truncated(*HI),
    "an error": failed(*HI, event({"errors": [{"message": "BOOM"}]}), event(b"[DONE]"),
                       text="Hello"),
    "no errors": done(*HI, event({"errors": []}), event(b"[DONE]")),
    "an error by its name": failed(*HI, BOOM, event(b"[DONE]"), text="Hello"),
    "a lone end": failed(event(b"[DONE]"), **EMPTY),
}  # fmt: skip

TEXTS = [event({"text": "Hel"}), event({"text": "lo"})]
CLOSES = {
    "a whole body": done(*TEXTS),
    "a closed connection": done(*TEXTS, framed=False),
    "a last event without the blank line": done(*TEXTS[:1], TEXTS[1][:-2]),
    "that, and closed": truncated(*TEXTS[:1], TEXTS[1][:-1], framed=False, text="Hel"),
    "comments at the end": done(*TEXTS, b": bye\n", framed=False),
    "an error": failed(*TEXTS, event({"error": "BOOM"}), text="Hello"),
    "nothing": failed(b"", **EMPTY),
    "nothing, and closed": truncated(b"", text="", framed=False),
}

ALL = {
    f"{name}: {shape}": (preset, each)
    for name, preset, shapes in (
        ("Cohere", COHERE, COHERES), ("UI messages", UI, UIS), ("AG-UI", AG_UI, AG_UIS),
        ("Workers AI", WORKERS, WORKERSES), ("close", CLOSE, CLOSES),
    )
    for shape, each in shapes.items()
}  # fmt: skip


@pytest.mark.parametrize(("preset", "shape"), ALL.values(), ids=ALL)
async def test_every_shape_ends_as_it_was_declared(preset: dict[str, Any], shape: Shape) -> None:
    await check(shape, KIND, preset)


def declared(told: dict[str, Any]) -> Preset:
    """Return the preset of a declaration."""
    return Preset.model_validate({"url": "http://u/v1", **told})


WHOLES = {
    "Cohere": (COHERE, [*SAID, last()]),
    "UI messages": (UI, [*HELLO, typed("finish")]),
    "AG-UI": (AG_UI, [*SPOKEN, typed("RUN_FINISHED")]),
    "Workers AI": (WORKERS, [*HI, event(b"[DONE]")]),
}


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("name", WHOLES)
def test_an_answer_cut_at_any_event_is_done_only_with_its_end(name: str, framed: bool) -> None:
    told, whole = WHOLES[name]
    for sent in range(len(whole) + 1):
        seen, _, _ = read(declared(told), *whole[:sent], framed=framed)
        assert (state(seen) == "done") == (sent == len(whole)), sent


def test_a_body_that_breaks_off_has_no_end_where_its_close_is_one() -> None:
    seen, _, _ = read(declared(CLOSE), *TEXTS, framed=True, whole=False)
    assert state(seen) == "truncated"


@pytest.mark.parametrize("name", ["end", "reset", "abort", "done"])
def test_a_log_tells_the_same_where_its_names_are_prefixed(name: str) -> None:
    told = {**CLOSE, "end": {"event": name}}
    seen = protocol_of(declared(told)).completion()
    for each in parse(b"".join([*TEXTS, event({}, name)])):
        seen.see(Event(each.data, safe_name(each.name)))
    assert (seen.finished, seen.closed) == (True, True)


@pytest.mark.parametrize(
    ("value", "told", "ends"),
    [
        (True, True, True), (True, 1, False), (1, True, False), (1, 1, True), (1, 1.0, True),
        (0, False, False), (0, None, False), (1, "1", False), ("1", 1, False), ("é", "é", True),
        ('a"/b', 'a"/b', True), ("x", ["x"], False),
    ],
)  # fmt: skip
def test_a_value_is_compared_as_json_has_it(value: Any, told: Any, ends: bool) -> None:
    given = {**CLOSE, "end": {"path": "a.1.b", "value": value}}
    seen = protocol_of(declared(given)).completion()
    seen.see(Event(data({"text": "Hello"})))
    seen.see(Event(data({"a": [{}, {"b": told}]})))
    assert seen.finished == ends


@pytest.mark.parametrize("chunk", [{"a": []}, {"a": {"1": {"b": 1}}}, {"a": None}, {"a": [1, []]}])
def test_a_path_leads_nowhere_where_there_is_nothing(chunk: Any) -> None:
    given = {**CLOSE, "end": {"path": "a.1.b.c", "value": 1}}
    seen = protocol_of(declared(given)).completion()
    seen.see(Event(data({"text": "Hello"})))
    seen.see(Event(data(chunk)))
    assert not seen.finished


def test_events_that_tell_nothing_are_not_decoded() -> None:
    for told, whole in WHOLES.values():
        seen: Any = protocol_of(declared(told)).completion()
        for each in parse(b"".join(whole))[:2]:
            assert not seen._tells(each)


def test_tokens_are_read_under_the_names_that_the_field_has_for_them() -> None:
    for told, usage in ((AG_UI, RUN), (WORKERS, COUNTED), (WORKERS, {"tokens": COUNTED})):
        seen = protocol_of(declared(told)).completion()
        seen.see(Event(data({"usage": [usage] if told is AG_UI else usage})))
        assert seen.tokens == Tokens(5, 2)


def test_the_price_of_an_answer_that_was_cut_is_estimated() -> None:
    seen, _, _ = read(declared(WORKERS), *HI, framed=False)
    assert seen.estimate() == {"completion_tokens": 2, "estimated": True}


@pytest.mark.parametrize(
    ("told", "sent", "text"),
    [(COHERE, [*SAID, last()], "Hello"), ({"strict_end": True}, [chunk("Hello")], "Hello")],
    ids=["sse", "openai"],
)
async def test_a_replica_without_the_preset_reads_a_log_as_it_was_declared(
    shared_redis: RedisServer, told: dict[str, Any], sent: list[bytes], text: str
) -> None:
    body = b"".join(sent) if told is COHERE else sse(*sent, b"[DONE]")

    async def script(call: Call) -> None:
        await call.send(OK, body)

    async with scripted(script) as up:
        given = {"redis_url": shared_redis.url, "upstream_url": up.url}
        async with running(**given, presets={"default": told}) as one, running(**given) as other:
            url = await one.ticket()
            state = (await one.read(url)).end["state"]
            shown = await other.read(url + "&format=text")
            assert "".join(each.data.decode() for each in shown.events if not each.name) == text
            answer = await other.completion(url)
    assert (answer["text"], answer["state"]) == (text, state)
    assert state == ("done" if told is COHERE else "truncated")
    assert len(up.calls) == 1


async def test_what_is_sent_asks_for_events_and_the_key_is_a_bearer_token() -> None:
    async with before(b"", COHERE) as (gate, calls):
        await gate.read(await gate.ticket(ask()))
    head = calls[0].head.lower()
    assert b"\r\naccept: text/event-stream\r\n" in head
    assert b"\r\nauthorization: bearer sk-of-the-tests\r\n" in head
    assert calls[0].json == {**ask(), "stream": True}


NAMES = ["type", "delta", "message", "content", "text", "usage", "tokens", "errorText", "error"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "finish", "a"]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(NAMES), each, max_size=5)
    ),
    max_leaves=20,
)


@given(st.sampled_from([COHERE, UI, AG_UI, WORKERS, CLOSE]), st.lists(values, max_size=4))
def test_no_shape_of_an_event_breaks_anything(told: dict[str, Any], chunks: list[Any]) -> None:
    protocol = logged_protocol(declared(told).dialect)
    events = (Event(data(value)) for value in chunks)
    survives(protocol, events, protocol.completion())

"""Gemini's generated content: what is sent where, and what each shape of an answer ends as."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.gemini import Gemini
from gateway.upstream.protocols.gemini_state import GeminiState
from gateway.upstream.request_body import RequestBody
from tests.support import running, scripted, settings
from tests.upstream.protocols.shapes import (
    Shape,
    answer,
    before,
    check,
    data,
    event,
    read,
    state,
    survives,
)

KIND = "text/event-stream"
URL = "http://u/v1beta/models/{model}:streamGenerateContent"
PRESET = Preset.model_validate({"protocol": "gemini", "url": f"{URL}?alt=sse"})
ASKED = {"model": "gemini-2.5-flash", "contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}


def preset(url: str = URL, **members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate({"protocol": "gemini", "url": url, **members})


def says(*parts: Any, index: int = 0, **members: Any) -> dict[str, Any]:
    """Return a candidate; a part that is a text is one of that text."""
    made = [{"text": part} if isinstance(part, str) else part for part in parts]
    return {"content": {"parts": made, "role": "model"}, "index": index, **members}


def of(*candidates: dict[str, Any], **members: Any) -> bytes:
    """Return an event with these candidates."""
    return event({**({"candidates": candidates} if candidates else {}), **members})


def counted(answer: int) -> dict[str, Any]:
    """Return what an event tells of the price so far."""
    told = {"promptTokenCount": 8, "candidatesTokenCount": answer, "totalTokenCount": 8 + answer}
    return {"usageMetadata": told, "modelVersion": "gemini-2.5-flash", "responseId": "r"}


STOP: dict[str, Any] = {"finishReason": "STOP"}
NO_REASON: list[Any] = [None, 1, "", [], "null", "FINISH_REASON_UNSPECIFIED"]
USAGE = counted(4)["usageMetadata"]
HELLO = [of(says("Hel"), **counted(1)), of(says("lo"), **counted(3))]
WHOLE = [*HELLO, of(says("", **STOP), **counted(4))]
SOME = counted(3)["usageMetadata"]
BOOM = {"error": {"code": 503, "message": "BOOM", "status": "UNAVAILABLE"}}
THOUGHT = {"text": "hm", "thought": True}
CALL = {"functionCall": {"name": "f", "args": {"text": "no", "finishReason": "STOP"}}}


def done(*body: bytes, text: str = "Hello", told: str | None = "STOP", **more: Any) -> Shape:
    """Return a shape that is whole."""
    return Shape(b"".join(body), "done", told, text, **{"usage": USAGE, **more})


def failed(*body: bytes, text: str = "", says: str = "BOOM", **more: Any) -> Shape:
    """Return a shape that is an error."""
    return Shape(b"".join(body), "failed", None, text, says=says, **more)


def truncated(*body: bytes, text: str = "Hello", **more: Any) -> Shape:
    """Return a shape that is not whole."""
    return Shape(b"".join(body), "truncated", more.pop("told", None), text,
                 **{"usage": SOME, **more})  # fmt: skip


SHAPES = {
    "whole": done(*WHOLE),
    "whole, and closed": done(*WHOLE, framed=False),
    "CR LF": done(*(each.replace(b"\n", b"\r\n") for each in WHOLE)),
    "the reason beside the last text": done(HELLO[0], of(says("lo", **STOP), **counted(4))),
    "usage after the reason": done(*HELLO, of(says(**STOP)), of(**counted(4))),
    **{
        f"the reason {word}": done(*HELLO, of({"finishReason": word}, **counted(4)), told=word)
        for word in ("MAX_TOKENS", "SAFETY", "RECITATION", "MALFORMED_FUNCTION_CALL", "OTHER")
    },
    "no content but a reason": done(
        of({"finishReason": "SAFETY"}, **counted(4)), text="", told="SAFETY"
    ),
    "a prompt that is blocked": done(
        of(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}, **counted(4)), text="",
        told="PROHIBITED_CONTENT",
    ),
    "feedback that blocks nothing": done(
        of(says("Hel"), promptFeedback={"safetyRatings": []}), *WHOLE[1:]
    ),
    "no numbers of candidates": done(*(each.replace(b',"index":0', b"") for each in WHOLE)),
    "thoughts": done(of(says(THOUGHT), **counted(0)), of(says(THOUGHT, "Hel")), *WHOLE[1:]),
    "several parts": done(of(says("He", "l", CALL)), *WHOLE[1:]),
    "a call of a function": done(of(says(CALL)), of(says("", **STOP), **counted(4)), text=""),
    "thoughts that are counted": done(
        *WHOLE, of(usageMetadata={"thoughtsTokenCount": 9}),
        usage={**USAGE, "thoughtsTokenCount": 9},
    ),
    "a reason in every event": done(
        of(says("Hel", **STOP)), of(says("lo", **STOP), **counted(4))
    ),
    "a reason in every event, and closed": truncated(
        of(says("Hel", **STOP)), of(says("lo", **STOP), **counted(3)), told="STOP", framed=False
    ),
    "a reason in every event, and DONE": done(
        of(says("Hel", **STOP)), of(says("lo", **STOP), **counted(4)), event(b"[DONE]"),
        framed=False,
    ),
    "text after the end": truncated(*WHOLE[:2], of(says(**STOP)), of(says("!")), text="Hello!",
                                    told="STOP"),
    "the end twice": done(*WHOLE, WHOLE[2]),
    "an error after the end": done(*WHOLE, event(BOOM)),
    "its last blank line missing": done(*HELLO, WHOLE[2][:-2]),
    "no end": truncated(*HELLO),
    "no end, and closed": truncated(*HELLO, framed=False),
    "DONE in its place": truncated(*HELLO, event(b"[DONE]")),
    "half of its end": truncated(*HELLO, WHOLE[2][:-9]),
    "reasons that are none": truncated(
        *HELLO, *(of({"finishReason": each}) for each in NO_REASON),
    ),
    "an error": failed(*HELLO, event(BOOM), text="Hello", usage=SOME),
    "an error first": failed(event(BOOM)),
    "an error in a list": failed(*HELLO, event([BOOM]), text="Hello", usage=SOME),
    "an error with a name": failed(*HELLO, event(BOOM, "error"), text="Hello", usage=SOME),
    "an error cut off": failed(*HELLO, event(BOOM)[:-1], text="Hello", usage=SOME, framed=False),
    "usage alone": failed(of(**counted(4)), says="without an answer", code="empty_answer",
                          usage=USAGE),
    "a lone DONE": failed(event(b"[DONE]"), says="without an answer", code="empty_answer"),
    "nothing": failed(b"", says="without an answer", code="empty_answer"),
    "bare JSON": failed(data(BOOM)),
    "an array": failed(data([BOOM])),
    "an array by its type": failed(data([BOOM]), type="application/json",
                                   code="upstream_not_a_stream"),
    "a page": failed(b"<html>\n\n<h1>BOOM</h1>\n", says="", code="upstream_not_a_stream"),
    "an event under a 500": failed(event(BOOM), status=500, code="upstream_refused"),
    "an array under a 400": failed(data([BOOM]), status=400, type="application/json",
                                   code="upstream_refused"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_ends_as_its_upstream_meant_it(shape: Shape) -> None:
    await check(shape, KIND, {"protocol": "gemini"}, ASKED)


OTHER = of(says("no", index=1))
TWO = {
    "both": done(OTHER, of(says("Hello")), of(says(index=1, **STOP)),
                 of(says(**STOP), **counted(4))),
    "one": truncated(OTHER, of(says("Hello", **STOP), **counted(3)), told="STOP"),
    "one, and the number is ignored": done(*WHOLE),
    "one, and closed": done(*WHOLE, framed=False),
}  # fmt: skip


@pytest.mark.parametrize("shape", TWO.values(), ids=TWO)
async def test_several_candidates_are_whole_if_each_that_came_is(shape: Shape) -> None:
    asked = {**ASKED, "generationConfig": {"candidateCount": 2}}
    await check(shape, KIND, {"protocol": "gemini"}, asked)


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("sent", range(len(WHOLE) + 1))
def test_an_answer_cut_at_any_event_is_done_only_with_its_end(sent: int, framed: bool) -> None:
    seen, _, _ = read(PRESET, *WHOLE[:sent], framed=framed)
    assert (state(seen) == "done") == (sent == len(WHOLE))


def test_where_several_candidates_are_asked_for_all_must_finish() -> None:
    seen = Gemini().completion(data({"generationConfig": {"candidateCount": 2}}))
    seen.see(Event(data({"candidates": [says("Hello", **STOP)]})))
    assert not seen.finished
    seen.see(Event(data({"candidates": [says("no", index=1, **STOP)]})))
    assert seen.finished


def test_the_price_of_an_answer_that_was_cut_is_told_or_estimated() -> None:
    seen, _, _ = read(PRESET, *HELLO, framed=False)
    assert seen.estimate() == SOME
    seen, _, _ = read(PRESET, of(says("Hel")), of(says("lo")), framed=False)
    assert seen.estimate() == {"candidatesTokenCount": 2, "estimated": True}


def test_thoughts_and_what_tools_said_are_counted() -> None:
    more = {"thoughtsTokenCount": 9, "toolUsePromptTokenCount": 2, "cachedContentTokenCount": 5}
    seen, _, _ = read(PRESET, *WHOLE, of(usageMetadata=more), framed=False)
    assert seen.tokens == Tokens(10, 13, 5)


def test_events_that_tell_nothing_of_end_or_price_are_not_decoded() -> None:
    assert not GeminiState()._tells(Event(data({"candidates": [says("x")]})))


# What is sent


async def test_the_model_goes_into_the_url_and_the_key_into_a_header() -> None:
    async with scripted(lambda call: call.send(answer(Shape(b"", ""), KIND))) as up:
        url = up.url.replace("/v1/chat/completions", "/v1beta/models/{model}:streamGenerateContent")
        given = {"protocol": "gemini", "url": url, "api_key": "key-of-the-tests"}
        async with running(presets={"default": given}) as gate:
            await gate.read(await gate.ticket({**ASKED, "stream": True, "stream_options": {}}))
    path = b"/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert up.calls[0].head.startswith(b"POST " + path + b" HTTP/1.1\r\n")
    assert b"\r\nx-goog-api-key: key-of-the-tests\r\n" in up.calls[0].head.lower()
    assert b"authorization" not in up.calls[0].head.lower()
    assert up.calls[0].json == {"contents": ASKED["contents"]}


async def test_a_url_without_a_place_for_the_model_drops_it() -> None:
    async with before(b"", {"protocol": "gemini"}) as (gate, calls):
        await gate.read(await gate.ticket(ASKED))
        await gate.read(await gate.ticket({"contents": []}))
    assert [call.json for call in calls] == [{"contents": ASKED["contents"]}, {"contents": []}]


@pytest.mark.parametrize("written", ['"a-1"', '"\\u0061-1"', '"a-1" '])
@pytest.mark.parametrize("more", ["", ',"contents":[{"model":"x"}]', ',"x":9007199254740993'])
def test_the_rest_of_a_body_is_sent_in_the_text_it_came_in(written: str, more: str) -> None:
    text = RequestBody(f'{{"model": {written}{more}}}'.encode()).made(preset()).text
    sent = Gemini().request(preset(), text)
    assert sent.url == "http://u/v1beta/models/a-1:streamGenerateContent?alt=sse"
    assert sent.body == b"{" + more[1:].encode() + b"}"


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (f"{URL}?alt=sse", "?alt=sse"),
        (f"{URL}?key=k", "?key=k&alt=sse"),
        (f"{URL}?alt=json", "?alt=json"),
        (f"{URL}#x", "?alt=sse"),
        (f"{URL}?$alt=x", "?$alt=x&alt=sse"),
    ],
)
def test_a_url_that_does_not_ask_for_events_is_made_to(url: str, asked: str) -> None:
    sent = Gemini().request(preset(url), b'{"model":"m"}').url
    assert sent == URL.format(model="m") + asked


def test_another_method_s_url_is_left_as_it_is() -> None:
    assert Gemini().request(preset("http://u/mine"), b"").url == "http://u/mine"


SPOILT: list[Any] = [
    "",
    "a/b",
    "../x",
    ".",
    "..",
    "a b",
    "a?b",
    "a%2fb",
    "a\n",
    "é",
    "a" * 201,
    5,
    None,
    ["a"],
]


@pytest.mark.parametrize("model", SPOILT)
def test_a_model_that_could_lead_elsewhere_is_refused(model: Any) -> None:
    for one in (preset(), preset("http://u/mine")):
        with pytest.raises(Rejected) as raised:
            Gemini().prepare(one, {"model": model})
        assert raised.value.code == "model_not_allowed"


def test_without_a_model_it_is_the_first_that_is_allowed_and_none_is_refused() -> None:
    assert Gemini().prepare(preset(models=["a", "b"]), {"x": 1}) == {"model": "a", "x": 1}
    with pytest.raises(Rejected) as raised:
        Gemini().prepare(preset(), {"x": 1})
    assert raised.value.code == "model_not_allowed"
    assert raised.value.detail == '"model" is missing.'


@pytest.mark.parametrize(("wrong", "code"), [
    ({"stream": False}, "stream_required"), ({"model": "c"}, "model_not_allowed"),
])  # fmt: skip
def test_what_is_not_allowed_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejected) as raised:
        Gemini().prepare(preset(models=["a"]), {"model": "a", **wrong})
    assert raised.value.code == code


def test_other_spellings_of_the_model_are_not_sent_and_the_model_is_first() -> None:
    body = {"x": 1, "Model": "b", "STREAM": True, "model": "a"}
    assert list(Gemini().prepare(preset(), body).items()) == [("model", "a"), ("x", 1)]


def test_no_page_chooses_the_host() -> None:
    with pytest.raises(ValueError, match="host"):
        settings(presets={"default": {"url": "https://{model}/v1", "protocol": "gemini"}})


# Refusals

WAIT = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}


WRONG: list[Any] = ["x", {"details": {}}, {"details": [1]}, []]
NO_TIME: list[Any] = ["s", "-1s", 3, None]


def refusal(told: Any, **headers: str) -> tuple[bool, float | None]:
    """Return whether a 429 with this body is sure, and how long to wait."""
    judged = Gemini().refused(preset(), 429, [*headers.items()], data(told))
    return judged.sure, judged.retry_after


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"error": {"details": [{"@type": "x"}, WAIT]}}, 17),
        ([{"error": {"details": [WAIT]}}], 17),
        ({"error": {"details": [{**WAIT, "retryDelay": "3.25s"}]}}, 3.25),
        *(({"error": {"details": [{"retryDelay": each}]}}, None) for each in NO_TIME),
        *(({"error": each}, None) for each in WRONG),
        ([], None),
        ("x", None),
    ],
)
def test_how_long_to_wait_is_read_from_the_body(told: Any, seconds: float | None) -> None:
    assert refusal(told) == (True, seconds)


def test_a_header_that_tells_it_comes_first() -> None:
    assert refusal({"error": {"details": [WAIT]}}, **{"retry-after": "2"}) == (True, 2)


def test_a_body_that_is_too_deep_to_read_tells_no_wait() -> None:
    assert Gemini().refused(preset(), 503, [], b"[" * 100_000).retry_after is None


NAMES = [
    "candidates",
    "content",
    "parts",
    "text",
    "finishReason",
    "index",
    "usageMetadata",
    "error",
]
NAMES += ["error", "promptFeedback", "blockReason", "thought"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "STOP"]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(NAMES), each, max_size=5)
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), values, max_size=6), max_size=4))
def test_no_shape_of_an_event_breaks_anything(chunks: list[dict[str, Any]]) -> None:
    events = (Event(json.dumps(value).encode()) for value in chunks)
    survives(Gemini(), events, GeminiState(2))

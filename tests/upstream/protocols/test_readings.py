"""Readings: what each provider's events say, in words that none of them has."""

import json
from typing import Any

import httpx
import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from gateway.sse import Event
from gateway.upstream.protocols.readings import (
    Called,
    CallOver,
    Given,
    Reading,
    Said,
    Source,
    Thought,
    ThoughtOver,
    finish_of,
)
from tests.demo.pretend.asking import WAYS
from tests.support import served
from tests.upstream.protocols.test_table import ODD, PRESET, SPOKEN, each

PAGE = {"url": "https://a.example/1", "title": "A page"}


def delta(**more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": more}]}


def call(index: int, text: str = "", name: str = "", call_id: str = "") -> dict[str, Any]:
    function = {"arguments": text, **({"name": name} if name else {})}
    return {"index": index, "function": function, **({"id": call_id} if call_id else {})}


def block(index: int, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": more}


def added(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def item(kind: str, place: int, **more: Any) -> dict[str, Any]:
    return {"type": f"response.output_item.{kind}", "output_index": place, "item": more}


def parts(*told: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"index": 0, "content": {"parts": told}, **more}]}


WEATHER = {"type": "function_call", "name": "weather", "call_id": "c1"}
SHAPES: dict[str, tuple[str, list[dict[str, Any]], list[Reading]]] = {
    "chat: thoughts under two names, text, a call in pieces, a second one": (
        "openai",
        [
            delta(role="assistant", content="", reasoning="Hm", reasoning_content="Hm"),
            delta(content="Well"),
            delta(tool_calls=[call(0, "", "weather", "c1")]),
            delta(tool_calls=[call(0, '{"a"')]),
            delta(tool_calls=[call(0, ":1}"), call(1, "{}", "time", "c2")]),
        ],
        [
            Thought("Hm"),
            Said("Well", 0),
            Called((0, 0), "weather", "c1"),
            Given((0, 0), '{"a"'),
            Given((0, 0), ":1}"),
            Called((1, 1), "time", "c2"),
            Given((1, 1), "{}"),
        ],
    ),
    "chat: calls that share a number, and one that has none": (
        "openai",
        [
            delta(tool_calls=[call(0, "{}", "a", "c1")]),
            delta(tool_calls=[call(0, "{}", "b", "c2")]),
            delta(function_call={"name": "c", "arguments": {"d": 1}}),
        ],
        [
            Called((0, 0), "a", "c1"),
            Given((0, 0), "{}"),
            Called((0, 1), "b", "c2"),
            Given((0, 1), "{}"),
            Called(("function", 2), "c"),
            Given(("function", 2), '{"d": 1}'),
        ],
    ),
    "chat: Mistral's thoughts, citations of OpenAI and Perplexity, the choice that speaks": (
        "openai",
        [
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]),
            {"choices": [{"index": 1, "delta": {"content": "other", "reasoning": "no"}}]},
            delta(annotations=[{"type": "url_citation", "url_citation": PAGE}]),
            {**delta(content="Hi"), "citations": ["https://b.example/", "javascript:x"]},
            {**delta(), "search_results": [PAGE]},
        ],
        [
            Thought("Hm"),
            Source(**PAGE),
            Said("Hi", 0),
            Source("https://b.example/"),
            Source(**PAGE),
        ],
    ),
    "chat: a message in one piece": (
        "openai",
        [{"choices": [{"message": {"content": "Hi", "tool_calls": [call(0, "{}", "a", "c")]}}]}],
        [Said("Hi", 0), Called((0, 0), "a", "c"), Given((0, 0), "{}")],
    ),
    "anthropic: signed thoughts, text with a citation, a call, one that has its input at once": (
        "anthropic",
        [
            block(0, type="thinking", thinking="", signature=""),
            added(0, "thinking_delta", thinking="Hm"),
            added(0, "signature_delta", signature="sig"),
            stop(0),
            block(1, type="redacted_thinking", data="xyz"),
            stop(1),
            block(2, type="text", text=""),
            added(2, "text_delta", text="Hi"),
            added(2, "citations_delta", citation=PAGE),
            stop(2),
            block(3, type="tool_use", id="t1", name="weather", input={}),
            added(3, "input_json_delta", partial_json=""),
            added(3, "input_json_delta", partial_json='{"a":1}'),
            stop(3),
            block(4, type="tool_use", id="t2", name="time", input={"z": 1}),
            stop(4),
        ],
        [
            Thought("Hm", 0),
            ThoughtOver(0, {"anthropic": {"signature": "sig"}}),
            ThoughtOver(1, {"anthropic": {"redactedData": "xyz"}}),
            Said("Hi", 2),
            Source(**PAGE),
            Called(3, "weather", "t1"),
            Given(3, '{"a":1}'),
            CallOver(3, {}),
            Called(4, "time", "t2"),
            Given(4, '{"z": 1}'),
            CallOver(4, {}),
        ],
    ),
    "anthropic: a search that it makes itself": (
        "anthropic",
        [
            block(0, type="server_tool_use", id="s", name="web_search", input={}),
            added(0, "input_json_delta", partial_json='{"q":1}'),
            stop(0),
            block(1, type="web_search_tool_result", content=[{**PAGE, "type": "x"}]),
            stop(1),
        ],
        [Source(**PAGE)],
    ),
    "responses: a summary of thoughts, text, a citation, calls in pieces and whole": (
        "responses",
        [
            {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "Hm"}
            | {"summary_index": 0},
            item("done", 0, type="reasoning", id="rs", encrypted_content="xyz"),
            {"type": "response.output_text.delta", "output_index": 1, "delta": "Hi"},
            {"type": "response.output_text.annotation.added", "annotation": PAGE},
            {"type": "response.output_text.done", "output_index": 1, "text": "Hi"},
            item("added", 2, **WEATHER, arguments=""),
            {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "{}"},
            item("done", 2, **WEATHER, arguments="{}"),
            item("done", 3, **WEATHER, arguments='{"b":1}'),
            {"type": "response.completed", "response": {"status": "completed"}},
        ],
        [
            Thought("Hm", (0, 0)),
            ThoughtOver(
                (0, "whole"), {"openai": {"itemId": "rs", "reasoningEncryptedContent": "xyz"}}
            ),
            Said("Hi", 1),
            Source(**PAGE),
            Called(2, "weather", "c1"),
            Given(2, "{}"),
            CallOver(2, {}),
            Called(3, "weather", "c1"),
            Given(3, '{"b":1}'),
            CallOver(3, {}),
        ],
    ),
    "responses: all of it in the last snapshot": (
        "responses",
        [
            {
                "type": "response.completed",
                "response": {
                    "status": "completed",
                    "output": [
                        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
                        {**WEATHER, "arguments": "{}"},
                    ],
                },
            }
        ],
        [Said("Hi", 0), Called(1, "weather", "c1"), Given(1, "{}"), CallOver(1, {})],
    ),
    "gemini: thoughts, text, signed calls without ids, grounds": (
        "gemini",
        [
            parts({"text": "Hm", "thought": True}, {"text": "Hi"}),
            parts({"functionCall": {"name": "weather", "args": {"a": 1}}, "thoughtSignature": "s"}),
            parts({"functionCall": {"name": "time"}}),
            parts(groundingMetadata={"groundingChunks": [{"web": {"uri": PAGE["url"]}}]}),
        ],
        [
            Thought("Hm", 0),
            Said("Hi", 0),
            Called(0, "weather"),
            Given(0, '{"a": 1}'),
            CallOver(0, {"google": {"thoughtSignature": "s"}}),
            Called(1, "time"),
            CallOver(1, {}),
            Source(PAGE["url"]),
        ],
    ),
    "ollama: thoughts, text, a call; what is generated": (
        "ollama",
        [
            {"message": {"thinking": "Hm"}},
            {"message": {"content": "Hi"}},
            {"message": {"tool_calls": [{"function": {"name": "a", "arguments": {"b": 1}}}]}},
            {"response": "more", "thinking": ""},
        ],
        [
            Thought("Hm"),
            Said("Hi"),
            Called(0, "a"),
            Given(0, '{"b": 1}'),
            CallOver(0, {}),
            Said("more"),
        ],
    ),
    "any other: the text that is declared": ("sse", [{"text": "Hi"}, {"x": 1}], [Said("Hi")]),
}


@pytest.mark.parametrize(("protocol", "sent", "said"), SHAPES.values(), ids=SHAPES)
def test_what_a_provider_sends_is_read(
    protocol: str, sent: list[dict[str, Any]], said: list[Reading]
) -> None:
    readings = SPOKEN[protocol].readings()
    found = [x for told in sent for x in readings.of(Event(json.dumps(told).encode()))]
    assert found == said


@each
def test_whatever_an_event_is_nothing_breaks(protocol: Any) -> None:
    odd_calls: list[Any] = [{"function": {"name": {}}}]
    wrong: list[Any] = [None, 1, [], [1], {}, "x", {"name": 1, "function": []}, odd_calls]
    names = ("choices", "delta", "content_block", "item", "candidates", "message", "output_index")
    odd = [*ODD, *(json.dumps({name: value}).encode() for name in names for value in wrong)]
    odd += [json.dumps(delta(tool_calls=value, annotations=value)).encode() for value in wrong]
    odd += [json.dumps({"type": t, "index": 0, "delta": v}).encode() for t in KINDS for v in wrong]
    readings = protocol.readings()
    for data in odd:
        for name in (b"", b"content_block_delta"):
            assert [x for x in readings.of(Event(data, name)) if not isinstance(x, tuple)] == []


KINDS = ("content_block_delta", "response.output_item.done", "response.output_text.delta")


async def test_the_text_of_an_answer_is_what_is_said() -> None:
    async with (
        served(upstream(UpstreamOptions(interval=0, tokens=20))) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        for name in ("openai", "responses", "anthropic", "ollama", "gemini"):
            way, protocol = WAYS[name], SPOKEN[name]
            body = (await http.post(way.path, json=way.body, headers=way.headers())).content
            frames = protocol.frames(PRESET, len(body))
            events = [*frames.feed(body), *frames.rest()]
            text, readings = protocol.text(), protocol.readings()
            read = [x for event in events for x in readings.of(event)]
            said = "".join(x.text for x in read if isinstance(x, Said))
            assert said == "".join(map(text.text_of, events)) != ""
            assert {type(x) for x in read} == {Said}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((None, "stop"), ("stop", "stop"), ("end_turn", "stop"), ("STOP", "stop")),
        *(("completed", "stop"), ("length", "length"), ("MAX_TOKENS", "length")),
        *(("max_output_tokens", "length"), ("content_filter", "content-filter")),
        *(("SAFETY", "content-filter"), ("refusal", "content-filter")),
        *(("tool_calls", "tool-calls"), ("tool_use", "tool-calls"), ("pause_turn", "other")),
    ],
)
def test_an_upstreams_reason_is_one_of_the_few_that_clients_know(
    reason: str | None, finish: str
) -> None:
    assert finish_of(reason) == finish

"""APIs: whole answers are those that the SDKs' own helpers put together of the same events."""

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols.api import Api, json_of
from gateway.upstream.protocols.apis import APIS, CHAT, MESSAGES, RESPONSES, api_of, speaks
from gateway.upstream.protocols.problems import Problem
from tests.sdks import sdk

Object = dict[str, Any]


def event(data: Any, name: bytes = b"") -> Event:
    """Return an event of an upstream."""
    return Event(json.dumps(data).encode(), name)


def put_together(api: Api, events: list[Object]) -> Object:
    """Return the whole of these events."""
    whole = api.whole()
    for each in events:
        whole.see(event(each))
    return whole.answer()


# Chats


def delta(index: int = 0, reason: str | None = None, /, **said: Any) -> Object:
    """Return a chunk of one choice."""
    choice = {"index": index, "delta": said, "finish_reason": reason, "logprobs": None}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [choice]}


def call(index: int, arguments: str, **more: Any) -> Object:
    """Return a piece of a call of a tool."""
    name = more.pop("name", None)
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"index": index, "function": function, **more}


def logs(token: str) -> Object:
    """Return the logprobs of one token."""
    one: Object = {"token": token, "bytes": None, "logprob": -1.0, "top_logprobs": []}
    return {"content": [one], "refusal": None}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOGGED = delta(role="assistant", content="Hel")
LOGGED["choices"][0]["logprobs"] = logs("Hel")
LOGGED_TOO = delta(content="lo")
LOGGED_TOO["choices"][0]["logprobs"] = logs("lo")

CHATS: dict[str, list[Object]] = {
    "text": [
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        delta(0, "stop"),
        {**delta(), "choices": [], "usage": USAGE},
    ],
    "calls": [
        delta(role="assistant", content=None),
        delta(tool_calls=[call(0, "", id="a", type="function", name="look")]),
        delta(tool_calls=[call(0, '{"x":')]),
        delta(tool_calls=[call(1, "{}", id="b", type="function", name="go")]),
        delta(tool_calls=[call(0, "1}")]),
        delta(0, "tool_calls"),
    ],
    "choices": [
        delta(0, role="assistant", content="A"),
        delta(1, role="assistant", content="B"),
        delta(1, content="b"),
        delta(0, "stop"),
        delta(1, "length"),
    ],
    "a refusal": [delta(role="assistant", refusal="No"), delta(refusal="."), delta(0, "stop")],
    "logprobs": [LOGGED, LOGGED_TOO, delta(0, "stop")],
}


@pytest.mark.parametrize("events", CHATS.values(), ids=CHATS.keys())
def test_a_completion_is_the_one_that_openais_helper_puts_together(events: list[Object]) -> None:
    state = ChatCompletionStreamState()
    for each in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(each))
    theirs = state.current_completion_snapshot.model_dump(exclude_none=True)
    kind = type(state.current_completion_snapshot)
    ours = kind.model_validate(put_together(CHAT, events)).model_dump(exclude_none=True)
    for choice in theirs["choices"]:
        choice["message"].pop("parsed", None)
        for each in choice["message"].get("tool_calls", []):
            each.pop("index", None)
            each["function"].pop("parsed_arguments", None)
    theirs["choices"].sort(key=lambda each: each["index"])
    assert strip(ours) == strip(theirs)


def strip(value: Any) -> Any:
    """Return a completion without what is empty: helpers differ in where they say nothing."""
    if isinstance(value, list):
        return [strip(each) for each in value]
    if isinstance(value, dict):
        kept = {name: strip(each) for name, each in value.items() if name != "object"}
        return {name: each for name, each in kept.items() if each not in (None, [], {}, "")}
    return value


def test_what_other_servers_send_is_put_together_too() -> None:
    whole = put_together(
        CHAT,
        [
            {"choices": [], "prompt_filter_results": [1], "object": ""},  # Azure.
            delta(role="assistant", reasoning_content="Hm", content=None),
            delta(role="assistant", reasoning_content="m."),  # Gemini tells the role each time.
            delta(content=[{"type": "thinking", "thinking": "Oh"}]),  # Mistral.
            delta(content="Hel"),
            delta(content="lo"),
            {"choices": [{"index": 0, "message": {"content": "Hello"}}], "usage": USAGE},
            {"obfuscation": "x", "usage": None, "system_fingerprint": "f"},
        ],
    )
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["reasoning_content"] == "Hmm."
    text = {"type": "text", "text": "Hello"}
    assert message["content"] == [{"type": "thinking", "thinking": "Oh"}, text]
    assert whole["choices"][0]["finish_reason"] is None
    assert (whole["usage"], whole["object"]) == (USAGE, "chat.completion")
    assert (whole["prompt_filter_results"], whole["system_fingerprint"]) == ([1], "f")
    assert "obfuscation" not in whole


def test_a_message_that_comes_in_one_piece_is_the_message() -> None:
    message = {"role": "assistant", "content": "Hello"}
    whole = put_together(CHAT, [{"choices": [{"message": message, "finish_reason": "stop"}]}])
    assert whole["choices"] == [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    ]


# Messages


START = {
    "type": "message_start",
    "message": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 2},
    },
}
CITED = {
    "type": "char_location",
    "cited_text": "x",
    "document_index": 0,
    "document_title": "t",
    "start_char_index": 0,
    "end_char_index": 1,
    "file_id": None,
}


def block(index: int, content: Object, *deltas: Object) -> list[Object]:
    """Return the events of one block."""
    told = [{"type": "content_block_delta", "index": index, "delta": each} for each in deltas]
    begin = {"type": "content_block_start", "index": index, "content_block": content}
    return [begin, *told, {"type": "content_block_stop", "index": index}]


MESSAGE = [
    START,
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "thinking_delta", "thinking": "m."},
        {"type": "signature_delta", "signature": "s"},
    ),
    {"type": "ping"},
    *block(
        1,
        {"type": "text", "text": "", "citations": []},
        {"type": "text_delta", "text": "Hel"},
        {"type": "citations_delta", "citation": CITED},
        {"type": "text_delta", "text": "lo"},
    ),
    *block(
        2,
        {"type": "tool_use", "id": "t", "name": "look", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"x":'},
        {"type": "input_json_delta", "partial_json": "1}"},
    ),
    *block(3, {"type": "tool_use", "id": "u", "name": "go", "input": {}}),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 9, "input_tokens": None},
    },
    {"type": "message_stop"},
]


def test_a_message_is_the_one_that_anthropics_helper_puts_together() -> None:
    module = sdk("anthropic.lib.streaming._messages")
    types = sdk("anthropic.types")
    snapshot: Any = None
    bufs: Object = {}
    adapter = sdk("pydantic").TypeAdapter(types.RawMessageStreamEvent)
    for each in MESSAGE:
        if each["type"] != "ping":
            told = adapter.validate_python(each)
            snapshot = module.accumulate_event(
                event=told, current_snapshot=snapshot, json_bufs=bufs
            )
    ours = types.Message.model_validate(put_together(MESSAGES, MESSAGE))
    assert strip(ours.model_dump()) == strip(snapshot.model_dump())
    assert ours.usage.input_tokens == 7


# Responses


def test_a_response_is_its_last_snapshot() -> None:
    begun = {"type": "response.created", "response": {"id": "r", "status": "in_progress"}}
    ended = {"type": "response.completed", "response": {"id": "r", "status": "completed"}}
    between = {"type": "response.output_text.delta", "delta": '"response": {'}
    assert put_together(RESPONSES, [begun, between]) == begun["response"]
    assert put_together(RESPONSES, [begun, between, ended]) == ended["response"]
    assert put_together(RESPONSES, []) == {}
    assert RESPONSES.answer_id(event(begun)) == "r"
    assert RESPONSES.answer_id(event(between)) == ""


STATES = {
    "cancelled": ("in_progress", Problem(409, "cancelled", "Why"), "cancelled"),
    "cut": ("in_progress", Problem(502, "upstream_cut", "Why"), "failed"),
    "failed already": ("failed", Problem(502, "upstream_error", "Why"), "failed"),
    "whole": ("completed", None, "completed"),
}


@pytest.mark.parametrize(("status", "problem", "told"), STATES.values(), ids=STATES.keys())
def test_a_response_that_is_looked_at_says_how_it_ended(
    status: str, problem: Problem | None, told: str
) -> None:
    assert RESPONSES.ended({"status": status}, problem)["status"] == told


# All of them


@pytest.mark.parametrize("api", APIS.values(), ids=APIS.keys())
def test_whatever_an_upstream_sends_is_taken_by_what_puts_an_answer_together(api: Api) -> None:
    whole = api.whole()
    for data in (
        b"",
        b"[DONE]",
        b"[1]",
        b"nonsense",
        b'{"choices":1}',
        b'{"choices":[1,{"delta":2},{"delta":{"tool_calls":[1,{"index":"x"}],"content":5}}]}',
        b'{"choices":[{"delta":{"content":"a"}},{"delta":{"content":{"b":1}}}]}',
        b'{"choices":[{"delta":{"content":"a"},"logprobs":{"content":null}}]}',
        b'{"choices":[{"delta":{"content":["b"]},"logprobs":{"content":[1]}}]}',
        b'{"type":"message_start","message":1}',
        b'{"type":"content_block_delta","index":9,"delta":{"type":"text_delta"}}',
        b'{"type":"content_block_start","index":1,"content_block":{"type":"tool_use"}}',
        b'{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta"}}',
        b'{"type":"content_block_delta","index":1,"delta":{"type":[],"x":1}}',
        b'{"type":"message_delta","delta":1,"usage":2}',
        b'{"type":"message_delta","usage":{"output_tokens":1}}',
        b'{"type":"content_block_start","index":2,"content_block":{"citations":1}}',
        b'{"type":"content_block_delta","index":2,"delta":{"type":"citations_delta"}}',
        b'{"choices":[{"delta":{"x":' + b'{"a":' * 800 + b"1" + b"}" * 802 + b"]}",
        b'{"type":"response.completed","response":1}',
    ):
        whole.see(Event(data))
    assert json_of(whole.answer())


def test_the_usage_of_a_message_that_began_without_one_is_what_was_told_last() -> None:
    whole = MESSAGES.whole()
    whole.see(Event(b'{"type":"message_start","message":{"id":"m","usage":null}}'))
    whole.see(Event(b'{"type":"message_delta","delta":{},"usage":{"output_tokens":3}}'))
    assert whole.answer()["usage"] == {"output_tokens": 3}


def test_an_error_is_in_each_apis_own_words() -> None:
    overload = Problem(529, "upstream_refused", "Busy")
    assert MESSAGES.error(overload)["error"] == {"type": "overloaded_error", "message": "Busy"}
    assert CHAT.error(overload)["error"]["type"] == "server_error"
    numbered = json.loads(RESPONSES.error_event(overload, 4).data)
    assert (numbered["type"], numbered["sequence_number"]) == ("error", 4)
    assert numbered["error"]["message"] == numbered["message"] == "Busy"
    assert CHAT.raises(CHAT.error_event(overload, 0))
    assert RESPONSES.raises(RESPONSES.error_event(overload, 0))
    assert MESSAGES.raises(MESSAGES.error_event(overload, 0))


def test_a_preset_speaks_the_api_of_its_protocol_and_older_completions_none() -> None:
    def of(url: str, protocol: str = "openai") -> Api | None:
        return api_of(Preset.model_validate({"url": url, "protocol": protocol}))

    assert of("http://h/v1/chat/completions") is CHAT
    assert of("http://h/v1/completions") is None
    assert of("http://h/v1/responses", "responses") is RESPONSES
    assert of("http://h/api/chat", "ollama") is None
    assert speaks(CHAT, "")
    assert speaks(CHAT, 'openai {"strict_end":true}')
    assert not speaks(CHAT, "responses")

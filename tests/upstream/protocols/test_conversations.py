"""Conversations: what was said so far, as each provider takes it."""

from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols.conversation import Mused, Picture, Result, Turn, Use, Words
from gateway.upstream.protocols.table import protocol_of

INLINE = Picture("image/png", "data:image/png;base64,AAAA")
ELSEWHERE = Picture("image/png", "https://a.example/1.png")
SIGNED = {"anthropic": {"signature": "s"}, "google": {"thoughtSignature": "g"}}
KEPT = {"openai": {"itemId": "rs", "reasoningEncryptedContent": "x"}}

SAID = [
    Turn("system", [Words("Be kind.")]),
    Turn("user", [Words("Look: "), INLINE]),
    Turn("assistant", [Mused("Hm", SIGNED), Words("Well"), Use("c1", "see", {"a": 1}, SIGNED)]),
    Turn("tool", [Result("c1", "see", {"b": 2}), Result("c2", "hear", "no", failed=True)]),
    Turn("assistant", [Mused("", KEPT), Words("So")]),
]
CALL = {"name": "see", "arguments": '{"a":1}'}

WRITTEN: dict[str, dict[str, Any]] = {
    "openai": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "image_url", "image_url": {"url": INLINE.url}},
                ],
            },
            {
                "role": "assistant",
                "content": "Well",
                "tool_calls": [{"id": "c1", "type": "function", "function": CALL}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": '{"b":2}'},
            {"role": "tool", "tool_call_id": "c2", "content": "no"},
            {"role": "assistant", "content": "So"},
        ]
    },
    "responses": {
        "input": [
            {"role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Look: "},
                    {"type": "input_image", "image_url": INLINE.url},
                ],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "Well"}]},
            {"type": "function_call", "call_id": "c1", **CALL},
            {"type": "function_call_output", "call_id": "c1", "output": '{"b":2}'},
            {"type": "function_call_output", "call_id": "c2", "output": "no"},
            {"type": "reasoning", "id": "rs", "encrypted_content": "x", "summary": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "So"}]},
        ]
    },
    "anthropic": {
        "system": "Be kind.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "text", "text": "Well"},
                    {"type": "tool_use", "id": "c1", "name": "see", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": '{"b":2}'},
                    {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": True},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "So"}]},
        ],
    },
    "gemini": {
        "systemInstruction": {"parts": [{"text": "Be kind."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Look: "},
                    {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"text": "Well"},
                    {"functionCall": {"name": "see", "args": {"a": 1}}, "thoughtSignature": "g"},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "see", "response": {"output": {"b": 2}}}},
                    {"functionResponse": {"name": "hear", "response": {"error": "no"}}},
                ],
            },
            {"role": "model", "parts": [{"text": "So"}]},
        ],
    },
    "ollama": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Look: ", "images": ["AAAA"]},
            {
                "role": "assistant",
                "content": "Well",
                "thinking": "Hm",
                "tool_calls": [{"function": {"name": "see", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "tool_name": "see", "content": '{"b":2}'},
            {"role": "tool", "tool_name": "hear", "content": "no"},
            {"role": "assistant", "content": "So"},
        ]
    },
}
WRITTEN["sse"] = WRITTEN["openai"]


def preset(protocol: str, path: str = "chat", **more: Any) -> Preset:
    told = {"end": {"close": True}} if protocol == "sse" else {}
    return Preset.model_validate({"url": f"http://u/{path}", "protocol": protocol, **told, **more})


@pytest.mark.parametrize("protocol", sorted(WRITTEN))
def test_a_conversation_is_written_as_its_provider_takes_it(protocol: str) -> None:
    given = preset(protocol)
    assert protocol_of(given).conversation(given, SAID) == WRITTEN[protocol]


ADDRESSES: dict[str, Any] = {
    "openai": {"type": "image_url", "image_url": {"url": ELSEWHERE.url}},
    "responses": {"type": "input_image", "image_url": ELSEWHERE.url},
    "anthropic": {"type": "image", "source": {"type": "url", "url": ELSEWHERE.url}},
    "gemini": {"fileData": {"mimeType": "image/png", "fileUri": ELSEWHERE.url}},
}


@pytest.mark.parametrize("protocol", sorted(ADDRESSES))
def test_an_image_that_is_elsewhere_is_sent_by_its_address(protocol: str) -> None:
    given = preset(protocol)
    (said,) = protocol_of(given).conversation(given, [Turn("user", [ELSEWHERE])]).values()
    assert (said[0].get("content") or said[0].get("parts")) == [ADDRESSES[protocol]]


def test_an_image_that_is_elsewhere_is_refused_where_nobody_fetches_it() -> None:
    given = preset("ollama")
    with pytest.raises(Rejected, match="image/png") as refused:
        protocol_of(given).conversation(given, [Turn("user", [ELSEWHERE])])
    assert refused.value.code == "part_not_supported"


def test_what_has_no_place_in_a_protocol_is_left_out() -> None:
    unsigned = [Turn("assistant", [Mused("Hm", {}), Words("So")]), Turn("user", [Words("Hi")])]
    for protocol in sorted(WRITTEN.keys() - {"ollama"}):
        given = preset(protocol)
        assert "Hm" not in str(protocol_of(given).conversation(given, unsigned))


@pytest.mark.parametrize(
    ("protocol", "path"), [("openai", "v1/completions"), ("ollama", "generate")]
)
def test_who_continues_a_text_takes_no_conversation(protocol: str, path: str) -> None:
    given = preset(protocol, path)
    with pytest.raises(Rejected) as refused:
        protocol_of(given).conversation(given, SAID)
    assert refused.value.code == "not_a_chat"

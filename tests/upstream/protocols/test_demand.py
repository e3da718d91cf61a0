"""Demand: what a request may take is known before it is asked, whatever a page has sent."""

import json
from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.upstream.protocols.demand import (
    UNBOUNDED,
    Expected,
    expected,
    model_of,
    prompt_tokens,
)
from gateway.upstream.request_body import RequestBody

GEMINI = {"protocol": "gemini", "url": "http://g/v1beta/models/{model}:streamGenerateContent"}
AZURE = {"url": "http://a/openai/deployments/gpt%2D4o/chat/completions?api-version=1"}
HELLO = [{"role": "user", "content": "12345678"}]


def preset_of(**members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate({"url": "http://u/v1/chat/completions", **members})


def prepared(preset: Preset, **body: Any) -> bytes:
    """Return the request that a preset makes of a page's."""
    return RequestBody(json.dumps(body).encode()).made(preset).text


def wanted(body: dict[str, Any], **preset: Any) -> int:
    """Return the tokens of an answer that such a request may take."""
    made = preset_of(**preset)
    return expected(made, prepared(made, **{"messages": HELLO, **body})).completion


@pytest.mark.parametrize(
    ("body", "preset", "most"),
    [
        ({"max_tokens": 50}, {}, 50),
        ({"max_completion_tokens": 60}, {}, 60),
        ({"max_tokens": 50, "n": 3}, {}, 150),
        ({"max_tokens": 50, "best_of": 4, "n": 2}, {}, 200),
        ({"n": 2}, {}, 2 * UNBOUNDED),
        ({}, {}, UNBOUNDED),
        ({}, {"max_output_tokens": 80}, 80),
        ({"n": 4}, {"max_output_tokens": 80}, 80),
        ({"max_tokens": 7}, {"max_output_tokens": 80}, 7),
        ({}, {"defaults": {"max_tokens": 9}}, 9),
        ({"max_output_tokens": 70}, {"protocol": "responses"}, 70),
        ({"max_tokens": 71}, {"protocol": "anthropic"}, 71),
        ({"options": {"num_predict": 72}}, {"protocol": "ollama"}, 72),
        ({"options": {"num_predict": -1}}, {"protocol": "ollama"}, UNBOUNDED),
        ({"max_tokens": 73}, {"protocol": "sse", "end": {"event": "end"}}, 73),
        ({"generationConfig": {"maxOutputTokens": 74, "candidateCount": 2}}, GEMINI, 148),
        ({"generation_config": {"max_output_tokens": 75}}, GEMINI, 75),
        ({"prompt": ["a", "b"], "max_tokens": 5}, {"url": "http://u/v1/completions"}, 10),
    ],
)
def test_an_answer_takes_what_its_request_or_its_preset_allows(
    body: dict[str, Any], preset: dict[str, Any], most: int
) -> None:
    model = {"model": "m"} if preset.get("protocol") == "gemini" else {}
    assert wanted({**model, **body}, **preset) == most


@pytest.mark.parametrize("value", ["50", None, True, 0, -3, 0.5, [], {}, [50], {"max_tokens": 5}])
@pytest.mark.parametrize("protocol", ["openai", "ollama"])
def test_a_bound_that_is_none_bounds_nothing(value: Any, protocol: str) -> None:
    body = {"max_tokens": value, "n": value, "options": value}
    request = json.dumps(body).encode()
    assert expected(preset_of(protocol=protocol), request).completion == UNBOUNDED


@pytest.mark.parametrize("number", ["1e999", "1" * 300, "9" * 5000, "1e300"])
def test_no_number_is_larger_than_a_counter_can_add(number: str) -> None:
    told = expected(preset_of(), b'{"max_tokens":%b,"n":%b}' % (number.encode(), number.encode()))
    assert 1 <= told.prompt <= told.completion <= 1 << 40


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"prompt":[[]]}'], ids=range(6)
)
def test_of_what_is_no_request_something_is_expected_all_the_same(body: bytes) -> None:
    assert expected(preset_of(), body) == Expected(1, UNBOUNDED)
    assert model_of(preset_of(), body) == ""


def test_four_characters_of_a_prompt_are_a_token() -> None:
    assert prompt_tokens(prepared(preset_of(), messages=HELLO)) == 2
    assert prompt_tokens(prepared(preset_of(system="s" * 40), messages=HELLO)) == 12
    assert prompt_tokens(b'{"prompt":"e"}') == 1
    assert prompt_tokens(b'{"input":"%b"}' % (b"a" * 40)) == 10


def test_a_request_of_too_many_values_to_look_at_is_taken_by_its_size() -> None:
    request = b'{"prompt":[[%b]]}' % b",".join([b"1"] * 200_000)
    assert prompt_tokens(request) == len(request) // 4


@pytest.mark.parametrize(
    ("preset", "body", "model"),
    [
        ({}, {"model": "m-1"}, "m-1"),
        ({}, {"messages": [], "model": "m-1"}, "m-1"),
        ({}, {"model": 'm"1\\'}, 'm"1\\'),
        ({}, {}, ""),
        ({"models": ["a", "b"]}, {}, "a"),
        ({"force": {"model": "c"}}, {"model": "d"}, "c"),
        (AZURE, {}, "gpt-4o"),
        (AZURE, {"model": "m-1"}, "m-1"),
        (GEMINI, {"model": "gemini-x"}, "gemini-x"),
        (
            {"protocol": "gemini", "url": "http://g/v1/models/gemini-y:streamGenerateContent"},
            {},
            "gemini-y",
        ),
        ({}, {"model": "a\n\x00\u202eb\ud800" + "c" * 200}, "ab" + "c" * 94),
        ({}, {"model": 7}, ""),
        ({}, {"model": ["m-1"]}, ""),
    ],
)
def test_the_model_is_the_one_that_is_asked_for(
    preset: dict[str, Any], body: dict[str, Any], model: str
) -> None:
    made = preset_of(**preset)
    assert model_of(made, prepared(made, **body)) == model


def test_a_model_is_known_by_its_request_where_the_preset_is_gone() -> None:
    assert model_of(None, b'{"messages":[],"model":"m-1"}') == "m-1"
    assert model_of(None, b'{"messages":[]}') == ""

"""What a preset makes of a page's request: what it may set, of which model, and how much."""

import json
from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.request_body import RequestBody
from tests.support import ask

NESTED = Form(
    messages="contents",
    system="systemInstruction",
    system_as="parts",
    parts=True,
    caps=("config.maxOutputTokens",),
    copies=("config.candidateCount",),
)


def sent(body: Any, **members: Any) -> dict[str, Any]:
    """Return what is sent to an OpenAI-style chat for a body, by a preset of these members."""
    preset = Preset.model_validate({"include_usage": False, **members})
    text = body if isinstance(body, str) else json.dumps(body)
    told: dict[str, Any] = json.loads(RequestBody(text.encode()).made(preset).text)
    assert told.pop("stream") is True
    return told


def refused(body: Any, **members: Any) -> tuple[str, str]:
    """Return the code of a refusal, and its words."""
    with pytest.raises(Rejected) as caught:
        sent(body, **members)
    assert caught.value.status == 400
    return caught.value.code, caught.value.detail


# Members


def test_where_fields_are_listed_a_page_sets_those_the_model_and_the_messages() -> None:
    body = ask(temperature=1, stream=True)
    assert sent(body, fields=["temperature"]) == ask(temperature=1)
    assert sent(ask(), fields=[]) == ask()


@pytest.mark.parametrize(
    "name",
    [
        *("seed", "tools", "MODEL", "Messages", "Temperature", "", "stream_options", "n"),
        *("max_tokens", "mode\u017f", "\ud800", "a" * 9000),
    ],
)
def test_any_other_member_is_refused_by_its_name(name: str) -> None:
    code, detail = refused(ask() | {name: 1}, fields=["temperature"])
    assert code == "field_not_allowed"
    assert name[:60] in detail
    assert len(detail) < 200


def test_what_a_preset_sets_itself_needs_no_listing() -> None:
    given = {"fields": [], "defaults": {"seed": 1}, "force": {"tools": []}}
    assert sent(ask(), **given) == ask(seed=1, tools=[])


def test_where_tokens_are_capped_nothing_is_laid_over_what_was_checked() -> None:
    body = ask(extra_body={"max_tokens": 9000})
    assert refused(body, max_output_tokens=80)[0] == "field_not_allowed"
    assert sent(body) == body


# Models


@pytest.mark.parametrize("name", ["models", "Models", "fallbacks", "extra_body", "api_base"])
def test_a_page_names_no_model_beside_the_model(name: str) -> None:
    code, detail = refused(ask() | {name: ["dear"]}, models=["pretend"])
    assert code == "model_not_allowed"
    assert name in detail
    assert sent(ask() | {"models": ["x"]}, models=["pretend"], fields=["models"])


# Tokens


def test_the_most_tokens_are_set_where_a_page_says_nothing() -> None:
    assert sent(ask(), max_output_tokens=80) == ask(max_tokens=80)
    assert sent(ask(max_tokens=None), max_output_tokens=80) == ask(max_tokens=80)
    assert sent(ask(), max_output_tokens=80, defaults={"max_tokens": 20}) == ask(max_tokens=20)
    assert sent(ask(), max_output_tokens=80, defaults={"max_tokens": 200}) == ask(max_tokens=80)


NAMES = ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict"]


@pytest.mark.parametrize("name", NAMES)
def test_fewer_are_sent_by_the_name_that_the_upstream_reads(name: str) -> None:
    assert sent(ask() | {name: 80}, max_output_tokens=80) == ask(max_tokens=80)
    assert sent(ask(max_tokens=9) | {name: 8}, max_output_tokens=80) == ask(max_tokens=8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wanted", [81, 10**30, 0, -1, 1.0, 1e3, "5", True, False, [], [5], {}, "", "80"]
)
def test_more_or_no_number_is_refused(name: str, wanted: Any) -> None:
    body = ask(max_tokens=1) | {name: wanted}
    code, detail = refused(body, max_output_tokens=80)
    assert code == "too_many_tokens"
    assert name in detail
    assert refused(body, max_output_tokens=80, fields=["max_tokens"])[0] == "too_many_tokens"


@pytest.mark.parametrize(
    "name", ["Max_Tokens", "maxTokens", "MAX_COMPLETION_TOKENS", "max_token\u017f"]
)
def test_a_bound_has_one_spelling(name: str) -> None:
    assert sent(ask() | {name: 5}) == ask() | {name: 5}
    assert refused(ask() | {name: 5}, max_output_tokens=80)[0] == "field_not_allowed"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1/chat/completions", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/deployments/m/chat/completions?a=b", NAMES[1]),
        ("https://notopenai.com/v1/chat/completions", "max_tokens"),
        ("https://openai.com.example/v1/chat/completions", "max_tokens"),
        ("http://vllm:8000/v1/chat/completions", "max_tokens"),
    ],
)
def test_the_name_is_the_one_that_this_upstream_knows(url: str, name: str) -> None:
    for body in (ask(), ask(max_tokens=80), ask(max_completion_tokens=80)):
        assert sent(body, url=url, max_output_tokens=80) == ask() | {name: 80}


@pytest.mark.parametrize("part", ["defaults", "force"])
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_preset_may_say_which_name_its_upstream_knows(part: str, name: str) -> None:
    given = {"url": "https://api.openai.com/v1/chat/completions", part: {name: 50}}
    wanted = 40 if part == "defaults" else 50
    assert sent(ask(max_tokens=40), max_output_tokens=80, **given) == ask() | {name: wanted}


def test_the_answers_share_the_tokens() -> None:
    assert sent(ask(n=3), max_output_tokens=80) == ask(n=3, max_tokens=26)
    assert sent(ask(n=2, max_tokens=40), max_output_tokens=80) == ask(n=2, max_tokens=40)
    assert sent(ask(n=None), max_output_tokens=80) == ask(n=None, max_tokens=80)
    for body in (ask(n=2, max_tokens=41), ask(n=81), ask(n=2, best_of=9, max_tokens=9)):
        assert refused(body, max_output_tokens=80)[0] == "too_many_tokens"
    given = {"max_output_tokens": 80, "force": {"n": 2}}
    assert refused(ask(max_tokens=41), **given)[0] == "too_many_tokens"


def test_each_prompt_of_a_legacy_request_has_its_answer() -> None:
    given: dict[str, Any] = {"url": "http://u/v1/completions", "max_output_tokens": 80}
    for one in ("a", ["a"], [1, 2, 3], []):
        assert sent({"prompt": one}, **given) == {"prompt": one, "max_tokens": 80}
    assert sent({"prompt": ["a", "b"]}, **given) == {"prompt": ["a", "b"], "max_tokens": 40}
    body = {"prompt": [[1], [2]], "n": 2, "max_tokens": 21}
    assert refused(body, **given)[0] == "too_many_tokens"


@pytest.mark.parametrize("n", [0, -1, 129, 10**30, 1.0, "2", True, [], [1]])
@pytest.mark.parametrize("name", ["n", "best_of"])
def test_the_number_of_answers_is_bounded_by_any_preset(name: str, n: Any) -> None:
    code, detail = refused(ask() | {name: n})
    assert code == "too_many_tokens"
    assert f'"{name}"' in detail


def test_a_bound_inside_a_member_is_set_there_and_nowhere_else() -> None:
    preset = Preset.model_validate({"max_output_tokens": 80})

    def made(config: Any) -> Any:
        return ruled(preset, {"config": config}, NESTED)["config"]

    assert made(None) == {"maxOutputTokens": 80}
    assert made({}) == {"maxOutputTokens": 80}
    assert made({"a": 1, "maxOutputTokens": 8}) == {"a": 1, "maxOutputTokens": 8}
    assert made({"candidateCount": 4}) == {"candidateCount": 4, "maxOutputTokens": 20}
    wrong: dict[str, list[Any]] = {
        "too_many_tokens": [
            *({"maxOutputTokens": 81}, {"maxOutputTokens": -1}, {"candidateCount": 81}),
            *({"candidateCount": "2"}, {"candidateCount": 2, "maxOutputTokens": 41}),
        ],
        "field_not_allowed": [
            {"max_output_tokens": 5},
            {"MAXOUTPUTTOKENS": 5},
            {"candidate_count": 1},
        ],
        "bad_request": [[], "x", 5, True, [{"maxOutputTokens": 5}]],
    }
    for code, configs in wrong.items():
        for config in configs:
            with pytest.raises(Rejected) as caught:
                made(config)
            assert caught.value.code == code, config


def test_of_a_bound_that_is_written_twice_only_the_checked_one_is_sent() -> None:
    preset = Preset.model_validate({"max_output_tokens": 80})
    body = RequestBody(b'{"config":{"maxOutputTokens":999,"maxOutputTokens":7}}').values
    made = ruled(preset, body, NESTED)
    assert made["config"] is not body["config"]
    assert made["config"] == {"maxOutputTokens": 7}


# How many, how long


def test_the_most_messages_pass_and_one_more_does_not() -> None:
    messages = [{"role": "user", "content": "x"}] * 3
    assert sent({"messages": messages}, max_messages=3) == {"messages": messages}
    code, detail = refused({"messages": messages}, max_messages=2)
    assert code == "too_many_messages"
    assert "messages" in detail
    assert "3" in detail


@pytest.mark.parametrize("messages", [{}, 5, True, {"0": {}}])
def test_messages_that_cannot_be_counted_are_refused(messages: Any) -> None:
    assert refused({"messages": messages}, max_messages=2)[0] == "bad_request"


@pytest.mark.parametrize("text", ["x" * 50, "é" * 50, "😀" * 50, "\n" * 50])
def test_as_many_characters_as_allowed_pass_and_one_more_does_not(text: str) -> None:
    parts = [{"type": "text", "text": text[:20]}, {"type": "text", "text": text[20:]}]
    for content in (text, parts):
        body = {"messages": [{"role": "user", "content": content}], "model": "a-model"}
        assert sent(body, max_chars=50) == body
        assert refused(body, max_chars=49)[0] == "request_too_long"
        whole = {**body, "temperature": 0.25, "user": "alice"}
        assert sent(whole, max_chars=50, system="Our rules.")["messages"][1:] == body["messages"]


def test_of_what_was_counted_nothing_else_is_sent() -> None:
    long = "x" * 100
    body = f'{{"messages":[{{"role":"user","content":"{long}","content":"y"}}]}}'
    raw = RequestBody(body.encode()).made(Preset.model_validate({"max_chars": 50})).text
    assert b"xx" not in raw
    assert json.loads(raw)["messages"] == [{"role": "user", "content": "y"}]

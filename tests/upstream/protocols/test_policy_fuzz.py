"""Whatever a page sends, nothing reaches an upstream that its preset does not allow.

The judge reads the bytes that are sent with a parser of its own, once as an upstream that takes the
first of two names and once as one that takes the last, with and without the case of names.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.presets import Preset
from gateway.errors import REJECTED, Rejected
from gateway.upstream.request_body import RequestBody

RULES: dict[str, Any] = {
    "models": ["small", "large"],
    "system": "House rules.",
    "max_output_tokens": 80,
    "max_messages": 3,
    "max_chars": 40,
    "include_usage": False,
}


class Place(NamedTuple):
    """Where an upstream's requests have what is ruled over."""

    url: str
    messages: str
    system: str
    caps: tuple[str, ...]
    copies: tuple[str, ...]
    holder: str


PLACES = {
    "openai": Place(
        *("http://u/v1/chat/completions", "messages", ""),
        *(("max_tokens", "max_completion_tokens", "n_predict"), ("n", "best_of"), ""),
    ),
    "responses": Place(
        "http://u/v1/responses", "input", "instructions", ("max_output_tokens",), (), ""
    ),
    "anthropic": Place("http://u/v1/messages", "messages", "system", ("max_tokens",), (), ""),
    "ollama": Place("http://u/api/chat", "messages", "", ("num_predict",), (), "options"),
    "gemini": Place(
        *("http://u/models/{model}:streamGenerateContent", "contents", "systemInstruction"),
        *(("maxOutputTokens",), ("candidateCount",), "generationConfig"),
    ),
}
ROLES = ["user", "assistant", "user", "system", "System ", "developer", "sy\u017ftem", "tool"]
WORDS = ["x", "House rules.", "small", "large", "dear", "y" * 39, "z" * 41, "system"]


class Pairs(list[tuple[str, Any]]):
    """An object as it is written: names may come twice."""


def written(value: Any) -> str:
    """Return JSON with the names that come twice."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def cased(names: list[str]) -> st.SearchStrategy[str]:
    """Return names, now and then spelled otherwise."""
    ways: list[Callable[[str], str]] = [*[str] * 20, str.upper, str.title]
    ways.append(lambda name: name.replace("s", "\u017f"))
    ways.append(lambda name: "".join(f"_{x.lower()}" if x.isupper() else x for x in name))
    return st.tuples(st.sampled_from(names), st.sampled_from(ways)).map(lambda two: two[1](two[0]))


def objects(names: list[str], values: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    """Return objects of such members."""
    return st.lists(st.tuples(cased(names), values), max_size=most).map(Pairs)


NUMBERS = st.sampled_from([1, 2, 5, 40, 80, 81, 10**20, -1, 0, 80.5, True, "80", None])
TEXTS = st.sampled_from(WORDS)
ROLE_OR_TEXT = st.one_of(
    st.tuples(cased(["role"]), st.sampled_from(ROLES)),
    st.tuples(cased(["content"]), TEXTS),
    st.tuples(cased(["content", "parts"]), st.lists(objects(["text"], TEXTS, 2), max_size=2)),
)
MESSAGES = st.lists(st.lists(ROLE_OR_TEXT, min_size=1, max_size=4).map(Pairs), max_size=4)


def bodies(place: Place) -> st.SearchStrategy[str]:
    """Return bodies that press on every rule, most of them on few at once."""
    numbers = [*place.caps, *place.copies]
    held = objects([*numbers, "seed"], NUMBERS, 3)
    bounds = st.tuples(cased(numbers), NUMBERS)
    if place.holder:
        bounds = st.tuples(cased([place.holder]), held)
    models = st.tuples(cased(["model"]), st.sampled_from(["small", "large", "large", "dear"]))
    messages = st.tuples(cased([place.messages]), MESSAGES)
    others = st.one_of(
        st.tuples(cased(["temperature", "tools", "seed", "stream"]), NUMBERS),
        st.tuples(cased(["models", "chat_template", "echo", "prompt"]), TEXTS),
        st.tuples(cased([place.system or "system", "instructions"]), TEXTS),
    )
    common = st.one_of(models, messages, bounds)
    return st.tuples(st.lists(common, max_size=5), st.lists(others, max_size=1)).map(
        lambda two: written(Pairs([*two[0], *two[1]]))
    )


def readings(data: bytes) -> list[Any]:
    """Return what upstreams may take for what was sent: the first or the last, in any case."""
    found = []
    for first in (True, False):
        for fold in (str, str.casefold):

            def read(pairs: list[tuple[str, Any]], first: bool = first, fold: Any = fold) -> Any:
                ordered = pairs[::-1] if first else pairs
                return {fold(name): value for name, value in ordered}

            found.append((json.loads(data, object_pairs_hook=read), fold))
    return found


def texts_of(value: Any) -> int:
    """Return the length of the text of messages, told by `content`, `text` and lists alone."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(texts_of, value))
    if isinstance(value, dict):
        inner = {"content", "text", "parts"}
        return sum(texts_of(each) for name, each in value.items() if name.casefold() in inner)
    return 0


def made(rules: dict[str, Any], body: str) -> bytes | None:
    """Return what is sent for a body, None if it is refused."""
    try:
        return RequestBody(body.encode()).made(Preset.model_validate(rules)).text
    except Rejected as refusal:
        code = refusal.code
    assert REJECTED[code][0] == 400
    return None


def judge(place: Place, sent: bytes) -> None:
    """Fail where what is sent is outside the rules, however it is read."""
    for request, fold in readings(sent):
        assert request[fold("model")] in RULES["models"]
        assert request.get(fold("stream"), True) is True
        assert not {"models", "chat_template", "echo"} & request.keys()
        holder = request[fold(place.holder)] if place.holder else request
        bounds = [holder[fold(name)] for name in place.caps if fold(name) in holder]
        copies = [holder.get(fold(name)) or 1 for name in place.copies]
        assert len(bounds) == 1
        assert type(bounds[0]) is int
        assert 1 <= bounds[0] * max(copies, default=1) <= 80
        said = request.get(fold(place.messages)) or []
        said = said if isinstance(said, list) else [{"role": "user", "content": said}]
        if place.system:
            ours = request[fold(place.system)]
            assert ours in ("House rules.", {"parts": [{"text": "House rules."}]})
        else:
            assert said[0] == {"role": "system", "content": "House rules."}
            said = said[1:]
        assert len(said) <= 3
        assert texts_of(said) <= 40
        for message in said:
            role = message.get("role", "user")
            assert role.strip().casefold() not in ("system", "developer")


@pytest.mark.parametrize("protocol", PLACES)
@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_outside_the_rules_reaches_an_upstream(protocol: str, data: Any) -> None:
    place = PLACES[protocol]
    rules = {**RULES, "protocol": protocol, "url": place.url}
    sent = made(rules, data.draw(bodies(place)))
    if sent is not None:
        judge(place, sent)


ROLE: dict[str, Any] = {
    "template": [{"role": "user", "content": "${message} in ${mood}"}],
    "variables": {"message": {"max_chars": 40}, "mood": {"choices": {"a": "A", "b": "B"}}},
    "fields": ["temperature"],
    "include_usage": False,
}


@given(body=objects(["message", "mood", "messages", "temperature"], TEXTS | NUMBERS | MESSAGES, 5))
@settings(max_examples=150, deadline=None)
def test_of_a_role_a_page_sets_nothing_but_its_variables_and_fields(body: Pairs) -> None:
    text = made(ROLE, written(body))
    if text is None:
        return
    sent = json.loads(text)
    assert sent.keys() <= {"messages", "temperature", "stream"}
    given = dict(body)
    mood = {"a": "A", "b": "B"}[given["mood"]]
    assert sent["messages"] == [{"role": "user", "content": f"{given['message']} in {mood}"}]


@given(body=objects(["temperature", "seed", "model", "messages"], TEXTS | NUMBERS, 6))
@settings(max_examples=150, deadline=None)
def test_only_listed_fields_pass_in_their_one_spelling(body: Pairs) -> None:
    sent = made({"fields": ["temperature"], "include_usage": False}, written(body))
    if sent is None:
        return
    names = [name for name, _ in json.loads(sent, object_pairs_hook=list)]
    assert len(names) == len(set(names))
    assert set(names) <= {"temperature", "model", "messages", "stream"}

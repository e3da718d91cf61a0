"""Chat completions: what is sent to an upstream, and what is refused before."""

from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols.chat import Chat
from tests.support import ask

USAGE = {"include_usage": True}


def preset(**members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate(members)


def prepared(given: Preset, body: dict[str, Any]) -> dict[str, Any]:
    """Return what a preset makes of a request."""
    return Chat().prepare(given, body)


def refused(given: Preset, body: dict[str, Any]) -> str:
    """Return the code that a request is refused with."""
    with pytest.raises(Rejected) as caught:
        prepared(given, body)
    assert caught.value.status == 400
    return caught.value.code


def test_a_request_is_sent_as_it_is_but_streamed_and_counted() -> None:
    sent = prepared(preset(), ask("Hi", temperature=0.5))
    assert sent == {**ask("Hi", temperature=0.5), "stream": True, "stream_options": USAGE}


def test_the_callers_body_is_not_changed() -> None:
    body = ask(stream_options={"x": 1})
    prepared(preset(force={"user": "u"}), body)
    assert body == ask(stream_options={"x": 1})


def test_defaults_fill_what_is_missing_only() -> None:
    sent = prepared(preset(defaults={"model": "m", "seed": 7}), ask())
    assert (sent["model"], sent["seed"]) == ("pretend", 7)


def test_a_null_of_the_caller_is_not_missing() -> None:
    assert prepared(preset(defaults={"seed": 7}), ask(seed=None))["seed"] is None


def test_force_wins_over_caller_and_defaults() -> None:
    forcing = preset(defaults={"seed": 1}, force={"seed": 2, "model": "cheap"})
    sent = prepared(forcing, ask(seed=3))
    assert (sent["model"], sent["seed"]) == ("cheap", 2)


def test_a_listed_model_passes() -> None:
    assert prepared(preset(models=["a", "pretend"]), ask())["model"] == "pretend"


@pytest.mark.parametrize("model", ["other", "Pretend", "", None, 5, ["pretend"]])
def test_a_model_that_is_not_listed_is_refused(model: Any) -> None:
    assert refused(preset(models=["pretend"]), ask() | {"model": model}) == "model_not_allowed"


def test_the_first_model_of_the_list_is_asked_where_a_page_names_none() -> None:
    assert prepared(preset(models=["b", "a"]), {"messages": []})["model"] == "b"
    given = preset(models=["b", "a"], defaults={"model": "a"})
    assert prepared(given, {"messages": []})["model"] == "a"


def test_the_list_judges_the_model_that_will_be_asked() -> None:
    forcing = preset(models=["cheap"], force={"model": "cheap"})
    assert prepared(forcing, ask())["model"] == "cheap"


def test_a_refusal_names_the_models_allowed() -> None:
    with pytest.raises(Rejected, match="a, b"):
        prepared(preset(models=["a", "b"]), ask())


def test_stream_true_may_be_said() -> None:
    assert prepared(preset(), ask(stream=True))["stream"] is True


@pytest.mark.parametrize("stream", [False, None, 0, 1, "true"])
def test_anything_but_a_stream_is_refused(stream: Any) -> None:
    assert refused(preset(), ask(stream=stream)) == "stream_required"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_caller_may_say_whether_to_count(wanted: bool) -> None:
    sent = prepared(preset(), ask(stream_options={"include_usage": wanted}))
    assert sent["stream_options"] == {"include_usage": wanted}


def test_other_stream_options_are_kept() -> None:
    sent = prepared(preset(), ask(stream_options={"include_obfuscation": False}))
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_null_stream_options_are_none() -> None:
    assert prepared(preset(), ask(stream_options=None))["stream_options"] == USAGE


def test_a_preset_may_leave_counting_out() -> None:
    assert "stream_options" not in prepared(preset(include_usage=False), ask())


@pytest.mark.parametrize("options", ["x", 5, [1], True, [], "", 0, False])
def test_stream_options_that_are_no_object_are_refused(options: Any) -> None:
    assert refused(preset(), ask(stream_options=options)) == "not_an_object"


# What is sent


def headers_of(**members: Any) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request of this preset."""
    return [*Chat().request(preset(url="http://u/v1", **members), b"{}").headers]


def test_a_request_is_a_post_of_the_body_as_it_is() -> None:
    sent = Chat().request(preset(url="http://u/v1?a=b"), b'{"n":1}')
    assert (sent.method, sent.url, sent.body) == ("POST", "http://u/v1?a=b", b'{"n":1}')
    assert [name for name, _ in sent.headers] == [
        *(b"Content-Type", b"Accept", b"Accept-Encoding", b"User-Agent")
    ]


def test_a_header_of_the_preset_takes_the_place_of_ours_whatever_its_case() -> None:
    given = {"authorization": "Caf\xe9", "X-A": "1", "x-a": "2", "ACCEPT": "*/*"}
    last = [*((name.encode(), value.encode("latin-1")) for name, value in given.items())]
    assert headers_of(api_key="sk-1", headers=given)[-4:] == last
    names = [name.lower() for name, _ in headers_of(api_key="sk-1", headers=given)]
    assert (names.count(b"authorization"), names.count(b"accept")) == (1, 1)


def test_the_key_is_a_bearer_token() -> None:
    assert headers_of(api_key="sk-1")[-1] == (b"Authorization", b"Bearer sk-1")

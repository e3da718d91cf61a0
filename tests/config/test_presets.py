"""Presets: what is sent to an upstream, and what is refused before."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.presets import Preset
from gateway.errors import Rejected
from tests.support import ask

USAGE = {"include_usage": True}


def preset(**members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate(members)


def refused(given: Preset, body: dict[str, Any]) -> str:
    """Return the code that a request is refused with."""
    with pytest.raises(Rejected) as caught:
        given.prepare(body)
    assert caught.value.status == 400
    return caught.value.code


def test_a_request_is_sent_as_it_is_but_streamed_and_counted() -> None:
    sent = preset().prepare(ask("Hi", temperature=0.5))
    assert sent == {**ask("Hi", temperature=0.5), "stream": True, "stream_options": USAGE}


def test_the_callers_body_is_not_changed() -> None:
    body = ask(stream_options={"x": 1})
    preset(force={"user": "u"}).prepare(body)
    assert body == ask(stream_options={"x": 1})


def test_defaults_fill_what_is_missing_only() -> None:
    sent = preset(defaults={"model": "m", "seed": 7}).prepare(ask())
    assert (sent["model"], sent["seed"]) == ("pretend", 7)


def test_a_null_of_the_caller_is_not_missing() -> None:
    assert preset(defaults={"seed": 7}).prepare(ask(seed=None))["seed"] is None


def test_force_wins_over_caller_and_defaults() -> None:
    forcing = preset(defaults={"seed": 1}, force={"seed": 2, "model": "cheap"})
    sent = forcing.prepare(ask(seed=3))
    assert (sent["model"], sent["seed"]) == ("cheap", 2)


def test_a_listed_model_passes() -> None:
    assert preset(models=["a", "pretend"]).prepare(ask())["model"] == "pretend"


@pytest.mark.parametrize("model", ["other", "Pretend", "", None, 5, ["pretend"]])
def test_a_model_that_is_not_listed_is_refused(model: Any) -> None:
    assert refused(preset(models=["pretend"]), ask() | {"model": model}) == "model_not_allowed"


def test_a_missing_model_is_refused_where_models_are_listed() -> None:
    assert refused(preset(models=["pretend"]), {"messages": []}) == "model_not_allowed"


def test_the_list_judges_the_model_that_will_be_asked() -> None:
    forcing = preset(models=["cheap"], force={"model": "cheap"})
    assert forcing.prepare(ask())["model"] == "cheap"


def test_a_refusal_names_the_models_allowed() -> None:
    with pytest.raises(Rejected, match="a, b"):
        preset(models=["a", "b"]).prepare(ask())


def test_stream_true_may_be_said() -> None:
    assert preset().prepare(ask(stream=True))["stream"] is True


@pytest.mark.parametrize("stream", [False, None, 0, 1, "true"])
def test_anything_but_a_stream_is_refused(stream: Any) -> None:
    assert refused(preset(), ask(stream=stream)) == "stream_required"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_caller_may_say_whether_to_count(wanted: bool) -> None:
    sent = preset().prepare(ask(stream_options={"include_usage": wanted}))
    assert sent["stream_options"] == {"include_usage": wanted}


def test_other_stream_options_are_kept() -> None:
    sent = preset().prepare(ask(stream_options={"include_obfuscation": False}))
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_null_stream_options_are_none() -> None:
    assert preset().prepare(ask(stream_options=None))["stream_options"] == USAGE


def test_a_preset_may_leave_counting_out() -> None:
    assert "stream_options" not in preset(include_usage=False).prepare(ask())


@pytest.mark.parametrize("options", ["x", 5, [1], True, [], "", 0, False])
def test_stream_options_that_are_no_object_are_refused(options: Any) -> None:
    assert refused(preset(), ask(stream_options=options)) == "not_an_object"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"modles": []}, {"retries": -1}, {"retries": 11}, {"on_leave": "stay"}, {"stall": -1}),
        *(
            {"retry_on": [200]},
            {"retry_on": [399, 500]},
            {"retry_on": [600]},
            {"retry_on": ["500"]},
        ),
        *({"retry_on": [True]}, {"retry_on": 500}, {"retry_after_max": float("inf")}),
        *({"on_crash": "retry"}, {"crash_restarts": 0}, {"crash_restarts": 11}),
    ],
)
def test_a_wrong_member_is_refused_when_the_preset_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        preset(**wrong)


def test_a_preset_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        preset().url = "http://elsewhere/"


# What goes into the head of a request


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\n\n"])
def test_the_end_of_a_mounted_secrets_line_is_no_part_of_it(end: str) -> None:
    headers = {f"api-key{end}": f"azure{end}", "x-title": f"Caf\xe9{end}"}
    got = preset(api_key=f"\ufeffsk-1{end}", headers=headers, url=f"http://u/v1{end}")
    assert (got.api_key.get_secret_value(), got.url) == ("sk-1", "http://u/v1")
    assert got.headers == {"api-key": "azure", "x-title": "Caf\xe9"}


SMUGGLED = ["sk-1\r\nX-Smuggled: 1", "sk-1\nsk-2", "sk\0-1", "sk\x1b[31m-1", "sk\x7f-1", "a\tb"]
UNSENDABLE = [
    *({"api_key": each} for each in SMUGGLED),
    *({"headers": {"api-key": each}} for each in SMUGGLED),
    *({"headers": {each: "x"}} for each in [*SMUGGLED, "", "a b", "a:", "\xe9"]),
    *({"url": f"http://u/{each}"} for each in SMUGGLED),
    *({"api_key": "\u201csk-1\u201d"}, {"headers": {"x": "sk-1\u20ac"}}),
    {"headers": {"Transfer-Encoding": "chunked"}},
]


@pytest.mark.parametrize("wrong", UNSENDABLE, ids=range(len(UNSENDABLE)))
def test_what_cannot_be_sent_in_one_line_is_refused_and_not_shown(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        preset(**wrong)
    (error,) = caught.value.errors(include_input=False)
    assert error["loc"][0] in wrong
    assert "sk" not in error["msg"]

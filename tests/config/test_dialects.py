"""Dialects: what a preset tells of its upstream's answers, and what it may not."""

from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.config.settings import load
from gateway.errors import SettingsError


def preset(**members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate(members)


def test_the_dialect_is_the_protocol_alone_where_no_more_is_told() -> None:
    assert preset().dialect == "openai"
    assert preset(strict_end=False, broken_off=[]).dialect == "openai"


def test_a_dialect_is_the_same_in_whatever_order_and_case_it_is_told() -> None:
    one = preset(strict_end=True, broken_off=["Pause", "abc"]).dialect
    assert one == preset(broken_off=["abc", "PAUSE", "pause"], strict_end=True).dialect
    assert one == 'openai {"broken_off":["abc","pause"],"strict_end":true}'


def test_a_path_is_the_short_form_of_one_that_counts_everywhere() -> None:
    short = preset(protocol="sse", end={"close": True}, text="a.b").dialect
    assert short == preset(protocol="sse", end={"close": True}, text={"path": "a.b"}).dialect
    assert short == 'sse {"end":{"close":true},"text":{"path":"a.b"}}'


@pytest.mark.parametrize("value", [0, False, True, 1.5, "", "x"])
def test_a_value_is_kept_as_it_is(value: Any) -> None:
    got = preset(protocol="sse", end={"path": "a", "value": value})
    assert got.end is not None
    assert (got.end.value, type(got.end.value)) == (value, type(value))


WRONG: dict[str, dict[str, Any]] = {
    "end is missing": {"protocol": "sse"},
    "end is for": {"end": {"close": True}},
    "text is for": {"protocol": "ollama", "text": "a"},
    "strict_end is for": {"protocol": "gemini", "strict_end": False},
    "broken_off is for": {"protocol": "sse", "end": {"close": True}, "broken_off": ["a"]},
    "give one of": {"protocol": "sse", "end": {}},
    "close = true": {"protocol": "sse", "end": {"close": False}},
    "data = ": {"protocol": "sse", "end": {"event": "a", "data": "b"}},
    "go together": {"protocol": "sse", "end": {"path": "a"}},
    "without a name": {"protocol": "sse", "end": {"event": "message"}},
    "end.path": {"protocol": "sse", "end": {"path": "a..b", "value": 1}},
    "text.path": {"protocol": "sse", "end": {"close": True}, "text": ".a"},
    "end.evnt": {"protocol": "sse", "end": {"evnt": "a"}},
    "broken_off.0": {"broken_off": [""]},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_dialect_that_cannot_be_is_told_in_one_line(said: str) -> None:
    given = {"presets": {"talk": {"url": "http://u/v1", **WRONG[said]}}}
    with pytest.raises(SettingsError) as raised:
        load(given)
    line = str(raised.value)
    assert "presets.talk" in line
    assert said in line
    assert "\n" not in line

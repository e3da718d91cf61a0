"""Presets: what may be in one, and what gets into the head of a request."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.presets import Preset, fallback_faults


def preset(**members: Any) -> Preset:
    """Return a preset of these members."""
    return Preset.model_validate(members)


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


FALLBACKS = {
    "nobody": ({"a": {"fallback": ["b"]}}, "presets.a.fallback: there is no preset b"),
    "itself": ({"a": {"fallback": ["a"]}}, "presets.a.fallback: a leads back to a"),
    "a circle": (
        {"a": {"fallback": ["b"]}, "b": {"fallback": ["c"]}, "c": {"fallback": ["a"]}},
        "presets.a.fallback: b leads back to a",
    ),
    "another protocol": (
        {"a": {"fallback": ["b"]}, "b": {"protocol": "anthropic"}},
        "presets.a.fallback: b speaks anthropic, a openai; a page reads one protocol",
    ),
    "another API of events": (
        {
            "a": {"protocol": "sse", "end": {"data": "1"}, "text": "a", "fallback": ["b"]},
            "b": {"protocol": "sse", "end": {"data": "1"}, "text": "b"},
        },
        "presets.a.fallback: b declares another API than a; a page reads one protocol",
    ),
}


@pytest.mark.parametrize(("tables", "fault"), FALLBACKS.values(), ids=FALLBACKS)
def test_a_fallback_that_leads_nowhere_or_astray_is_told(tables: Any, fault: str) -> None:
    presets = {name: Preset.model_validate(each) for name, each in tables.items()}
    assert next(fallback_faults(presets)) == fault

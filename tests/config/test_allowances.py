"""Allowances: an operator reads what a page may ask, and no prompt."""

from typing import Any

import pytest

from gateway.config.allowances import allowance
from gateway.config.presets import Preset

TALK: dict[str, Any] = {
    "template": [{"role": "user", "content": "secret ${a} ${b} ${c}"}],
    "variables": {
        "a": {"max_chars": 5},
        "b": {"choices": {"poet": "secret", "pirate": "secret"}, "default": "poet"},
        "c": {},
    },
    "public": False,
}
NONE = "no bound of tokens, messages or characters"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, f"openai, for pages; any field; any model; {NONE}"),
        (
            {"fields": [], "models": ["a", "b"], "system": "secret", "max_chars": 5},
            "openai, for pages; no field but model, messages and stream; models a, b; "
            "our system prompt alone; at most 5 characters",
        ),
        (
            {"fields": ["seed", "n"], "allow_system": False, "max_output_tokens": 8},
            "openai, for pages; the fields seed, n; any model; no system prompt; "
            "at most 8 tokens of output",
        ),
        (
            {"protocol": "anthropic", "system": "secret", "allow_system": True},
            "anthropic, for pages; any field; any model; our system prompt, then the page's; "
            f"{NONE}",
        ),
        (
            {"fallback": ["spare", "last"]},
            f"openai, for pages; any field; any model; {NONE}; where it refuses, spare, then last",
        ),
        (
            TALK | {"fields": ["seed"]},
            "openai, for no page; a role that takes a (to 5 characters), "
            f"b (one of poet, pirate, or none), c (a text) and the fields seed; any model; {NONE}",
        ),
    ],
)
def test_all_that_a_page_may_ask_is_in_one_line(members: dict[str, Any], expected: str) -> None:
    assert allowance(Preset.model_validate(members)) == expected

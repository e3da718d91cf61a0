"""Templates: what can be wrong with one, and how its places are filled."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.templates import Variable, filled, places, template_faults

TEMPLATE = [{"role": "user", "content": "${a}", "more": [{"deep": "${b} ${a} $${no}"}]}]


def faults(template: list[dict[str, Any]], variables: dict[str, dict[str, Any]]) -> list[str]:
    """Return what is wrong."""
    given = {name: Variable.model_validate(each) for name, each in variables.items()}
    return list(template_faults(template, given))


def test_a_place_may_be_in_any_string_and_two_dollars_are_none() -> None:
    assert list(places(TEMPLATE)) == ["a", "b", "a"]
    assert filled(TEMPLATE, {"a": "1", "b": "${a}"}) == [
        {"role": "user", "content": "1", "more": [{"deep": "${a} 1 ${no}"}]}
    ]
    for text in ("$", "$5", "${", "${a", "a$", "}$ {a}"):
        assert list(places(text)) == []
        assert filled(text, {}) == text
    assert filled([5, None, True, {"${a}": "$$$$"}], {}) == [5, None, True, {"${a}": "$$"}]


def test_a_template_and_its_variables_may_be_right() -> None:
    b: dict[str, Any] = {"choices": {"x": "", "y": "1"}}
    assert faults(TEMPLATE, {"a": {"max_chars": 5, "default": "12345"}, "b": b}) == []
    assert faults([], {}) == []


@pytest.mark.parametrize(
    ("template", "variables", "expected"),
    [
        (TEMPLATE, {"a": {}}, ["template: ${b} is no variable of it"]),
        (TEMPLATE, {}, [f"template: ${{{each}}} is no variable of it" for each in "ab"]),
        (TEMPLATE, {"a": {}, "b": {}, "c": {}}, ["variables.c: the template does not name it"]),
        ([], {"a": {}}, ["variables: there is no template that they could fill"]),
        ([{"role": "user", "content": "${}"}], {}, ["template: ${} is no variable of it"]),
    ],
)
def test_what_does_not_fit_is_told(
    template: list[dict[str, Any]], variables: dict[str, Any], expected: list[str]
) -> None:
    assert faults(template, variables) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "${a}"}, "message 1 has no role"),
        ({"role": 5, "content": "${a}"}, "message 1 has no role"),
        ({"role": "user", "content": ["${a}"]}, "content of message 1 is no text"),
        ({"role": "user", "content": {"text": "${a}"}}, "content of message 1 is no text"),
        ({"role": "user", "content": "Hello"}, "it names no ${variable}"),
    ],
)
def test_a_message_that_is_none_is_told(message: dict[str, Any], expected: str) -> None:
    variables: dict[str, Any] = {} if expected.startswith("it names") else {"a": {}}
    (fault,) = faults([message], variables)
    assert fault.startswith("template: ")
    assert expected in fault


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ({"choices": {"x": "1"}, "default": "y"}, "default: y is none of its choices"),
        ({"choices": {"x": "1"}, "max_chars": 5}, "max_chars: its choices are our own texts"),
        ({"max_chars": 2, "default": "123"}, "default: it is longer than max_chars"),
    ],
)
def test_a_variable_that_can_never_be_right_is_told(variable: Any, expected: str) -> None:
    (fault,) = faults([{"role": "user", "content": "${a}"}], {"a": variable})
    assert fault.startswith(f"variables.a.{expected}")


def test_a_variable_s_name_is_a_word() -> None:
    (fault,) = faults([{"role": "user", "content": "${a b}"}], {"a b": {}})
    assert fault == "variables.a b: a name has letters, digits, _ and -"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_chars": 0}, {"max_chars": "5"}, {"max_chars": True}, {"choices": ["x"]}),
        *({"choices": {"x": 1}}, {"default": 5}, {"chioces": {}}),
    ],
)
def test_a_wrong_member_of_a_variable_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Variable.model_validate(wrong)

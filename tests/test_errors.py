"""Errors: every code is in the contract, and the contract names no code that nobody raises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from gateway.errors import (
    REJECTED,
    TOO_MANY,
    UNAVAILABLE,
    Fenced,
    GatewayError,
    Rejected,
    SettingsError,
    Unavailable,
    UpstreamFailure,
    redacted,
    with_cause,
)

SOURCES = sorted(Path(gateway.__file__).parent.rglob("*.py"))


def raised(name: str) -> set[str]:
    """Return the codes that our modules give to this class."""
    return {code for path in SOURCES for code in _codes(ast.parse(path.read_text("utf-8")), name)}


def _codes(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            assert node.args, f"line {node.lineno}: a {name} without a code"
            assert isinstance(node.args[0], ast.Constant), f"line {node.lineno}: no literal code"
            yield str(node.args[0].value)


@pytest.mark.parametrize(("name", "table"), [("Rejected", REJECTED), ("Unavailable", UNAVAILABLE)])
def test_every_code_raised_is_in_the_table(name: str, table: dict[str, object]) -> None:
    assert raised(name) - table.keys() == set()


@pytest.mark.parametrize(("name", "table"), [("Rejected", REJECTED), ("Unavailable", UNAVAILABLE)])
def test_every_code_of_the_table_is_raised_somewhere(name: str, table: dict[str, object]) -> None:
    assert table.keys() - raised(name) == set()


@pytest.mark.parametrize("code", REJECTED)
def test_a_refusal_has_its_codes_status_and_title(code: str) -> None:
    refusal = Rejected(code, "why")
    assert (refusal.status, refusal.title) == REJECTED[code]
    assert 400 <= refusal.status <= 500 or code == "not_started"
    assert (refusal.detail, str(refusal)) == ("why", "why")


@pytest.mark.parametrize("code", UNAVAILABLE)
def test_what_will_pass_is_503_or_429_and_has_a_title(code: str) -> None:
    passing = Unavailable(code)
    status = 429 if code in TOO_MANY else 503
    assert (passing.status, passing.title, str(passing)) == (status, UNAVAILABLE[code], code)


@pytest.mark.parametrize("code", [*REJECTED, *UNAVAILABLE])
def test_codes_are_words_that_a_client_can_switch_on(code: str) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", code)


def test_no_code_means_two_things() -> None:
    assert not REJECTED.keys() & UNAVAILABLE.keys()
    titles = [*(title for _, title in REJECTED.values()), *UNAVAILABLE.values()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("kind", [Rejected, Unavailable])
def test_an_unknown_code_is_a_mistake_of_ours(kind: type[Rejected] | type[Unavailable]) -> None:
    with pytest.raises(KeyError):
        kind("no_such_code")


@pytest.mark.parametrize("kind", [SettingsError, Rejected, Unavailable, UpstreamFailure, Fenced])
def test_one_except_clause_catches_all_of_ours(kind: type[Exception]) -> None:
    assert issubclass(kind, GatewayError)


def test_a_failed_upstream_request_may_have_been_paid_for_unless_said_otherwise() -> None:
    failed = UpstreamFailure("upstream_cut", "It broke.", state="truncated")
    assert (failed.sure, failed.retryable, failed.status) == (False, False, None)
    assert str(failed) == failed.message == "It broke."


def test_what_an_upstream_says_is_one_harmless_line_of_a_log() -> None:
    said = with_cause("Wrong\nkey\x1b[2J \ud800", None)
    assert said == "Wrong key\ufffd[2J \ufffd"


SHOWN = {
    "redis://u:p@ss@h:1/0": "redis://***@h:1/0",
    "unix://u:p@/run/redis.sock?db=1": "unix://***@/run/redis.sock?db=1",
    "https://h/v1?api-version=1&key=k&sig=s": "https://h/v1?api-version=1&key=***&sig=***",
    "https://h/v1?k#f": "https://h/v1?***#***",
    "cannot POST /v1/x?token=t: no": "cannot POST /v1/x?token=***: no",
    "p: https://h/v1?key=a:b.c: gone": "p: https://h/v1?key=***: gone",
    "'https://a:b@h/' and https://h/@cf/m, why?": "'https://***@h/' and https://h/@cf/m, why?",
    "nothing to hide? a=b": "nothing to hide? a=b",
}


@pytest.mark.parametrize(("words", "shown"), SHOWN.items())
def test_what_operators_read_of_a_url_has_no_login_and_no_key(words: str, shown: str) -> None:
    assert redacted(words) == shown
    assert with_cause(words, None) == shown

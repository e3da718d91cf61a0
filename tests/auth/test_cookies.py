"""Cookies: found in one pass, read as frameworks write them, none hidden by another."""

from collections.abc import Callable
from contextlib import suppress
from http.cookies import SimpleCookie
from time import process_time
from typing import Any

import pytest

from gateway.auth.cookies import Cookies, Crowded, values_of


def test_a_cookie_is_found_among_others() -> None:
    cookies = Cookies(["a=1; session=abc.def; b=2"])
    assert cookies["session"] == "abc.def"
    assert dict(cookies) == {"a": "1", "session": "abc.def", "b": "2"}
    assert len(cookies) == 3


@pytest.mark.parametrize(
    "line",
    [
        "session=x",
        "session = x ",
        ";;session=x;;",
        "a;session=x",
        "=;session=x",
        "\tsession=x\t",
        'session="x"',
        "xsession=y; session=x; sessionx=y",
        "a=session=y; session=x",
        'a="; session=x',
    ],
)
def test_a_cookie_is_read_however_it_is_written(line: str) -> None:
    assert Cookies([line])["session"] == "x"


@pytest.mark.parametrize("line", ["", ";", "=", "session", "a=session=x", "Session=x", "a b=x"])
def test_what_is_not_there_is_not_found(line: str) -> None:
    cookies = Cookies([line])
    assert "session" not in cookies
    assert cookies.get("session", "none") == "none"
    with pytest.raises(KeyError):
        cookies["session"]


@pytest.mark.parametrize(
    "value", ['a"b', "a\\b", "a b", "ä", "a;b", "a,b", "\x01", "plain", '"', '\\"', "e30=/+"]
)
def test_a_value_is_quoted_as_the_standard_library_quotes(value: str) -> None:
    written: SimpleCookie = SimpleCookie({"session": value})
    assert Cookies([written.output(header="").strip()])["session"] == value


def test_a_name_is_no_pattern() -> None:
    assert Cookies(["aXb=1; a.b=2"])["a.b"] == "2"


def test_http_2_has_a_line_for_each_cookie() -> None:
    cookies = Cookies(["a=1", "session=x", "b=2; c=3"])
    assert (cookies["session"], cookies["c"]) == ("x", "3")


def test_of_one_name_all_values_are_known_once_each_and_the_last_is_the_one() -> None:
    cookies = Cookies(["session=a; session=b", "session=a; session=c"])
    assert values_of(cookies, "session") == ["a", "b", "c"]
    assert cookies["session"] == "c"


def test_a_plain_mapping_has_one_value_or_none() -> None:
    assert values_of({"session": "a"}, "session") == ["a"]
    assert values_of({}, "session") == []


def test_the_others_show_each_value_of_what_was_asked_for() -> None:
    cookies = Cookies(["a=1; a=2; b=3; a=4; b=5"])
    assert (cookies["a"], cookies.get("c")) == ("4", None)
    assert [(other["a"], other["b"]) for other in cookies.others(2)] == [("2", "3"), ("1", "3")]


def test_what_was_not_asked_for_has_no_others() -> None:
    cookies = Cookies(["a=1; b=3; b=5"])
    assert cookies["a"] == "1"
    assert list(cookies.others(0)) == []


@pytest.mark.parametrize("number", [17, 1000])
def test_a_name_with_more_values_than_are_looked_at_is_refused(number: int) -> None:
    """Whoever can set that many of them could hide the user's own behind one that is theirs."""
    cookies = Cookies(["; ".join(f"session={each}" for each in range(number)) + "; a=1"])
    with pytest.raises(Crowded):
        values_of(cookies, "session")
    with pytest.raises(Crowded):
        cookies.get("session")
    with pytest.raises(Crowded):
        cookies.lines(4)
    assert cookies["a"] == "1"
    assert len(values_of(Cookies(["; ".join(f"a={each}" for each in range(16))]), "a")) == 16


def test_others_are_as_many_as_are_looked_at_or_none() -> None:
    cookies = Cookies(["a=1; a=2; a=3"])
    assert cookies["a"] == "3"
    assert len(list(cookies.others(2))) == 2
    with pytest.raises(Crowded):
        next(cookies.others(1))


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("", []),
        ('a="1 2"; b=3', ['a="1 2"; b=3']),
        ("a=1; a=1; b=2", ["a=1; a=1; b=2"]),
        ("a=1; b=2; a=3", ["a=3; b=2", "a=1; b=2"]),
        ("a=1; b=2; a=3; a=4; b=5", ["a=4; b=5", "a=3; b=2", "a=1; b=2"]),
        ("a=1; a=2; a=3; b=4", ["a=3; b=4", "a=2; b=4", "a=1; b=4"]),
    ],
)
def test_each_of_a_name_has_its_turn_where_they_are_passed_on(line: str, lines: list[str]) -> None:
    assert Cookies([line]).lines(3) == lines


HOSTILE = {
    "quotes": 'session="' + '\\"' * 80_000 + '"',
    "octal quotes": 'session="' + "\\101" * 40_000 + '"',
    "open quotes": 'session="' * 20_000,
    "semicolons": ";" * 160_000,
    "spaces": "; " * 80_000,
    "one space after the other": ";" + " " * 160_000,
    "the name": "session" * 22_000,
    "the name and spaces": (";session" + " " * 100) * 1500,
    "the cookie": "session=x;" * 16_000,
    "different ones": "".join(f"session={number};" for number in range(10_000)),
    "other names": "".join(f"{number}=;" for number in range(20_000)),
}


ASKED: list[Callable[[Cookies], Any]] = [
    *(lambda cookies: cookies.get("session"), lambda cookies: values_of(cookies, "session")),
    *(dict, lambda cookies: list(cookies.others(3)), lambda cookies: cookies.lines(4)),
]


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_no_line_takes_longer_than_its_length(line: str) -> None:
    """Of 160 KB; the square of it is 25 s, in which nobody else is served."""
    started = process_time()
    for _ in range(10):
        cookies = Cookies([line])
        for ask in ASKED:
            with suppress(Crowded):
                ask(cookies)
    assert process_time() - started < 1

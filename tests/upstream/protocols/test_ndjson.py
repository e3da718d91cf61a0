"""Lines of JSON: bytes in, events out, however they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import Event, encode, parse
from gateway.upstream.protocols.ndjson import JsonLines

BODY = '{"a":"x\u2028\x85y"}\r\n\n {"b":1}\n{"c":2}\n'.encode()
EVENTS = [Event('{"a":"x\u2028\x85y"}'.encode()), Event(b'{"b":1}'), Event(b'{"c":2}')]


@given(st.lists(st.integers(0, len(BODY)), max_size=6).map(sorted))
def test_lines_are_the_same_wherever_reads_cut_them(cuts: list[int]) -> None:
    lines, events = JsonLines(100), []
    for start, end in zip([0, *cuts], [*cuts, len(BODY)], strict=True):
        events += lines.feed(BODY[start:end])
    assert events == EVENTS
    assert (lines.rest(), lines.odd, lines.strays) == ([], False, b"")


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert JsonLines(100).feed(b'\xef\xbb\xbf{"a":1}\n') == [Event(b'{"a":1}')]


def test_the_last_line_may_lack_its_newline() -> None:
    lines = JsonLines(100)
    assert lines.feed(b'{"a":1}\n{"b":') == [Event(b'{"a":1}')]
    assert lines.feed(b"2}") == []
    assert (lines.rest(), lines.rest()) == ([Event(b'{"b":2}')], [])


def test_a_carriage_return_inside_of_a_line_cannot_end_one_of_a_viewer() -> None:
    (event,) = JsonLines(100).feed(b'{"a":\r1,\r"b":2}\n')
    assert parse(encode(event.data, b"1-1")) == [Event(event.data, b"", b"1-1")]
    assert event.data.split() == [b'{"a":', b"1,", b'"b":2}']


@pytest.mark.parametrize(
    ("body", "strays"),
    [
        (b"<html>\n\n<h1>\n", b"<html>\n<h1>\n"),
        (b'[{"error":"x"}]\n', b'[{"error":"x"}]\n'),
        (b'{\n  "error": "x"\n}\n', b'{\n"error": "x"\n}\n'),
        (b'data: {"a":1}\n', b'data: {"a":1}\n'),
    ],
)
def test_what_is_no_line_of_json_is_kept_aside(body: bytes, strays: bytes) -> None:
    lines = JsonLines(100)
    assert lines.feed(body) == []
    assert (lines.odd, bytes(lines.strays)) == (True, strays)


def test_what_was_cut_off_is_kept_aside_only_if_it_is_of_no_line() -> None:
    for rest, strays in ((b'{"a":', b""), (b"<html>", b"<html>\n"), (b"", b"")):
        lines = JsonLines(100)
        lines.feed(rest)
        lines.abandon()
        assert bytes(lines.strays) == strays


def test_a_line_that_is_too_large_is_told_before_it_ends_and_none_after_it_returned() -> None:
    lines = JsonLines(10)
    assert lines.feed(b'{"a":1}\n{"a":') == [Event(b'{"a":1}')]
    assert not lines.overflow
    assert lines.feed(b"123456") == []
    assert (lines.overflow, lines.odd) == (True, True)
    assert lines.feed(b'}\n{"a":1}\n') == []


def test_a_flood_of_blank_lines_is_noise() -> None:
    lines = JsonLines(100, noise=10_000)
    assert lines.feed(b'{"a":1}\n' + b"\n" * 200) == [Event(b'{"a":1}')]
    assert (lines.noisy, lines.overflow, lines.odd) == (True, True, True)


def test_a_line_in_a_hundred_thousand_pieces_costs_no_more_than_its_bytes() -> None:
    lines = JsonLines(2_000_000)
    for _ in range(100_000):
        lines.feed(b"x")
    assert len(lines._pieces) <= 1025
    assert not lines.overflow

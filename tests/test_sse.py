"""The event stream format: WHATWG HTML §9.2, byte for byte, however the bytes are cut."""

import itertools

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import (
    HEARTBEAT,
    OURS,
    RESERVED,
    Event,
    Parser,
    Renaming,
    after,
    comment,
    encode,
    lines,
    parse,
    retry,
    safe_name,
)

LIMIT = 1 << 16

# Everything the format gives a meaning to, and what only looks as if it had one.
PIECES = [
    *(b"data", b"data:", b"data: ", b"data:x", b"event: n", b"id: 7", b"retry: 5", b": c", b"\0"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b" ", b":", b"\xff", b"x"),
]
streams = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
data_of_one_event = st.binary(max_size=200).filter(lambda data: b"\r" not in data)
names = st.sampled_from([b"", b"chunk", b"response.done"])


def fed(*chunks: bytes, limit: int = LIMIT) -> list[Event]:
    """Return the events of a stream that came in these chunks."""
    parser = Parser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


FIELDS = {
    "one space after the colon is dropped": (b"data: x", Event(b"x")),
    "no space is needed": (b"data:x", Event(b"x")),
    "a second space is data": (b"data:  x", Event(b" x")),
    "a tab is data": (b"data:\tx", Event(b"\tx")),
    "spaces at the end are data": (b"data: x ", Event(b"x ")),
    "colons in data are data": (b"data: a: b", Event(b"a: b")),
    "lines are joined by a newline": (b"data: a\ndata: b", Event(b"a\nb")),
    "an empty line of data counts": (b"data: a\ndata:\ndata: b", Event(b"a\n\nb")),
    "data alone is empty data": (b"data", Event(b"")),
    "data twice alone is a newline": (b"data\ndata", Event(b"\n")),
    "an empty value is empty data": (b"data:", Event(b"")),
    "one space alone is empty data": (b"data: ", Event(b"")),
    "unknown fields are ignored": (b"foo: bar\ndata: x\nfoo", Event(b"x")),
    "field names are of exact case": (b"Data: no\ndata: x", Event(b"x")),
    "a longer name is another field": (b"data2: no\ndata: x", Event(b"x")),
    "a space before a field makes it another": (b" data: no\ndata: x", Event(b"x")),
    "comments are ignored": (b": hello\ndata: x\n:data: no", Event(b"x")),
    "retry is ignored": (b"retry: 10\ndata: x", Event(b"x")),
    "the name": (b"event: n\ndata: x", Event(b"x", b"n")),
    "the last name wins": (b"event: a\ndata: x\nevent: b", Event(b"x", b"b")),
    "event alone is the default name": (b"event: a\nevent\ndata: x", Event(b"x")),
    "the id": (b"id: 7\ndata: x", Event(b"x", b"", b"7")),
    "an id after the data": (b"data: x\nid: 7", Event(b"x", b"", b"7")),
    "an id with NUL is ignored": (b"id: 7\nid: 8\0\ndata: x", Event(b"x", b"", b"7")),
    "NUL is data": (b"data: \0", Event(b"\0")),
    "U+2028 ends no line": ("data: a\u2028b".encode(), Event("a\u2028b".encode())),
    "U+0085 ends no line": ("data: a\x85b".encode(), Event("a\x85b".encode())),
    "VT and FF end no line": (b"data: a\x0bb\x0cc", Event(b"a\x0bb\x0cc")),
    "invalid UTF-8 stays": (b"data: \xff\xfe\xc3", Event(b"\xff\xfe\xc3")),
    "a BOM inside is data": (b"data: \xef\xbb\xbf", Event(b"\xef\xbb\xbf")),
}


@pytest.mark.parametrize(("block", "event"), FIELDS.values(), ids=FIELDS)
def test_fields_mean_what_the_standard_says(block: bytes, event: Event) -> None:
    assert fed(block + b"\n\n") == [event]


NOTHING = [b"", b"\n", b": a comment\n", b"event: n\n", b"id: 7\n", b"retry: 5\n", b"foo\n"]


@pytest.mark.parametrize("block", NOTHING)
def test_a_block_without_data_is_no_event_and_leaves_nothing_to_the_next(block: bytes) -> None:
    assert fed(b"data: a\n\n" + block + b"\ndata: b\n\n") == [Event(b"a"), Event(b"b")]


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
def test_lines_end_with_lf_cr_or_both(newline: bytes) -> None:
    stream = b"event: n\ndata: a\ndata: b\n\ndata: c\n\n".replace(b"\n", newline)
    assert fed(stream) == [Event(b"a\nb", b"n"), Event(b"c")]


def test_line_ends_may_be_mixed() -> None:
    assert fed(b"data: a\rdata: b\r\ndata: c\n\r\ndata: d\r\r") == [Event(b"a\nb\nc"), Event(b"d")]


def test_cr_and_lf_in_two_chunks_are_one_line_end() -> None:
    assert fed(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [Event(b"a\nb")]


def test_an_event_is_given_at_a_final_cr_without_waiting_for_an_lf() -> None:
    parser = Parser(LIMIT)
    assert parser.feed(b"data: a\r\n\r") == [Event(b"a")]
    assert parser.feed(b"\ndata: b\n\n") == [Event(b"b")]


@pytest.mark.parametrize("cut", range(4))
def test_one_bom_at_the_start_is_dropped_also_when_cut(cut: int) -> None:
    stream = b"\xef\xbb\xbfdata: a\n\n"
    assert fed(stream[:cut], stream[cut:]) == [Event(b"a")]


def test_a_second_bom_makes_the_field_an_unknown_one() -> None:
    assert fed(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n") == [Event(b"b")]


def test_what_begins_like_a_bom_and_is_none_is_kept() -> None:
    assert fed(b"\xef", b"\xbb", b"x\ndata: a\n\n") == [Event(b"a")]


@pytest.mark.parametrize("rest", [b"data: b", b"data: b\n", b"data: b\r", b"id: 1\ndata: b\n"])
def test_an_event_without_its_blank_line_is_discarded(rest: bytes) -> None:
    assert fed(b"data: a\n\n", rest) == [Event(b"a")]


def test_events_before_one_that_is_too_large_are_given_and_none_after() -> None:
    parser = Parser(limit=20)
    stream = b"data: a\n\ndata: " + b"x" * 20 + b"\n\ndata: b\n\n"
    assert parser.feed(stream) == [Event(b"a")]
    assert parser.overflow
    assert parser.feed(b"data: c\n\n") == []


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_an_event_at_the_limit_is_one_however_it_is_cut(newline: bytes) -> None:
    block = b"data: " + b"x" * 14 + newline + newline
    for cut in range(len(block) + 1):
        parser = Parser(limit=20)
        assert parser.feed(block[:cut]) + parser.feed(block[cut:]) == [Event(b"x" * 14)]
        assert not parser.overflow


def test_an_event_that_never_ends_overflows_before_it_is_whole() -> None:
    parser = Parser(limit=20)
    assert parser.feed(b"data: " + b"x" * 14) == []
    assert not parser.overflow
    parser.feed(b"x")
    assert parser.overflow


def begins_with_end(block: bytes, whole: bool) -> bool:
    """Know an event to be large by its start alone."""
    return block.startswith(b"event: end")


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    ("block", "fits"),
    [
        (b"event: end\ndata: " + b"x" * 143, True),
        (b"event: end\ndata: " + b"x" * 144, False),
        (b"event: two\ndata: " + b"x" * 4, False),
        (b"data: " + b"x" * 15, False),
    ],
)
def test_an_event_that_is_known_to_be_large_has_eight_limits(
    block: bytes, fits: bool, step: int
) -> None:
    stream = b"data: a\n\n" + block + b"\n\ndata: z\n\n"
    parser = Parser(20, None, begins_with_end)
    got = [
        event for at in range(0, len(stream), step) for event in parser.feed(stream[at : at + step])
    ]
    assert [len(event.data) for event in got] == ([1, 143, 1] if fits else [1])
    assert (parser.overflow, parser.odd) == (not fits, not fits)


def test_an_event_of_many_pieces_is_known_by_the_start_that_they_have_together() -> None:
    heads: list[bytes] = []

    def is_large(block: bytes, whole: bool) -> bool:
        heads.append(block)
        return True

    parser = Parser(2000, None, is_large)
    stream = b"data: " + bytes(range(33, 123)) * 100 + b"\n\n"
    (event,) = [each for at in range(len(stream)) for each in parser.feed(stream[at : at + 1])]
    assert len(event.data) == 9000
    assert {each for each in heads if each != stream[:-2]} == {stream[:1024]}


def test_the_limit_is_of_one_event_not_of_the_stream() -> None:
    parser = Parser(limit=20)
    assert len(parser.feed(b"data: 0123456789\n\n" * 100)) == 100
    assert not parser.overflow


def test_the_rest_of_a_cut_crlf_alone_in_a_chunk_loses_no_event() -> None:
    assert fed(b"data: a\r", b"\n", b"\n") == [Event(b"a")]


@given(stream=streams, cuts=st.lists(st.integers(0, 300), max_size=12))
def test_any_cut_of_any_stream_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert fed(*chunks) == fed(stream)
    assert fed(*(stream[i : i + 1] for i in range(len(stream)))) == fed(stream)


@given(data=data_of_one_event, name=names)
def test_what_is_encoded_is_parsed_back(data: bytes, name: bytes) -> None:
    assert parse(encode(data, b"5-1", name)) == [Event(data, name, b"5-1")]


@given(events=st.lists(st.tuples(data_of_one_event, names), max_size=8))
def test_several_blocks_in_a_row_keep_their_order(events: list[tuple[bytes, bytes]]) -> None:
    frames = b"".join(encode(data, b"5-%d" % i, name) for i, (data, name) in enumerate(events))
    assert [(event.data, event.name) for event in parse(frames)] == events


@given(text=st.text(max_size=100).filter(lambda text: "\r" not in text), name=names)
def test_an_independent_parser_reads_our_frames_alike(text: str, name: bytes) -> None:
    decoder = SSEDecoder()
    lines = encode(text.encode("utf-8", "replace"), b"5-1", name).decode().split("\n")
    (event,) = filter(None, map(decoder.decode, lines[:-1]))
    assert (event.data, event.event, event.id) == (
        text.encode("utf-8", "replace").decode(),
        name.decode() or "message",
        "5-1",
    )


@given(stream=streams.filter(lambda each: b"\xff" not in each and b"\xef" not in each))
def test_an_independent_parser_finds_the_same_data_in_any_stream(stream: bytes) -> None:
    decoder = SSEDecoder()
    lines = stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events = filter(None, map(decoder.decode, lines[:-1]))
    # That one dispatches blocks without data too, which the standard does not.
    theirs = [(each.data, each.event) for each in events if each.data]
    ours = [(e.data.decode(), e.name.decode() or "message") for e in fed(stream) if e.data]
    assert ours == theirs


def test_the_id_is_the_last_line_so_that_a_cut_event_leaves_the_old_one() -> None:
    assert encode(b"x", b"5-1") == b"data: x\nid: 5-1\n\n"


def test_the_name_is_the_first_line() -> None:
    assert encode(b"x", b"5-1", b"end") == b"event: end\ndata: x\nid: 5-1\n\n"


def test_data_of_several_lines_stays_several_lines() -> None:
    assert encode(b"a\n\nb", b"5-1") == b"data: a\ndata: \ndata: b\nid: 5-1\n\n"


@pytest.mark.parametrize("name", [b"", b"end"])
def test_the_lines_of_an_event_lack_its_id_and_its_end(name: bytes) -> None:
    assert lines(b"a\nb", name) + b"id: 5-1\n\n" == encode(b"a\nb", b"5-1", name)
    assert fed(lines(b"x", name) + b"\n") == [Event(b"x", name)]


def test_what_follows_an_event_begins_after_its_blank_line() -> None:
    first, second = encode(b"x", b"5-1"), encode(b"id: 5-1", b"5-11")
    assert after(first + second, b"5-1") == second
    assert after(first + second, b"5-11") == b""


@pytest.mark.parametrize("name", sorted(OURS | RESERVED))
def test_an_upstreams_name_with_a_meaning_of_ours_or_the_browsers_is_prefixed(name: bytes) -> None:
    assert safe_name(name) == b"upstream-" + name


@pytest.mark.parametrize("name", [b"chunk", b"response.completed", b"End", b"errors", b"ping"])
def test_any_other_name_is_kept(name: bytes) -> None:
    assert safe_name(name) == name


def test_the_contracts_names_are_all_guarded() -> None:
    assert {b"failure", b"reset", b"gap", b"end"} == OURS
    browsers = {b"open", b"message", b"error", b"abort", b"readystatechange"}
    assert {*browsers, b"snapshot", b"heartbeat"} == RESERVED


def test_the_heartbeat_is_a_comment_and_one_newline() -> None:
    assert HEARTBEAT == b":\n"


@pytest.mark.parametrize("ours", [HEARTBEAT, retry(1500), comment(b"why")])
def test_what_is_no_event_is_a_line_of_the_block_that_follows(ours: bytes) -> None:
    assert ours.count(b"\n") == 1
    assert fed(ours + encode(b"x", b"5-1")) == [Event(b"x", b"", b"5-1")]


def test_retry_is_in_whole_milliseconds() -> None:
    assert retry(1500) == b"retry: 1500\n"


# The end of a body, and what is of no event stream


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_the_rest_of_a_whole_body_is_an_event(end: bytes) -> None:
    parser = Parser(LIMIT)
    assert parser.feed(b"data: a\n\nevent: n\ndata: b" + end) == [Event(b"a")]
    assert parser.rest() == [Event(b"b", b"n")]
    assert parser.rest() == []


@pytest.mark.parametrize("rest", [b"", b"\n", b": c", b"id: 7", b"event: n\n", b"\xef\xbb"])
def test_a_rest_without_data_is_no_event(rest: bytes) -> None:
    parser = Parser(LIMIT)
    parser.feed(rest)
    assert parser.rest() == []


def test_nothing_is_left_of_what_was_too_large() -> None:
    parser = Parser(limit=20)
    parser.feed(b"data: " + b"x" * 20)
    assert (parser.rest(), parser.overflow) == ([], True)


def test_message_is_the_default_events_name() -> None:
    assert fed(b"event: message\ndata: x\n\n") == [Event(b"x")]
    assert fed(b"event: message2\ndata: x\n\n") == [Event(b"x", b"message2")]


def test_a_long_name_is_cut_between_its_characters() -> None:
    (event,) = Parser(limit=999).feed(b"event: a" + "\u00e4".encode() * 150 + b"\ndata: x\n\n")
    assert event.name.decode() == "a" + "\u00e4" * 99


def test_a_name_is_bounded_and_has_no_controls() -> None:
    (event,) = fed(b"event: a\0b\x1bc\x7f" + b"d" * 9999 + b"\ndata: x\n\n")
    assert event.name.startswith(b"abcddd")
    assert len(event.name) <= 200


@pytest.mark.parametrize("noise", [b":\n\n", b"\n\n", b": a comment\n\n", b"id: 7\n\n", b"x\n\n"])
def test_noise_without_events_is_bounded(noise: bytes) -> None:
    parser = Parser(LIMIT, noise=1 << 20)
    sent = 0
    while not parser.overflow:
        assert sent <= 1 << 20
        parser.feed(noise * 1000)
        sent += len(noise) * 1000
    assert (parser.noisy, parser.odd) == (True, True)


def test_events_of_any_number_are_no_noise() -> None:
    parser = Parser(LIMIT, noise=1 << 10)
    for _ in range(100):
        parser.feed(b"data: some text\n\n" * 100)
    assert not parser.noisy


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_large_event_in_tiny_pieces_takes_as_much_room_as_its_bytes(step: int) -> None:
    parser, stream = Parser(1 << 20), b"data: " + b"xy" * 100_000 + b"\n\n"
    events = [e for i in range(0, len(stream), step) for e in parser.feed(stream[i : i + step])]
    assert [len(event.data) for event in events] == [200_000]
    parser.feed(b"data: ")
    for _ in range(100_000):
        parser.feed(b"xy")
    assert len(parser._pieces) < 2000


def test_what_is_of_no_event_stream_is_kept_and_bounded() -> None:
    parser = Parser(LIMIT)
    assert parser.feed(b": c\n\nretry: 1\n\nid\n\ndata: a\n\n") == [Event(b"a")]
    assert (bytes(parser.strays), parser.odd) == (b"", False)
    assert parser.feed(b'{"error":\n\n"x"}\ndata: b\n\n') == [Event(b"b")]
    assert (bytes(parser.strays), parser.odd) == (b'{"error":\n"x"}\n', True)
    for _ in range(100):
        parser.feed(b"junk\n\n" * 1000)
    assert len(parser.strays) < 200_000


@pytest.mark.parametrize(
    ("rest", "strays"), [(b"BOOM", b"BOOM\n"), (b"dat", b""), (b"data: x", b""), (b": x", b"")]
)
def test_what_was_cut_off_is_looked_at(rest: bytes, strays: bytes) -> None:
    parser = Parser(LIMIT)
    parser.feed(rest)
    parser.abandon()
    assert bytes(parser.strays) == strays


# Data in which lines look like an id, or like the start of another event.
tricky = st.lists(
    st.sampled_from([b"id: 1-1", b"id: ", b"i", b"\n", b"event: n", b"data: ", b"x", b"y" * 40]),
    max_size=8,
).map(b"".join)


@given(st.lists(st.tuples(tricky, names), max_size=5), st.lists(st.integers(1, 60)), names)
def test_renamed_events_are_the_same_however_they_are_cut(
    events: list[tuple[bytes, bytes]], sizes: list[int], prefix: bytes
) -> None:
    frames = b"".join(encode(data, b"1-%d" % n, name) for n, (data, name) in enumerate(events))
    renaming, seen, sent, at = Renaming(prefix), list[bytes](), b"", 0

    def renew(name: bytes, event_id: bytes) -> bytes:
        seen.append(name)
        return b"new." + event_id

    for size in itertools.chain(sizes, itertools.repeat(7)):
        if at >= len(frames):
            break
        sent += b"".join(renaming.feed(frames[at : at + size], renew))
        at += size
        assert renaming.whole or not sent.endswith(b"\n\n")
        assert len(sent) >= min(at, len(frames)) - len(b"event: response.done")
    expected = [
        encode(data, b"new.1-%d" % n, b".".join(filter(None, (prefix, name))))
        for n, (data, name) in enumerate(events)
    ]
    assert sent == b"".join(expected)
    assert seen == [name for _, name in events]
    assert renaming.whole

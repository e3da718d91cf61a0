"""What goes over the wire: the framing of streams byte by byte, refusals, come-back-laters."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from gateway.errors import REJECTED, TOO_MANY, UNAVAILABLE, Rejected, Unavailable
from gateway.upstream.protocols.chat_text import ChatText
from gateway.web.event_stream import PlainText
from gateway.web.requests import accepts, last_event_id
from gateway.web.responses import Retry, nothing_more, rejected, reply, unavailable
from tests.support import (
    OK,
    WHOLE,
    Call,
    Script,
    Served,
    Transcript,
    ask,
    chunk,
    gateway,
    sse,
)

SSE = "text/event-stream"
BLOCK = re.compile(rb"(event: [^\r\n]+\n)?(data: [^\r\n]*\n)+id: [1-9]\d*-\d+\n\n")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing here makes the gateway log an error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


def sends(*parts: bytes) -> Script:
    """Return the script of an upstream that sends these bytes, then ends as it should."""

    async def script(call: Call) -> None:
        await call.send(OK, *parts, sse(chunk("", finish="stop"), b"[DONE]"))

    return script


async def shown(*parts: bytes, query: str = "", **changes: Any) -> Transcript:
    """Return what a viewer gets of an upstream that sends these bytes."""
    async with gateway(sends(*parts), **changes) as (gate, _):
        return await gate.read(await gate.ticket() + query)


# Framing


async def test_a_stream_is_one_retry_line_and_then_one_block_an_event(redis_url: str) -> None:
    got = await shown(WHOLE, b"event: x\ndata: a\ndata: b\n\n", redis_url=redis_url)
    first, _, blocks = got.raw.partition(b"\n")
    assert re.fullmatch(rb"retry: [1-9]\d*", first)
    assert blocks.startswith(b"data: ")  # So the retry is a line of the first block.
    assert BLOCK.sub(b"", blocks) == b""
    assert len(BLOCK.findall(blocks)) == len(got.events)


async def test_a_stream_has_the_headers_that_keep_proxies_from_holding_it() -> None:
    async with gateway(sends()) as (gate, _):
        headers = {**gate.cookie(), "Accept": SSE, "Accept-Encoding": "gzip, deflate, br, zstd"}
        answer = await gate.http.get(await gate.ticket(), headers=headers)
    assert answer.headers["content-type"] in {SSE, f"{SSE}; charset=utf-8"}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert not {"content-encoding", "content-length", "location"} & set(answer.headers)


async def test_the_first_bytes_come_before_the_upstream_says_anything() -> None:
    async def silent(call: Call) -> None:
        await call.left.wait()

    async with gateway(silent) as (gate, _):
        reading = gate.read(await gate.ticket(), enough=lambda got: b"\n" in got.raw)
        got = await asyncio.wait_for(reading, 20)
    assert re.fullmatch(rb"retry: \d+\n", got.raw)


async def test_every_write_ends_with_a_whole_event() -> None:
    """A client that is cut between two writes has whole events only."""
    async with gateway(sends(*[sse(chunk("word ")) * 3] * 50)) as (gate, _):
        writes = [each for each in await chunks_of(gate) if each != b":\n"]
    assert b"event: end\n" in writes[-1]
    assert all(each.endswith(b"\n\n") for each in writes[1:])


async def chunks_of(gate: Served) -> list[bytes]:
    """Read a stream as its chunks on the wire."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gate.url).port)
    cookie = gate.cookie()["Cookie"]
    url = await gate.ticket()
    writer.write(f"GET {url} HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    chunks: list[bytes] = []
    while size := int(await reader.readline(), 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    writer.close()
    return chunks


@pytest.mark.parametrize("query", ["", "&format=text"])
@pytest.mark.parametrize("life", [b"", b": alive\n\n", sse(b'{"choices":[{"delta":{}}]}')])
async def test_a_heartbeat_is_a_colon_and_a_newline_and_comes_in_time(
    life: bytes, query: str
) -> None:
    """Also where the upstream is busy with what a viewer does not get to see."""

    async def script(call: Call) -> None:
        await call.send(OK)
        while not call.left.is_set():
            await call.send(life)
            await asyncio.sleep(0.1)

    async with gateway(script, heartbeat=0.6) as (gate, _):
        enough = (
            (lambda got: b"\n:\n:\n" in got.raw) if query or not life.startswith(b"d") else None
        )
        url = await gate.ticket() + query
        got = await asyncio.wait_for(gate.read(url, enough=enough or (lambda got: got.events)), 20)
    if enough:
        assert re.fullmatch(rb"retry: \d+\n(:\n)+", got.raw)


# Data, byte for byte


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"",
        b" two  spaces ",
        b'{"a": 1}\n',
        "line\u2028separator\u2029next\u0085".encode(),
        b"nul \0 and \x0b\x0c\x1c\x1d\x1e",
        b"not utf-8 \xff\xfe \xc3( \xed\xa0\x80",
        "\ufeffbom, ümlaut, 漢字, 🙂".encode(),
        b"id: 1-1",
        b": no comment",
        b"x" * 300_000,
    ],
)
async def test_data_is_kept_byte_for_byte(data: bytes) -> None:
    sent = b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
    got = await shown(sent)
    assert got.data[0] == data
    assert sent.removesuffix(b"\n") in got.raw


async def test_several_lines_of_data_stay_several() -> None:
    got = await shown(b"data: one\ndata:\ndata: \ndata:  three\ndata\n\n")
    assert got.data[0] == b"one\n\n\n three\n"
    assert b"data: one\ndata: \ndata: \ndata:  three\ndata: \nid: " in got.raw


async def test_the_upstreams_id_retry_comments_and_unknown_fields_are_dropped() -> None:
    hidden = b": hello\nid: evil\nretry: 1\nfoo: bar\ndata: kept\nid\nretry: x\n\n"
    got = await shown(b"retry: 7\n\n", b": alone\n\n", b"id: 9\n\n", b"event: none\n\n", hidden)
    assert got.data[0] == b"kept"
    for word in (b"evil", b"hello", b"foo", b"alone", b"none"):
        assert word not in got.raw
    assert got.raw.count(b"retry: ") == 1


@pytest.mark.parametrize("newline", [b"\r\n", b"\r", b"\n"])
async def test_every_kind_of_newline_becomes_lf(newline: bytes) -> None:
    text = b"event: x\ndata: a\ndata: b\n\ndata: c\n\n".replace(b"\n", newline)
    got = await shown(*[text[at : at + 1] for at in range(len(text))])
    assert got.data[:2] == [b"a\nb", b"c"]
    assert b"\r" not in got.raw


@pytest.mark.parametrize("name", [b"delta", b"response.created", b"End", b"upstream-end", b"\xff"])
async def test_an_event_keeps_its_name(name: bytes) -> None:
    got = await shown(b"event: " + name + b"\ndata: x\n\n")
    assert got.events[0][:2] == (b"x", name)


@pytest.mark.parametrize(
    "name",
    ["failure", "reset", "gap", "end", "open", "abort", "readystatechange", "heartbeat"],
)
async def test_a_name_of_ours_or_of_the_browsers_gets_a_prefix(name: str) -> None:
    got = await shown(f"event: {name}\ndata: x\n\n".encode())
    assert got.names == [f"upstream-{name}", "", "", "end"]


async def test_an_event_named_error_gets_a_prefix_and_is_an_error() -> None:
    got = await shown(b"event: error\ndata: x\n\n")
    assert got.names == ["upstream-error", "", "", "failure", "end"]


async def test_message_is_no_name_so_that_onmessage_hears_it() -> None:
    got = await shown(b"event: message\ndata: x\n\nevent:message\ndata: y\n\n")
    assert got.names == ["", "", "", "", "end"]


@pytest.mark.parametrize("name", [b"end\0", b"\x1bend", b"\x7fend\x08"])
async def test_a_name_that_is_ours_without_its_controls_gets_a_prefix(name: bytes) -> None:
    got = await shown(b"event: " + name + b"\ndata: x\n\n")
    assert got.names == ["upstream-end", "", "", "end"]


async def test_a_name_is_bounded() -> None:
    got = await shown(b"event: " + b"n" * 500_000 + b"\ndata: x\n\n")
    assert got.events[0][:2] == (b"x", b"n" * 200)


async def test_an_upstream_cannot_end_or_fail_a_stream_by_name(redis_url: str) -> None:
    fake = b'event: end\ndata: {"state":"failed"}\n\n'
    got = await shown(fake, sse(chunk("more")), redis_url=redis_url)
    assert (got.names, got.end["state"]) == (["upstream-end", "", "", "", "end"], "done")


async def test_ids_count_from_one_without_holes() -> None:
    got = await shown(*[sse(chunk(str(each))) for each in range(30)])
    epochs = {each.partition("-")[0] for each in got.ids}
    assert len(epochs) == 1
    assert [int(each.partition("-")[2]) for each in got.ids] == list(range(1, 34))


# format=text


async def test_text_is_the_delta_alone_with_the_ids_of_the_whole_stream() -> None:
    other = chunk("other choice", index=1)
    parts = sse(b'{"choices":[{"delta":{"role":"assistant"}}]}', chunk("Hel"), other, b"junk")
    async with gateway(sends(parts, sse(chunk("lo\nthere\r\n\ud83d\ude42")))) as (gate, _):
        url = await gate.ticket()
        text, whole = await gate.read(f"{url}&format=text"), await gate.read(url)
        rest = await gate.read(f"{url}&format=text", last_id=text.ids[0])
    assert [each.data for each in text.events[:-1]] == [b"Hel", "lo\nthere\n🙂".encode()]
    assert text.ids == [whole.ids[1], whole.ids[4], whole.last_id]
    assert text.events[-1] == whole.events[-1]
    assert rest.events == text.events[1:]


async def test_text_has_no_name_whatever_the_upstream_calls_it() -> None:
    named = b"event: delta\ndata: " + chunk("Hel") + b"\n\nevent: message\ndata: " + chunk("lo")
    async with gateway(sends(named + b"\n\n")) as (gate, _):
        got = await gate.read(await gate.ticket() + "&format=text")
    assert [each[:2] for each in got.events[:-1]] == [(b"Hel", b""), (b"lo", b"")]


async def test_text_is_that_of_the_same_choice_after_a_reconnect() -> None:
    """In the middle of a log nothing tells any more that there is a choice 0."""
    two = [chunk("b", index=1), chunk("a"), chunk("b", index=1), chunk("a")]
    last = chunk("b", index=1, finish="stop")
    async with gateway(sends(sse(*two, last))) as (gate, _):
        url = await gate.ticket(ask(n=2)) + "&format=text"
        whole = await gate.read(url)
        parts = [await gate.read(url, last_id=each) for each in whole.ids[:-1]]
    assert [each.data for each in whole.events[:-1]] == [b"a", b"a"]
    assert [each.events for each in parts] == [whole.events[1:], whole.events[2:]]


async def test_text_ends_with_a_failure_as_any_stream_does() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))

    async with gateway(script) as (gate, _):
        got = await gate.read(await gate.ticket() + "&format=text")
    assert got.names == ["", "failure", "end"]
    assert got.failure["code"] == "upstream_cut"


async def test_text_of_an_unknown_position_begins_with_a_gap() -> None:
    async with gateway(sends(sse(chunk("Hel")))) as (gate, _):
        got = await gate.read(await gate.ticket() + "&format=text", last_id="7-7")
    assert got.names == ["gap", "", "end"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (chunk("Hi"), b"Hi"),
        (chunk(""), None),
        (chunk("x", index=1), None),
        (b"[DONE]", None),
        (b'{"choices":[{"delta":{"content":null}}]}', None),
        (b'{"choices":[{"delta":{"content":["x"]}}]}', b"x"),
        (b'{"choices":[{"delta":null,"content":"x"}]}', None),
        (b'{"choices":"content","content":"x"}', None),
        (b'{"choices":[1,{"index":0,"delta":{"content":"x"}}]}', b"x"),
        (b'["content"]', None),
        (b'{"content"', None),
        (b'{"choices":[{"delta":{"content":"\\udc00"}}]}', b"?"),
        (b'{"choices":[{"delta":{"content":"\\ud83c"}}]}', None),  # It waits for its other half.
        (b'{"choices":[{"delta":{"content":"a\\rb\\u2028"}}]}', "a\nb\u2028".encode()),
        (b'"content"' + b"[" * 5000, None),
    ],
)
def test_text_of_one_event(data: bytes, text: bytes | None) -> None:
    frames = PlainText(ChatText(0)).frames(b"data: " + data + b"\nid: 1-1\n\n")
    lines = [] if text is None else text.split(b"\n")
    block = b"".join(b"data: " + line + b"\n" for line in lines) + b"id: 1-1\n\n"
    assert frames == (block if lines else b"")


def test_events_of_ours_pass_text_untouched() -> None:
    ours = b'event: failure\ndata: {"a":1}\nid: 1-1\n\nevent: end\ndata: {}\nid: 1-2\n\n'
    assert PlainText(ChatText(0)).frames(ours) == ours


# Accept, Last-Event-ID


def request(query: str = "", **headers: str) -> Request:
    """Return a GET as the server hands it over."""
    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    scope = {"type": "http", "method": "GET", "headers": raw, "query_string": query.encode()}
    return Request(scope)


@pytest.mark.parametrize(
    ("accept", "named", "will_do"),
    [
        (None, False, True),
        ("*/*", False, True),
        (SSE, True, True),
        ("TEXT/Event-Stream", True, True),
        (f"{SSE}; charset=utf-8", True, True),
        (f"application/json, {SSE};q=0.1", True, True),
        (f" {SSE} ; q=1.000 , */* ", True, True),
        ("text/html, */*;q=0.8", False, True),
        (f"{SSE};q=0", False, False),
        (f"{SSE}; q = 0.000, */*", False, False),
        ("*/*;q=0", False, False),
        ("text/html", False, False),
        ("application/json", False, False),
        ("", False, False),
        (",;,;q=", False, False),
        (f"x{SSE}", False, False),
    ],
)
def test_accept_names_a_stream_or_would_do_with_one(
    accept: str | None, named: bool, will_do: bool
) -> None:
    assert accepts(request() if accept is None else request(accept=accept)) == (named, will_do)


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ("", None, ""),
        ("", "1-1", "1-1"),
        ("last_event_id=2-2", None, "2-2"),
        ("lastEventId=3-3", None, "3-3"),
        ("last_event_id=2-2&lastEventId=3-3", None, "2-2"),
        ("last_event_id=2-2", "1-1", "1-1"),
        ("last_event_id=2-2", "", "2-2"),
        ("last_event_id=&lastEventId=3-3", "", "3-3"),
        ("last_event_id=&lastEventId=", "", ""),
    ],
)
def test_the_newest_statement_of_a_position_wins(
    query: str, header: str | None, expected: str
) -> None:
    got = request(query) if header is None else request(query, last_event_id=header)
    assert last_event_id(got) == expected


# Refusals, come-back-laters


@pytest.mark.parametrize("code", REJECTED)
def test_a_refusal_is_a_problem_with_its_code(code: str) -> None:
    answer = rejected(Rejected(code, "Do this.", {"Allow": "GET"}))
    problem = json.loads(bytes(answer.body))
    status, title = REJECTED[code]
    expected = {"type": "about:blank", "title": title, "status": status, "code": code}
    assert (answer.status_code, problem) == (status, {**expected, "detail": "Do this."})
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers["cache-control"], answer.headers["allow"]) == ("no-store", "GET")


def test_a_refusal_without_detail_has_none() -> None:
    assert "detail" not in json.loads(bytes(rejected(Rejected("not_found")).body))


@pytest.mark.parametrize("code", UNAVAILABLE)
def test_what_will_pass_is_200_and_retry_for_a_stream_and_503_or_429_for_others(code: str) -> None:
    page = unavailable(Unavailable(code, "secret detail"), Retry(lambda: 30), names_stream=True)
    other = unavailable(Unavailable(code), Retry(lambda: 30), names_stream=False)
    assert re.fullmatch(rb"retry: \d+\n(: \w+\n)?", bytes(page.body))
    assert (page.status_code, page.headers["x-accel-buffering"]) == (200, "no")
    assert page.headers["content-type"].startswith(SSE)
    status = 429 if code in TOO_MANY else 503
    assert (other.status_code, json.loads(bytes(other.body))["code"]) == (status, code)
    assert 1 <= int(other.headers["retry-after"]) <= 3


def test_nothing_more_has_no_body() -> None:
    answer = nothing_more()
    assert (answer.status_code, bytes(answer.body)) == (204, b"")


def test_a_reply_is_kept_by_nobody() -> None:
    answer = reply({"a": "ü"}, 201, {"Location": "/x"})
    assert (answer.status_code, json.loads(bytes(answer.body))) == (201, {"a": "ü"})
    assert (answer.headers["cache-control"], answer.headers["location"]) == ("no-store", "/x")


@pytest.mark.parametrize("grace", [0.001, 0.5, 3, 9, 30, 3600])
def test_a_page_comes_back_three_times_within_the_grace(grace: float) -> None:
    random.seed(7)
    times = [int(Retry(lambda: grace).line().split()[1]) for _ in range(500)]
    assert min(times) >= 1
    assert max(times) <= max(1, min(3000, grace * 1000 / 3))
    assert grace < 0.5 or len(set(times)) > 20  # They must not come in step.


async def test_a_page_comes_back_three_times_within_the_grace_of_its_preset() -> None:
    async with gateway(sends(), presets={"default": {"grace": 0.3}}, grace=30) as (gate, _):
        got = [await gate.read(await gate.ticket()) for _ in range(5)]
    assert max(int(each.raw.split()[1]) for each in got) <= 100

"""A connection: what its caller may owe has a size and a time, and no other stream waits for it."""

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httptools
import httpx
import pytest

from gateway.serve import deadlines
from tests.support import (
    OK,
    SECRET,
    WHOLE,
    Call,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    process,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)
from tests.test_bounds import memory

MIB = 1 << 20
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def line(url: str) -> AsyncIterator[Line]:
    """Open a connection to a gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader: asyncio.StreamReader, seconds: float = 20) -> bytes:
    """Return all that still comes before the connection is closed; a reset is a close."""
    got = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(seconds):
            while part := await reader.read(1 << 16):
                got += part
    return got


async def answer(url: str, *parts: bytes) -> bytes:
    """Send these bytes and return all that comes before the close."""
    async with line(url) as (reader, writer):
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
        return await rest(reader)


def refused(got: bytes, status: int, code: str) -> None:
    """Assert a refusal as a problem, after which the connection is closed."""
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), got[:200]
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == code


def post(served: Served, more: str = "", length: str = "Content-Length: 99") -> bytes:
    """Return the head of a POST of alice's."""
    head = f"POST /tickets HTTP/1.1\r\nHost: a\r\nCookie: {served.cookie()['Cookie']}\r\n"
    return f"{head}Content-Type: application/json\r\n{length}\r\n{more}\r\n".encode()


def get(url: str, version: str = "1.1", **headers: str) -> bytes:
    """Return a GET."""
    sent = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "a", **headers}.items())
    return f"GET {url} HTTP/{version}\r\n{sent}\r\n".encode()


# Heads

HEADS = {
    "a header that never ends": (b"GET /healthz HTTP/1.1\r\nX: ", b"a"),
    "a name that never ends": (b"GET /healthz HTTP/1.1\r\n", b"a"),
    "a url that never ends": (b"GET /", b"a"),
    "headers without an end": (b"GET /healthz HTTP/1.1\r\n", b"X: a\r\n"),
    "empty lines": (b"", b"\r\n"),
    "trailers without an end": (
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: a\r\n",
    ),
    "a trailer that never ends": (
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"a",
    ),
    "a chunk's extension that never ends": (
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=",
        b"a",
    ),
    "cookies without an end": (b"GET /stream HTTP/1.1\r\nCookie: ", b'a="\\";'),
}


@pytest.mark.parametrize(("start", "piece"), HEADS.values(), ids=HEADS)
async def test_what_never_ends_is_cut_off_at_its_size(start: bytes, piece: bytes) -> None:
    pieces = piece * (16384 // len(piece))
    async with running() as served, line(served.url) as (reader, writer):
        writer.write(start)
        sent = 0
        while not writer.is_closing() and sent < 4 * MIB:
            writer.write(pieces)
            sent += len(pieces)
            with suppress(ConnectionError):
                await writer.drain()
            if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0.001)
        got = await rest(reader)
        assert sent < MIB
    if got and b" 405 " not in got[:20]:
        refused(got, 431, "head_too_large")


@pytest.mark.parametrize("padding", ["X", "Cookie"])
async def test_a_whole_head_is_taken_up_to_its_size_and_no_further(padding: str) -> None:
    async with running() as served:
        fits = get("/healthz", Connection="close", **{padding: "a" * 32_000})
        assert (await answer(served.url, fits)).startswith(b"HTTP/1.1 200 ")
        too_long = get("/healthz", Connection="close", **{padding: "a" * 33_000})
        refused(await answer(served.url, too_long), 431, "head_too_large")


@pytest.mark.parametrize("query", ["a" * 40_000, "a" * 9000, "a&" * 1000])
async def test_a_url_has_a_size_of_its_own(query: str) -> None:
    """To parse thousands of parameters takes longer than to send them."""
    async with running() as served:
        refused(await answer(served.url, get("/healthz?" + query)), 431, "head_too_large")


@pytest.mark.parametrize(
    "headers",
    [{"Accept": "," * 31_000}, {"Accept": ";" * 31_000}, {"Origin": "[" * 31_000}],
    ids=["ranges", "parameters", "origin"],
)
async def test_no_head_takes_long(headers: dict[str, str]) -> None:
    async with running() as served:
        asked = get("/stream?ticket=x", **served.cookie(), **headers)
        last = get("/healthz", Connection="close")
        started = time.process_time()
        got = await answer(served.url, asked * 20 + last)
        assert got.count(b"HTTP/1.1 ") == 21
        assert time.process_time() - started < 0.5


async def test_a_head_of_too_many_lines_is_refused() -> None:
    lines = b"".join(b"X%d: a\r\n" % number for number in range(300))
    async with running() as served:
        sent = b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
        refused(await answer(served.url, sent), 431, "head_too_large")


async def test_the_size_of_a_head_is_a_setting() -> None:
    async with running(max_head=2048) as served:
        refused(await answer(served.url, get("/healthz", X="a" * 2048)), 431, "head_too_large")


async def test_a_head_behind_a_large_body_is_not_counted_with_it() -> None:
    """A proxy's connection carries one request after the other, in parts of any size."""
    body = json.dumps(ask("x" * 200_000)).encode()
    async with running() as served, line(served.url) as (reader, writer):
        one = post(served, length=f"Content-Length: {len(body)}") + body
        two = get("/healthz", X="a" * 30_000)
        for _ in range(3):
            writer.write(one + two[:25_000])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
            await reader.readuntil(b"}")
            writer.write(two[25_000:])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"}")


async def test_a_head_that_does_not_end_in_time_is_refused() -> None:
    async with running(head_timeout=0.5) as served, line(served.url) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHo")
        refused(await rest(reader), 408, "request_timeout")


@pytest.mark.parametrize("piece", [b"X: a\r\n", b"\r\n", b"a"])
async def test_a_head_that_comes_in_drops_has_the_same_deadline(piece: bytes) -> None:
    start = b"" if piece == b"\r\n" else b"GET /healthz HTTP/1.1\r\n"
    async with running(head_timeout=0.5) as served:
        await ended_while_dripping(served.url, start, piece)


async def ended_while_dripping(url: str, start: bytes, piece: bytes) -> None:
    """Send a part again and again; fail if the connection is not ended."""
    async with line(url) as (reader, writer):
        writer.write(start)
        closed = asyncio.create_task(rest(reader))
        deadline = time.monotonic() + 20
        while not closed.done():
            assert time.monotonic() < deadline, "it is still open"
            with suppress(ConnectionError):
                writer.write(piece)
                await writer.drain()
            await asyncio.wait([closed], timeout=0.05)


@pytest.mark.parametrize("sent", [b"", get("/healthz")])
async def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    async with running(idle_timeout=0.5) as served, line(served.url) as (reader, writer):
        writer.write(sent)
        got = await rest(reader)
        assert got[:13] in {b"", b"HTTP/1.1 200 "}


async def test_connections_that_ask_for_nothing_have_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "_MOST", 20)
    async with running(idle_timeout=60) as served:
        lines = [
            await asyncio.open_connection("127.0.0.1", httpx.URL(served.url).port)
            for _ in range(30)
        ]
        assert [await rest(reader) for reader, _ in lines[:10]] == [b""] * 10
        assert (await served.http.get("/healthz")).status_code == 200
        for _, writer in lines:
            writer.transport.abort()


# Bodies


async def test_a_body_that_does_not_come_in_time_is_refused() -> None:
    async with running(body_timeout=0.5) as served:
        refused(await answer(served.url, post(served) + b"{"), 408, "request_timeout")


@pytest.mark.parametrize(
    ("length", "piece"),
    [("Content-Length: 9999", b" "), ("Transfer-Encoding: chunked", b"1\r\n \r\n")],
)
async def test_a_body_that_comes_in_drops_has_the_same_deadline(length: str, piece: bytes) -> None:
    async with running(body_timeout=0.5) as served:
        await ended_while_dripping(served.url, post(served, length=length), piece)


async def test_a_body_that_comes_slowly_but_in_time_is_taken() -> None:
    body = json.dumps(ask()).encode()
    times = {"head_timeout": 0.3, "idle_timeout": 0.3}
    async with running(**times) as served, line(served.url) as (reader, writer):
        writer.write(post(served, length=f"Content-Length: {len(body)}"))
        for start in range(0, len(body), 10):
            writer.write(body[start : start + 10])
            await asyncio.sleep(0.1)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")


async def test_a_large_body_that_comes_steadily_may_take_longer_than_its_deadline() -> None:
    """A phone sends a photograph at 30 KB/s: a second try would be as slow."""
    body = json.dumps(ask("x" * 100_000)).encode()
    async with running(body_timeout=1) as served, line(served.url) as (reader, writer):
        writer.write(post(served, length=f"Content-Length: {len(body)}"))
        for start in range(0, len(body), 4096):
            writer.write(body[start : start + 4096])
            await asyncio.sleep(0.08)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")


class Parts(list[bytes]):
    """What a parser alone hands over."""

    def on_body(self, body: bytes) -> None:
        """Keep it."""
        self.append(body)


async def test_a_body_in_tiny_chunks_costs_little_more_than_its_parsing() -> None:
    """uvicorn copies what waits for each: a megabyte of them took seconds from everybody."""
    body = json.dumps(ask("x" * 900_000)).encode()
    async with running() as served, line(served.url) as (reader, writer):
        head = post(served, length="Transfer-Encoding: chunked")
        sent = head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        begun, parts = time.process_time(), Parts()
        httptools.HttpRequestParser(parts).feed_data(sent)
        parsed = time.process_time()
        writer.write(sent)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        assert time.process_time() - parsed < 4 * (parsed - begun)
        assert b"".join(parts) == body


@pytest.mark.parametrize("size", [1, 27])
async def test_bodies_in_crumbs_wait_for_each_other_and_nobody_waits_for_them(size: int) -> None:
    """Between any two events of a stranger thirty of them had their turn each: 2.7 s of silence.

    Those of 27 bytes were as few in each slice as need not wait, and sixteen slices came at once.
    """
    body = json.dumps(ask("x" * 200_000 * min(4, size))).encode()
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    crumbs = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in parts) + b"0\r\n\r\n"
    async with running() as served, AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(line(served.url)) for _ in range(12)]
        served_between = 0
        for _, writer in lines:
            writer.write(post(served, length="Transfer-Encoding: chunked") + crumbs)
        answers = [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader, _ in lines]
        async with line(served.url) as (reader, writer):
            while not all(each.done() for each in answers):
                writer.write(get("/healthz"))
                await reader.readuntil(b'"ok"}')
                served_between += 1
        assert {(await each)[:13] for each in answers} == {b"HTTP/1.1 201 "}
        assert served_between > 2 * len(lines)  # Each has far more turns than that.


async def test_a_caller_who_is_gone_as_his_time_ends_ends_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the answer his system said so, which ended the look at all connections, and the server."""
    gone: list[float] = []
    collect = deadlines.Debts.collect

    def leave(debts: deadlines.Debts) -> None:
        if not gone and min(debts._sending.values(), default=math.inf) <= time.monotonic():
            gone.append(time.monotonic())
            caller.close()
        collect(debts)

    monkeypatch.setattr(deadlines.Debts, "collect", leave)
    async with running(head_timeout=0.3) as served:
        with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port)) as caller:
            caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
            await until(lambda: bool(gone), "its time ends")
        await asyncio.sleep(0.3)  # Some looks later.
        assert b'"ok"' in await answer(served.url, get("/healthz", Connection="close"))


def test_more_than_may_wait_for_its_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_HELD", 1000)

    class Taker:
        def turn(self) -> None:
            taken.append(self)
            if len(taken) < 4:
                turns.wait(self, 10)

    async def play() -> None:
        takers = Taker(), Taker()
        assert turns.wait(takers[0], 900)
        assert turns.wait(takers[0], 500)  # Instead of what it held before.
        assert not turns.wait(takers[1], 501)
        await until(lambda: len(taken) == 5)
        assert taken == [takers[0], takers[1], takers[0], takers[1], takers[0]]
        assert turns.wait(takers[0], 1000)

    taken: list[Taker] = []
    turns = deadlines.Turns()
    asyncio.run(play())


async def test_what_was_answered_gets_no_second_answer() -> None:
    """A client would take it for that to its next request."""
    async with running() as served, line(served.url) as (reader, writer):
        head = post(served, length="Transfer-Encoding: chunked")
        writer.write(head.replace(b"Cookie: ", b"No: "))
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 401 ")
        writer.write(b"no chunk\r\n")
        assert await rest(reader) == b""


async def test_the_rest_of_a_body_that_was_refused_is_not_waited_for() -> None:
    async with running(max_body=1024, idle_timeout=0.5) as served:
        head = post(served, length="Content-Length: 999999999")
        await ended_while_dripping(served.url, head, b" ")


@pytest.mark.parametrize("more", [b"", b"\r\n", b"GET /heal"])
async def test_an_open_stream_is_not_idle(more: bytes) -> None:
    """Nor is it hurt by what some clients send after a request."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(WHOLE)

    times = {"head_timeout": 0.3, "body_timeout": 0.3, "idle_timeout": 0.3, "heartbeat": 0.2}
    async with scripted(script) as up, running(upstream_url=up.url, **times) as served:
        url = await served.ticket()
        async with line(served.url) as (reader, writer):
            writer.write(get(url, Accept="text/event-stream", **served.cookie()) + more)
            await reader.readuntil(b"Hel")
            for _ in range(6):
                await reader.readuntil(b":\n")
            go.set()
            await reader.readuntil(b"event: end")


async def test_an_answer_that_is_not_read_is_cut_off() -> None:
    """Its bytes would else be kept for as long as the caller likes, and its connection too."""

    async def script(call: Call) -> None:
        await call.send(OK, *[sse(chunk("x" * 60_000))] * 100, WHOLE)

    limits = {"write_timeout": 0.5, "idle_timeout": 0.3, "max_log": 64 << 20}
    async with scripted(script) as up, running(upstream_url=up.url, **limits) as served:
        url = await served.ticket()
        await served.read(url)
        asked = get(url.replace("/stream", "/completion"), **served.cookie())
        async with line(served.url) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(asked)
            connections = _connections(served)
            await until(lambda: connections(), "it is answered")
            await until(lambda: not connections(), "it is cut off")


def _connections(served: Served) -> Callable[[], int]:
    """Return what counts the connections that have bytes to write."""
    port = f":{httpx.URL(served.url).port:04X}"

    def count() -> int:
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        unsent = [row for row in rows if row[1].endswith(port) and row[3] == "01"]
        return sum(int(row[4].partition(":")[0], 16) > 100_000 for row in unsent)

    return count


# Pipelining


async def test_a_few_requests_at_once_are_answered_in_order() -> None:
    asked = b"".join(get(url) for url in ["/healthz", "/nowhere", "/readyz"] * 5)
    async with running() as served:
        last = get("/healthz", Connection="close")
        got = await answer(served.url, asked + last)
    statuses = [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404", b"200"] * 5 + [b"200"]


async def test_thousands_of_requests_at_once_are_not_kept() -> None:
    async with running() as served:
        got = await answer(served.url, get("/healthz") * 5000)
    assert 1 <= got.count(b"HTTP/1.1 200 ") < 200
    assert b"connection: close" in got


# HTTP/1.0, and what two servers could read in two ways


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_a_caller_of_another_http_gets_a_stream_without_chunks(version: str) -> None:
    async with scripted(whole) as up, running(upstream_url=up.url) as served:
        url = await served.ticket()
        asked = get(url, version, Accept="text/event-stream", **served.cookie())
        got = await answer(served.url, asked)
        chunked = await served.read(url)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.partition(b"\n")[2] == chunked.raw.partition(b"\n")[2]


@pytest.mark.parametrize("more", [{}, {"Connection": "keep-alive"}])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
async def test_a_caller_of_http_1_0_gets_every_answer_whole(
    method: str, more: dict[str, str]
) -> None:
    async with running() as served:
        asked = get("/healthz", "1.0", **more).replace(b"GET", method.encode(), 1)
        head, _, body = (await answer(served.url, asked)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    if b"content-length: " in head and method != "HEAD":
        assert f"content-length: {len(body)}".encode() in head
    else:
        assert body == b""


TWO_WAYS = {
    "a length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and a length": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "one length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "a list of lengths": "Content-Length: 5, 5\r\n",
    "a length with a word": "Content-Length: 12abc\r\n",
    "a negative length": "Content-Length: -1\r\n",
    "a length with a sign": "Content-Length: +5\r\n",
    "a length in two parts": "Content-Length: 1_0\r\n",
    "a hexadecimal length": "Content-Length: 0x5\r\n",
    "a length beyond numbers": "Content-Length: 99999999999999999999999\r\n",
    "an empty length": "Content-Length: \r\n",
    "another encoding": "Transfer-Encoding: gzip\r\n",
    "chunks within another": "Transfer-Encoding: chunked, gzip\r\n",
    "chunks twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "a space before the colon": "Content-Length : 5\r\n",
    "a folded line": "X: a\r\n Content-Length: 5\r\n",
    "a bare line feed": "X: a\nContent-Length: 5\r\n",
    "a bare carriage return": "X: a\rContent-Length: 5\r\n",
    "a null": "X: a\0b\r\n",
    "two hosts": "Host: b\r\n",
}


@pytest.mark.parametrize("lines", TWO_WAYS.values(), ids=TWO_WAYS)
async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    lines: str,
) -> None:
    async with running() as served:
        head = post(served, length=lines.removesuffix("\r\n"))
        refused(await answer(served.url, head + b"0\r\n\r\n"), 400, "bad_request")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("before", [b"", get("/healthz")], ids=["first", "second"])
@pytest.mark.parametrize("url", ["?x", "//[", "http://", "a b", "\\"])
async def test_a_url_that_is_none_is_refused(url: str, before: bytes, version: str) -> None:
    async with running() as served, line(served.url) as (reader, writer):
        if before:
            writer.write(before)
            await reader.readuntil(b"}")
        writer.write(get(url, version, Connection="close"))
        got = await rest(reader)
        assert got.startswith(b"HTTP/1.1 4"), got[:100]
        assert (await served.http.get("/healthz")).status_code == 200


async def test_a_caller_of_http_1_0_has_no_chunks_either() -> None:
    async with running() as served:
        head = post(served, length="Transfer-Encoding: chunked").replace(b"1.1", b"1.0", 1)
        refused(await answer(served.url, head + b"0\r\n\r\n"), 400, "bad_request")


async def test_a_trailer_is_nobodys_cookie() -> None:
    body = json.dumps(ask()).encode()
    async with running() as served:
        head = post(served, length="Transfer-Encoding: chunked")
        head = head.replace(served.cookie()["Cookie"].encode(), b"a=b")
        trailer = f"0\r\nCookie: {served.cookie()['Cookie']}\r\nConnection: close\r\n\r\n"
        sent = head + b"%x\r\n%b\r\n" % (len(body), body) + trailer.encode()
        got = await answer(served.url, sent)
    assert got.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("piece", [1, 1 << 16])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_takes_no_body_away(chunked: bool, piece: int) -> None:
    """Java's client, and `curl --http2`, offer HTTP/2 with every request that is not encrypted."""
    body = json.dumps(ask()).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    more = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    async with running() as served, line(served.url) as (reader, writer):
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        sent = post(served, more, length) + framed
        for start in range(0, len(sent), piece):
            writer.write(sent[start : start + piece])
            await writer.drain()
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 201 ")
        writer.write(get("/healthz", Connection="close"))
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")


async def test_an_upgrade_to_what_we_do_not_speak_is_answered_as_it_is() -> None:
    async with running() as served:
        asked = get("/healthz", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c")
        got = await answer(served.url, asked)
    assert got.startswith(b"HTTP/1.1 200 ")


# The others


Attack = Callable[[str], Awaitable[Any]]


async def many(url: str, number: int, sent: bytes, piece: bytes) -> None:
    """Send the same on many connections, and go on until each is closed."""

    async def one() -> None:
        with suppress(ConnectionError):
            async with line(url) as (reader, writer):
                writer.write(sent)
                closed = asyncio.create_task(rest(reader, 3))
                while not closed.done():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.wait([closed], timeout=0.01)

    await asyncio.gather(*(one() for _ in range(number)))


QUOTED = b'session="' + b'\\"' * 15_000 + b'"'
ATTACKS: dict[str, Attack] = {
    "heads that never end": lambda url: many(
        url, 20, b"GET /healthz HTTP/1.1\r\nX: ", b"a" * 65_536
    ),
    "many heads begun": lambda url: many(url, 200, b"GET / HTTP/1.1\r\nHost: a\r\n", b""),
    "quoted cookies": lambda url: many(
        url,
        5,
        b"",
        b"GET /stream HTTP/1.1\r\nHost: a\r\nCookie: " + QUOTED + b"\r\n\r\n",
    ),
    "many requests at once": lambda url: many(url, 10, b"", get("/healthz") * 1000),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_a_stranger_does_not_make_a_stream_wait(attack: Attack) -> None:
    over = asyncio.Event()

    async def steady(call: Call) -> None:
        await call.send(OK)
        while not over.is_set():
            await call.send(sse(chunk("x")))
            await asyncio.sleep(0.05)
        await call.send(WHOLE)

    seen: list[float] = []

    def note(_: Transcript) -> bool:
        seen.append(time.monotonic())
        return False

    async with scripted(steady) as upstream:
        given = {"secrets": SECRET, "upstream_url": upstream.url}
        with process("serve", "--port", "0", **given) as served:
            async with client(served.url) as http:
                headers = cookie(settings())
                made = await http.post("/tickets", json=ask(), headers=headers)
                url = made.json()["stream_url"]
                reading = asyncio.create_task(read(http, url, headers=headers, enough=note))
                await until(lambda: len(seen) > 5, "the stream runs")
                before = memory(served)
                await attack(served.url)
                grown = memory(served, "VmHWM") - before
                over.set()
                got = await reading
    assert got.end["state"] == "done"
    assert max(later - sooner for sooner, later in pairwise(seen)) < 2
    assert grown < 150 * MIB

"""Transport: connections made, used again or not, and heads and framings of every kind."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import pytest

from gateway.errors import UpstreamFailure
from tests.asking import asking, body_of, failure_of, preset
from tests.support import OK, WHOLE, Call, free_port, scripted

TYPE = b"Content-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FRAMED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)
LENGTH = b"Content-Length: %d\r\n" % len(WHOLE)


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    """Return the head of a stream."""
    return b"".join([status, TYPE, *lines, b"\r\n"])


# What is odd and tells what it means is read.

READ = {
    "a length": head(LENGTH) + WHOLE,
    "chunks": head(CHUNKED) + FRAMED,
    "a length beside chunks": head(b"Content-Length: 9\r\n", CHUNKED) + FRAMED,
    "chunks beside a length": head(CHUNKED, b"Content-Length: 99999\r\n") + FRAMED,
    "neither": head() + WHOLE,
    "HTTP/1.0": head(status=b"HTTP/1.0 200 OK\r\n") + WHOLE,
    "no reason": head(LENGTH, status=b"HTTP/1.1 200\r\n") + WHOLE,
    "an odd reason": head(LENGTH, status=b"HTTP/1.1 200 ok \xff\r\n") + WHOLE,
    "a folded line": head(b"X-Long: a\r\n b\r\n", LENGTH) + WHOLE,
    "bare line ends": head(LENGTH).replace(b"\r\n", b"\n") + WHOLE,
    "an empty line before it": b"\r\n" + head(LENGTH) + WHOLE,
    "an early hint": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + head(LENGTH) + WHOLE,
    "a go-ahead and bare line ends": b"HTTP/1.1 100 Continue\n\n"
    + head(LENGTH).replace(b"\r\n", b"\n")
    + WHOLE,
    "extensions": head(CHUNKED) + FRAMED.replace(b"\r\n", b";a=b\r\n", 1),
    "spaces after a size": head(CHUNKED) + FRAMED.replace(b"\r\n", b"  \r\n", 1),
    "trailers": head(CHUNKED) + FRAMED[:-2] + b"X-Sum: 1\r\nX-More: 2\r\n\r\n",
    "identity": head(b"Transfer-Encoding: identity\r\n") + WHOLE,
    "a control character in a header": head(b"X-Odd: a\x01b\r\n", LENGTH) + WHOLE,
    "a length twice": head(LENGTH, LENGTH) + WHOLE,
    "a length twice in one line": head(LENGTH.replace(b"\r", b", %d\r" % len(WHOLE))) + WHOLE,
    "a length that is none": head(b"Content-Length: none\r\n") + WHOLE,
    "a length that is empty": head(b"Content-Length:\r\n") + WHOLE,
    "a line without a colon": head(b"Cached today\r\n", LENGTH) + WHOLE,
    "a name that is none": head(b"X (a): b\r\n", b": c\r\n", b"X-D : e\r\n", CHUNKED) + FRAMED,
    "two spaces before the status": head(LENGTH, status=b"HTTP/1.1  200 OK\r\n") + WHOLE,
    "another version": head(LENGTH, status=b"HTTP/2 200\r\n") + WHOLE,
    "an early hint and a line without a colon": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    + head(b"Cached today\r\n", CHUNKED)
    + FRAMED,
    "too much after it": head(LENGTH) + WHOLE + b"data: of nobody\n\n" * 9,
}


@pytest.mark.parametrize("answer", READ.values(), ids=READ)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_an_answer_is_read_however_it_is_framed_and_cut(answer: bytes, size: int) -> None:
    async def script(call: Call) -> None:
        for at in range(0, len(answer), size):
            await call.send(answer[at : at + size])
            if size < 100:
                await asyncio.sleep(0)

    async with scripted(script) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == WHOLE


UNREADABLE = {
    "two lengths": head(b"Content-Length: 5\r\n", b"Content-Length: 6\r\n") + WHOLE,
    "two lengths and an odd line": head(b"odd\r\n", b"Content-Length: 5, 6\r\n") + WHOLE,
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no size": head(CHUNKED) + b"zz\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_is_a_cut_and_does_not_blame_the_connection(
    answer: bytes,
) -> None:
    failed = await failure_of(lambda call: call.send(answer))
    assert (failed.code, failed.state, failed.sure) == ("upstream_cut", "truncated", False)
    assert "closed" not in failed.message


# What never ends is bounded.

ENDLESS = {
    "a status line": (b"HTTP/1.1 200 ", b"x" * 4096),
    "a version": (b"HTTP/1.1", b"1" * 4096),
    "a header's name": (b"HTTP/1.1 200 OK\r\n", b"x" * 4096),
    "a header's value": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 512),
    "empty lines": (b"", b"\r\n" * 2048),
    "a folded header": (b"HTTP/1.1 200 OK\r\nX: y\r\n", b" y\r\n" * 1024),
    "early hints": (b"", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 64),
    "an extension of a chunk": (head(CHUNKED) + b"5;", b"x" * 4096),
    "a trailer": (head(CHUNKED) + FRAMED[:-2] + b"X: ", b"x" * 4096),
    "trailers": (head(CHUNKED) + FRAMED[:-2], b"X: y\r\n" * 512),
    "a size": (head(CHUNKED), b"0" * 4096),
}


@pytest.mark.parametrize(("begins", "goes_on"), ENDLESS.values(), ids=ENDLESS)
async def test_what_comes_before_or_after_a_body_and_never_ends_is_a_failure(
    begins: bytes, goes_on: bytes
) -> None:
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(begins)
        while not call.left.is_set():
            await call.send(goes_on)
            sent += len(goes_on)
            await asyncio.sleep(0)

    async with scripted(script) as server, asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await asyncio.wait_for(body_of(upstream, preset(server.url)), 20)
    assert (caught.value.code, caught.value.state) == ("upstream_cut", "truncated")
    assert "\n" not in str(caught.value)
    assert sent < 16 << 20  # What the sockets between hold, at the most.


@pytest.mark.parametrize("what", ["a trailer", "an extension of a chunk"])
async def test_it_is_bounded_also_while_nobody_takes_the_body(what: str) -> None:
    """As a run does while Redis does not take what it has."""
    begins, goes_on = ENDLESS[what]
    begins = begins.replace(CHUNKED + b"\r\n", CHUNKED + b"\r\n8\r\ndata: a\n\r\n", 1)
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(begins)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await call.send(goes_on)
                    sent += len(goes_on)

    async with (
        scripted(script) as server,
        asking() as upstream,
        upstream.ask(preset(server.url), b"{}") as chunks,
    ):
        assert await chunks.each(lambda _: True)
        await asyncio.sleep(0.6)
        with pytest.raises(UpstreamFailure):
            await chunks.each(lambda _: False)
    assert sent < 16 << 20


# Which connections are used again


@asynccontextmanager
async def keeping(*answers: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve answers in turn on kept connections; yields the URL and each connection's requests."""
    requests: list[int] = []
    left, writers = list(answers), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"{}")
                requests[number] += 1
                writer.write(left.pop(0))
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", requests
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


AGAIN = {"a length": READ["a length"], "chunks": READ["chunks"], "trailers": READ["trailers"]}
NOT_AGAIN = {
    name: READ[name]
    for name in (
        *("a length beside chunks", "chunks beside a length", "a folded line", "bare line ends"),
        *("a control character in a header", "too much after it"),
    )
}


@pytest.mark.parametrize("answer", AGAIN.values(), ids=AGAIN)
async def test_a_connection_is_used_again(answer: bytes) -> None:
    async with keeping(answer, answer) as (url, requests), asking() as upstream:
        for _ in range(2):
            assert await body_of(upstream, preset(url)) == WHOLE
        assert requests == [2]


@pytest.mark.parametrize("answer", NOT_AGAIN.values(), ids=NOT_AGAIN)
async def test_a_connection_whose_answer_was_odd_is_not_used_again(answer: bytes) -> None:
    async with keeping(answer, answer) as (url, requests), asking() as upstream:
        for _ in range(2):
            assert await body_of(upstream, preset(url)) == WHOLE
        assert requests == [1, 1]


@pytest.mark.parametrize("garbage", [b"x" * 65536, b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n" * 9999])
async def test_who_sends_what_nobody_asked_for_is_hung_up_on(garbage: bytes) -> None:
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(READ["a length"])
        while not call.left.is_set():
            await call.send(garbage)
            sent += len(garbage)
            await asyncio.sleep(0)

    async with scripted(script) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == WHOLE
        await asyncio.wait_for(server.calls[0].left.wait(), 20)
        assert await body_of(upstream, preset(server.url)) == WHOLE
    assert sent < 32 << 20


# Names with several addresses


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the name `many.test` have these addresses, in this order."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *given: Any, **more: Any) -> Any:
        if host not in ("many.test", b"many.test"):
            return real(host, port, *given, **more)
        found = [real(each, port, *given, **more) for each in addresses]
        return [each for several in found for each in several]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextmanager
def deaf(address: str, port: int) -> Iterator[None]:
    """Let an address swallow connections: nobody accepts, and there is no more room to wait in."""
    with ExitStack() as opened, socket.socket() as listener:
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


@pytest.mark.parametrize("dead", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3"]])
async def test_a_name_whose_first_address_is_dead_is_reached_by_the_next(
    dead: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, *dead, "127.0.0.1")
    async with scripted(lambda call: call.send(OK, WHOLE)) as server, asking() as upstream:
        url, port = server.url.replace("127.0.0.1", "many.test"), httpx.URL(server.url).port
        with ExitStack() as opened:
            for each in dead:
                opened.enter_context(deaf(each, port or 0))
            started = time.monotonic()
            assert await body_of(upstream, preset(url, connect=30)) == WHOLE
            assert time.monotonic() - started < 10
        assert len(server.calls) == 1


async def test_all_addresses_together_have_the_time_of_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    names(monkeypatch, *dead)
    port = free_port()
    with ExitStack() as opened:
        for each in dead:
            opened.enter_context(deaf(each, port))
        started = time.monotonic()
        async with asking() as upstream:
            with pytest.raises(UpstreamFailure) as caught:
                await body_of(upstream, preset(f"http://many.test:{port}/", connect=2))
    assert (caught.value.code, caught.value.sure) == ("upstream_unreachable", True)
    assert 1.8 < time.monotonic() - started < 5.5


async def test_an_address_that_answers_at_once_is_not_raced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, "127.0.0.1", "127.0.0.1", "127.0.0.2")
    async with scripted(lambda call: call.send(OK, WHOLE)) as server, asking() as upstream:
        port = httpx.URL(server.url).port
        with socket.socket() as other:
            other.bind(("127.0.0.2", port or 0))
            other.listen()
            other.settimeout(0.4)
            assert await body_of(upstream, preset(f"http://many.test:{port}/")) == WHOLE
            with pytest.raises(TimeoutError):
                other.accept()


async def test_a_name_whose_first_address_refuses_is_reached_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with scripted(lambda call: call.send(OK, WHOLE)) as server, asking() as upstream:
        url = server.url.replace("127.0.0.1", "many.test")
        assert await body_of(upstream, preset(url)) == WHOLE


async def test_a_name_none_of_whose_addresses_answers_is_sure_to_have_cost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, "127.0.0.2", "127.0.0.3")
    async with asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await body_of(upstream, preset("http://many.test:9/"))
    assert (caught.value.code, caught.value.sure) == ("upstream_unreachable", True)

"""Upstreams: what is asked of them, and what is understood of the answer."""

import asyncio
import json
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.errors import UpstreamFailure
from gateway.serve.sockets import bind, url_of
from gateway.upstream.client import Upstream
from tests.asking import KEY, answering, asking, body_of, failure_of, preset, streamed
from tests.support import OK, WHOLE, Call, free_port, scripted, until, whole

# Asking


async def test_a_stream_arrives_byte_for_byte() -> None:
    odd = b": hi\r\ndata: \xff\0\r\n\r\n" + WHOLE
    async with scripted(lambda call: call.send(OK, odd)) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == odd


async def test_bytes_are_given_as_they_come() -> None:
    more = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, b"data: a\n\n")
        await more.wait()
        await call.send(b"data: b\n\n")

    async with (
        scripted(script) as server,
        asking() as upstream,
        upstream.ask(preset(server.url), b"{}") as chunks,
    ):
        assert await anext(aiter(chunks)) == b"data: a\n\n"
        more.set()
        assert await anext(aiter(chunks)) == b"data: b\n\n"


def headers_of(call: Call) -> dict[str, list[str]]:
    """Return a request's headers by lower-case name."""
    found: dict[str, list[str]] = {}
    for line in call.head.decode().split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        found.setdefault(name.lower(), []).append(value.strip())
    return found


async def asked(**members: Any) -> Call:
    """Return the request that an upstream gets from a preset."""
    async with scripted(whole) as server, asking() as upstream:
        await body_of(upstream, preset(server.url, **members), b'{"model":"m"}')
        return server.calls[0]


async def test_the_request_is_a_post_of_the_body_as_it_is() -> None:
    call = await asked()
    assert call.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert call.body == b'{"model":"m"}'


async def test_the_headers_ask_for_an_uncompressed_stream_with_our_key() -> None:
    sent = headers_of(await asked())
    assert sent["authorization"] == [f"Bearer {KEY}"]
    assert sent["content-type"] == ["application/json"]
    assert sent["accept"] == ["text/event-stream"]
    assert sent["accept-encoding"] == ["identity"]


async def test_without_a_key_none_is_sent() -> None:
    assert "authorization" not in headers_of(await asked(api_key=""))


async def test_a_presets_headers_are_sent() -> None:
    sent = headers_of(await asked(headers={"api-key": "azure", "OpenAI-Project": "p"}))
    assert (sent["api-key"], sent["openai-project"]) == (["azure"], ["p"])


async def test_a_presets_header_is_sent_in_latin_1() -> None:
    assert b"\r\nx-title: Caf\xe9\r\n" in (await asked(headers={"x-title": "Caf\xe9"})).head


@pytest.mark.parametrize("name", ["User-Agent", "user-agent"])
async def test_a_presets_header_replaces_ours_however_it_is_written(name: str) -> None:
    assert headers_of(await asked(headers={name: "mine"}))["user-agent"] == ["mine"]


async def test_an_upstreams_cookies_are_not_sent_back() -> None:
    async def script(call: Call) -> None:
        await call.send(streamed("Set-Cookie: who=someone-else; Path=/"), WHOLE)

    async with scripted(script) as server, asking() as upstream:
        await body_of(upstream, preset(server.url))
        await body_of(upstream, preset(server.url))
        assert ["cookie" in headers_of(call) for call in server.calls] == [False, False]


async def test_a_redirect_is_not_followed() -> None:
    async with scripted(whole) as elsewhere:
        failed = await failure_of(
            answering("307 Temporary Redirect", b"", f"Location: {elsewhere.url}")
        )
        assert (failed.state, failed.status, failed.sure) == ("failed", 307, False)
        assert elsewhere.calls == []


# Each with whether nothing can have been paid for, and whether a new ticket may fare better.
REFUSED: dict[str, tuple[bool, bool]] = {
    "400 Bad Request": (False, False),
    "401 Unauthorized": (False, False),
    "404 Not Found": (False, False),
    "408 Request Timeout": (False, True),
    "409 Conflict": (False, True),
    "425 Too Early": (False, True),
    "429 Too Many Requests": (True, True),
    "500 Internal Server Error": (False, True),
    "502 Bad Gateway": (False, True),
    "503 Service Unavailable": (True, True),
    "504 Gateway Timeout": (False, True),
    "520 ": (False, True),
    "524 A Timeout Occurred": (False, True),
    "529 Overloaded": (True, True),
}


@pytest.mark.parametrize(("status", "expected"), REFUSED.items())
async def test_a_refusal_says_its_status_and_whether_to_ask_again(
    status: str, expected: tuple[bool, bool]
) -> None:
    failed = await failure_of(answering(status, b'{"error": {"message": "Not now."}}'))
    assert (failed.code, failed.message) == ("upstream_refused", "Not now.")
    assert (failed.state, failed.status) == ("failed", int(status[:3]))
    assert (failed.sure, failed.retryable) == expected


@pytest.mark.parametrize("status", ["500 Oops", "504 Late", "408 Late"])
async def test_a_preset_may_know_of_more_statuses_that_cost_nothing(status: str) -> None:
    failed = await failure_of(answering(status), retry_on=[500, 504, 408])
    assert (failed.sure, failed.retryable) == (True, True)
    assert not (await failure_of(answering("502 Bad"), retry_on=[500])).sure


SHOULD_RETRY: dict[tuple[str, str], tuple[bool, bool]] = {
    ("429 Slow", "false"): (False, False),
    ("503 Busy", "False"): (False, False),
    ("500 Oops", "true"): (False, True),
    ("409 Conflict", "true"): (False, True),
    ("429 Slow", "maybe"): (True, True),
}


@pytest.mark.parametrize(("answer", "expected"), SHOULD_RETRY.items())
async def test_an_upstream_that_says_not_to_ask_again_is_believed(
    answer: tuple[str, str], expected: tuple[bool, bool]
) -> None:
    status, told = answer
    failed = await failure_of(answering(status, b"", f"X-Should-Retry: {told}"))
    assert (failed.sure, failed.retryable) == expected


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy", "500 Oops"])
async def test_a_bill_that_is_not_paid_is_no_reason_to_come_back(status: str) -> None:
    body = b'{"error": {"message": "Pay.", "type": "insufficient_quota"}}'
    assert not (await failure_of(answering(status, body))).retryable


async def test_a_redirect_says_where_to() -> None:
    where = f"Location: http://other/v1?key={KEY}"
    failed = await failure_of(answering("302 Found", b"", where))
    assert "302 and points to http://other/v1" in failed.message
    assert failed.message.isprintable()
    assert KEY not in failed.message


MESSAGES: dict[bytes, str] = {
    b'{"error": {"message": "Not now."}}': "Not now.",
    b'{"error": "Not now."}': "Not now.",
    b"Not now.": "Not now.",
    b"<html>Bad gateway</html>": "The upstream answered 500.",
    b"": "The upstream answered 500.",
    b'{"error": {"message": ""}}': "The upstream answered 500.",
    b"\xff": "\N{REPLACEMENT CHARACTER}",
}


@pytest.mark.parametrize(("body", "message"), MESSAGES.items())
async def test_a_refusals_message_is_what_the_upstream_said(body: bytes, message: str) -> None:
    assert (await failure_of(answering("500 Oops", body))).message == message


async def test_a_refusals_message_is_bounded() -> None:
    failed = await failure_of(answering("500 Oops", b"x" * 1_000_000))
    assert failed.message == "x" * 500


@pytest.mark.parametrize("pad", [0, 470, 490])
async def test_our_key_is_not_in_a_message_that_quotes_it(pad: int) -> None:
    body = {"error": {"message": "x" * pad + f" Incorrect API key: {KEY}."}}
    failed = await failure_of(answering("401 Unauthorized", json.dumps(body).encode()))
    assert KEY[:6] not in failed.message
    assert failed.message.startswith("x" * pad)


async def test_a_key_in_a_presets_header_is_not_in_a_message_that_quotes_it() -> None:
    script = answering("401 Unauthorized", b"Wrong key: azure-secret-key")
    failed = await failure_of(script, headers={"api-key": "azure-secret-key"})
    assert "azure-secret-key" not in failed.message


RETRY_AFTER: dict[str, tuple[str, float | None]] = {
    "seconds": ("Retry-After: 7", 7),
    "a fraction": ("Retry-After: 0.5", 0.5),
    "milliseconds": ("Retry-After-Ms: 250", 0.25),
    "nothing": ("X-Other: 1", None),
    "empty": ("Retry-After: ", None),
    "garbage": ("Retry-After: soon", None),
    "garbage milliseconds": ("Retry-After-Ms: soon", None),
    "a negative number": ("Retry-After: -5", None),
    "digits of another script": ("Retry-After: ²", None),
    "an infinite number": ("Retry-After: inf", None),
    "no number": ("Retry-After: nan", None),
    "an exponent": ("Retry-After: 1e9", None),
    "garbage milliseconds beside seconds": ("Retry-After-Ms: soon\r\nRetry-After: 7", 7),
    "negative milliseconds beside seconds": ("Retry-After-Ms: -5\r\nRetry-After: 7", 7),
    "infinite milliseconds beside seconds": ("Retry-After-Ms: inf\r\nRetry-After: 7", 7),
    "milliseconds beside seconds": ("Retry-After-Ms: 250\r\nRetry-After: 7", 0.25),
    "both twice": ("Retry-After: 7\r\nRetry-After: 7", 7),
    "far too many digits": ("Retry-After: " + "9" * 400, float("inf")),
    "a date that is none": ("Retry-After: Sat, 99 Nov 2026 99:99:99 GMT", None),
    "a year out of range": ("Retry-After: Sat, 28 Nov 99999 00:00:00 GMT", None),
}


@pytest.mark.parametrize(("header", "seconds"), RETRY_AFTER.values(), ids=RETRY_AFTER)
async def test_retry_after_is_told_in_seconds(header: str, seconds: float | None) -> None:
    failed = await failure_of(answering("429 Too Many Requests", b"", header))
    assert failed.retry_after == seconds


DATES = {
    "IMF": "%a, %d %b %Y %H:%M:%S GMT",
    "RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
    "asctime": "%a %b %e %H:%M:%S %Y",
    "another zone": "%a, %d %b %Y %H:%M:%S +0000",
}


@pytest.mark.parametrize("form", DATES.values(), ids=DATES)
@pytest.mark.parametrize(("ahead", "low", "high"), [(60, 50, 60), (-60, 0, 0)])
async def test_retry_after_may_be_a_date_of_any_form(
    form: str, ahead: int, low: float, high: float
) -> None:
    when = (datetime.now(UTC) + timedelta(seconds=ahead)).strftime(form)
    failed = await failure_of(answering("503 Busy", b"", f"Retry-After: {when}"))
    assert failed.retry_after is not None
    assert low <= failed.retry_after <= high


async def test_a_date_without_a_zone_is_no_reason_to_break() -> None:
    header = "Retry-After: Wed, 21 Oct 2065 07:28:00 -0000"
    failed = await failure_of(answering("503 Busy", b"", header))
    assert (failed.code, failed.status) == ("upstream_refused", 503)


async def test_a_chunked_stream_is_read_without_its_framing() -> None:
    head = streamed("Transfer-Encoding: chunked")
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)
    async with scripted(lambda call: call.send(head, body)) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == WHOLE


# Connections


async def test_a_refused_connection_is_sure_to_have_cost_nothing() -> None:
    async with asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await body_of(upstream, preset(f"http://127.0.0.1:{free_port()}/v1"))
    failed = caught.value
    assert (failed.code, failed.state) == ("upstream_unreachable", "failed")
    assert failed.sure
    assert failed.retryable


async def test_a_name_that_nobody_has_is_sure_to_have_cost_nothing() -> None:
    async with asking() as upstream:
        with pytest.raises(UpstreamFailure, match="could not be reached") as caught:
            await body_of(upstream, preset("http://upstream.invalid/v1"))
    assert caught.value.sure


UNANSWERED: dict[str, list[bytes]] = {
    "nothing": [],
    "half a status line": [b"HTTP/1.1 20"],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-Type: text/"],
    "no HTTP": [b"SSH-2.0-OpenSSH\r\n\r\n"],
    "a bad status": [b"HTTP/1.1 no status\r\n\r\n"],
    "a long header": [b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"],
}


@pytest.mark.parametrize("answer", UNANSWERED.values(), ids=UNANSWERED)
@pytest.mark.parametrize("reset", [True, False])
async def test_a_request_that_was_taken_and_not_answered_may_have_been_paid_for(
    answer: list[bytes], reset: bool
) -> None:
    async def script(call: Call) -> None:
        await call.send(*answer)
        if reset:
            call.cut()

    failed = await failure_of(script)
    assert (failed.code, failed.state) == ("upstream_cut", "truncated")
    assert (failed.sure, failed.retryable) == (False, True)


async def test_a_cut_in_mid_stream_gives_what_came_and_may_have_been_paid_for() -> None:
    got: list[bytes] = []

    async def script(call: Call) -> None:
        await call.send(streamed("Transfer-Encoding: chunked"), b"9\r\ndata: a\n\n\r\n")
        await until(lambda: got)
        call.cut()

    async def ask(upstream: Upstream, url: str) -> None:
        async with upstream.ask(preset(url), b"{}") as chunks:
            async for part in chunks:
                got.append(part)

    async with scripted(script) as server, asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await ask(upstream, server.url)
    assert b"".join(got) == b"data: a\n\n"
    assert (caught.value.code, caught.value.state) == ("upstream_cut", "truncated")
    assert not caught.value.sure


async def test_a_body_shorter_than_it_said_is_a_cut() -> None:
    head = streamed("Content-Length: 1000")
    failed = await failure_of(lambda call: call.send(head, b"data: a\n\n"))
    assert (failed.code, failed.state) == ("upstream_cut", "truncated")


async def test_a_kept_connection_that_dies_with_the_request_is_not_asked_again() -> None:
    accepted: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = OK.replace(b"Connection: close\r\n", b"Content-Length: %d\r\n" % len(WHOLE))
        for answer in (head + WHOLE, b""):
            accepted.append(await reader.readuntil(b"{}"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, asking() as upstream:
        await body_of(upstream, preset(url))
        with pytest.raises(UpstreamFailure) as caught:
            await body_of(upstream, preset(url))
    assert len(accepted) == 2
    assert not caught.value.sure


async def test_a_connection_kept_after_a_refusal_carries_one_request_at_a_time() -> None:
    """Who retries and who comes new must not be answered over each other's connection."""
    refusal = b"HTTP/1.1 503 No\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nbusy"
    requests: list[int] = []  # Of each connection.
    both = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"{}")
                requests[number] += 1
                if sum(requests) == 1:
                    writer.write(refusal)
                    continue
                if sum(requests) == 3:
                    both.set()
                await asyncio.wait_for(both.wait(), 20)
                writer.write(OK + WHOLE)
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    to = preset(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    async with server, asking() as upstream:
        with pytest.raises(UpstreamFailure):
            await body_of(upstream, to)
        one, other = await asyncio.gather(body_of(upstream, to), body_of(upstream, to))
    assert one == other == WHOLE
    assert requests == [2, 1]


async def test_a_kept_connection_closed_while_the_process_stood_still_takes_no_request() -> None:
    head = OK.replace(b"Connection: close\r\n", b"Content-Length: %d\r\n" % len(WHOLE))
    idle, closed = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                connection.recv(1 << 16)
                connection.sendall(head + WHOLE)
                idle.wait(5)
            closed.set()

    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        listener.settimeout(5)
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        async with asking() as upstream:
            await body_of(upstream, preset(url_of(listener)))
            idle.set()
            assert closed.wait(5)  # The loop is blocked, as in a process that was stopped.
            assert await body_of(upstream, preset(url_of(listener))) == WHOLE
        server.join(5)


async def test_leaving_closes_the_connection() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, b"data: a\n\n")
        await call.left.wait()

    async with scripted(script) as server, asking() as upstream:
        async with upstream.ask(preset(server.url), b"{}") as chunks:
            await anext(aiter(chunks))
            assert not server.calls[0].left.is_set()
        await asyncio.wait_for(server.calls[0].left.wait(), 20)


async def test_a_cancelled_ask_closes_the_connection_before_any_answer() -> None:
    async def script(call: Call) -> None:
        await call.left.wait()

    async with scripted(script) as server, asking() as upstream:
        task = asyncio.create_task(body_of(upstream, preset(server.url)))
        await until(lambda: server.calls)
        task.cancel()
        await asyncio.wait_for(server.calls[0].left.wait(), 20)


async def test_two_hundred_streams_are_open_at_once() -> None:
    async def script(call: Call) -> None:
        await until(lambda: len(server.calls) == 200, seconds=20)
        await call.send(OK, WHOLE)

    async with scripted(script) as server, asking() as upstream:
        asks = [body_of(upstream, preset(server.url, connect=20)) for _ in range(200)]
        assert await asyncio.gather(*asks) == [WHOLE] * 200


@pytest.mark.parametrize("url", ["", "ftp://host/", "http://", "http://[::1", "http://h:99999/"])
async def test_a_wrong_address_fails_for_good(url: str) -> None:
    async with asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await body_of(upstream, preset(url))
    assert (caught.value.code, caught.value.state) == ("upstream_misconfigured", "failed")
    assert not caught.value.retryable


async def test_reach_tells_the_status_and_asks_for_nothing() -> None:
    script = answering("405 Method Not Allowed")
    async with scripted(script) as server, asking() as upstream:
        assert await upstream.reach(preset(server.url)) == 405
        assert server.calls[0].head.startswith(b"OPTIONS ")


async def test_reach_tells_that_nobody_is_there() -> None:
    async with asking() as upstream:
        with pytest.raises(UpstreamFailure, match="could not be reached"):
            await upstream.reach(preset(f"http://127.0.0.1:{free_port()}/v1"))

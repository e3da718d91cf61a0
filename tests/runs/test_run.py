"""How a stream ends: what the upstream did, what the page is told, and what was paid."""

import asyncio
import gzip
import json
import logging
import re
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from gateway.config.presets import Preset
from gateway.runs.endings import FINAL, Ending, EndState, ending_events, failure
from gateway.sse import Event
from gateway.upstream.protocols.chat_state import ChatState
from tests.support import (
    OK,
    WHOLE,
    Call,
    Script,
    ScriptedUpstream,
    Transcript,
    ask,
    chunk,
    free_port,
    running,
    scripted,
    sse,
    until,
    whole,
)

KEY = "sk-of-the-tests"
STOP = chunk("", finish="stop")
CHUNKED = OK.replace(b"Connection: close", b"Transfer-Encoding: chunked")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """However an upstream behaves, the gateway logs no error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


async def ended(
    script: Script, body: Any = None, **changes: Any
) -> tuple[Transcript, ScriptedUpstream]:
    """Return what a viewer got of a whole stream, and the upstream with its calls."""
    given = {"drain": 0.2, "upstream_api_key": KEY, **changes}
    async with scripted(script) as upstream, running(upstream_url=upstream.url, **given) as gate:
        got = await asyncio.wait_for(gate.read(await gate.ticket(body)), 20)
        assert got.names[-1:] == ["end"], got.names
        return got, upstream


def sends(*parts: bytes, cut: bool = False, hold: bool = False) -> Script:
    """Return a script that sends these bytes, then closes, resets or holds the connection."""

    async def script(call: Call) -> None:
        await call.send(*parts)
        if hold:
            await call.left.wait()
        if cut:
            await asyncio.sleep(0.05)  # Else the reset may overtake what was sent.
            call.cut()

    return script


def answers(status: str, body: bytes, kind: str = "application/json", *more: str) -> bytes:
    """Return a whole answer that is no stream."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


# done


@pytest.mark.parametrize(
    "events",
    [
        [chunk("Hi"), STOP, b"[DONE]"],
        [chunk("Hi"), STOP],
        [chunk("Hi", finish="length")],
        [chunk("Hi"), b"[DONE]"],
        [STOP, b'{"choices":[],"usage":{"total_tokens":1}}', b"[DONE]"],
        [b'{"choices":[{"index":0,"delta":{},\n"finish_reason" :\n"stop"}]}'.replace(b"\n", b" ")],
    ],
)
@pytest.mark.parametrize("how", ["closed", "reset", "held"])
async def test_a_stream_is_done_when_the_upstream_said_so(events: list[bytes], how: str) -> None:
    script = sends(OK, sse(*events), cut=how == "reset", hold=how == "held")
    got, upstream = await ended(script, upstream_stall=0.4)
    assert (got.end["state"], got.data) == ("done", events)
    assert (got.end["attempts"], len(upstream.calls)) == (1, 1)


async def test_the_log_says_why_an_answer_failed(caplog: pytest.LogCaptureFixture) -> None:
    """An operator has nothing else: what the viewer was told, the viewer has."""
    refusal = b'{"error": {"message": "Incorrect API key\\nprovided: sk-of-the-tests"}}'
    head = b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await ended(sends(head % len(refusal), refusal))
    (line,) = [each for each in caplog.messages if "failed after" in each]
    assert line.endswith(
        "failed after 1 attempt(s) of preset default: "
        "upstream_refused (401): Incorrect API key provided: ***"
    )
    assert [each.levelname for each in caplog.records if each.getMessage() == line] == ["WARNING"]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"prompt_tokens":12,"completion_tokens":40}', "12+40 tokens"),
        (b'{"completion_tokens":40}', "1+40 tokens (estimated)"),
        (b'{"prompt_tokens":"1\\nERROR forged","completion_tokens":-1}', "1+2 tokens (estimated)"),
        (b'{"prompt_tokens":true,"completion_tokens":%s}' % (b"9" * 400), "1+2 tokens (estimated)"),
        (b"null", "1+2 tokens (estimated)"),
    ],
)
async def test_the_log_has_one_line_for_a_good_answer_without_its_user_and_words(
    caplog: pytest.LogCaptureFixture, usage: bytes, tokens: str
) -> None:
    caplog.set_level(logging.INFO)
    last = b'{"choices":[],"usage":%s}' % usage
    words = chunk("forty-two"), chunk("lo"), STOP
    got, _ = await ended(sends(OK, sse(*words, last, b"[DONE]")))
    assert got.end["state"] == "done"
    (line,) = [each for each in caplog.records if each.name == "gateway.runs.supervisor"]
    measure = re.escape(f"5 events, {tokens}")
    pattern = rf"[\w-]{{22}}: done after 1 attempt\(s\) of preset default, \d+\.\d\d s, {measure}"
    assert re.fullmatch(pattern, line.getMessage())
    assert line.levelname == "INFO"
    assert "alice" not in caplog.text
    assert "forty" not in caplog.text


async def test_the_log_says_why_an_upstream_could_not_be_reached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"upstream_url": "http://nowhere.invalid/v1", "upstream_retries": 0}
    async with running(**given) as gate:
        await gate.read(await gate.ticket())
    (line,) = [each for each in caplog.messages if "failed after" in each]
    assert "upstream_unreachable: The upstream could not be reached. (" in line
    assert "resolution" in line or "known" in line


async def test_the_end_tells_reason_and_usage(redis_url: str) -> None:
    usage = b'{"choices":[],"usage":{"total_tokens":7}}'
    script = sends(OK, sse(chunk("Hi", finish="length"), usage, b"[DONE]"))
    got, _ = await ended(script, redis_url=redis_url)
    expected = {"state": "done", "finish_reason": "length", "usage": {"total_tokens": 7}}
    guessed = {"prompt": 1, "completion": 1, "cached": None, "estimated": True}
    billed = {"tokens": guessed, "preset": "default"}
    assert got.end == {**expected, **billed, "attempts": 1}


async def test_what_follows_the_finish_is_waited_for() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(STOP))
        await asyncio.sleep(0.3)
        await call.send(sse(b'{"choices":[],"usage":{"total_tokens":7}}'), sse(b"[DONE]"))

    got, _ = await ended(script)
    assert (got.end["usage"], got.data[-1]) == ({"total_tokens": 7}, b"[DONE]")


async def test_a_finished_stream_is_done_although_its_connection_never_ends() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(STOP))
        while not call.left.is_set():
            await call.send(b": still here\n\n")
            await asyncio.sleep(0.05)

    got, _ = await ended(script, upstream_stall=0.5, max_run=1.5)
    assert got.end["state"] == "done"


async def test_all_choices_must_finish() -> None:
    events = [chunk("a", finish="stop"), chunk("b", index=1)]
    got, _ = await ended(sends(OK, sse(*events)), ask(n=2))
    assert got.end["state"] == "truncated"
    got, _ = await ended(sends(OK, sse(*events, chunk("", finish="stop", index=1))), ask(n=2))
    assert got.end["state"] == "done"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_stream_is_shown_as_it_comes(coding: str) -> None:
    compressor = zlib.compressobj(wbits=31 if coding == "gzip" else 15)

    async def script(call: Call) -> None:
        head = OK.replace(b"\r\n\r\n", f"\r\nContent-Encoding: {coding}\r\n\r\n".encode())
        for each in (chunk("Hel"), chunk("lo"), STOP, b"[DONE]"):
            piece = compressor.compress(sse(each)) + compressor.flush(zlib.Z_SYNC_FLUSH)
            await call.send(head, piece)
            head = b""

    got, _ = await ended(script)
    assert got.data == [chunk("Hel"), chunk("lo"), STOP, b"[DONE]"]
    assert got.end["state"] == "done"


async def test_the_upstream_is_asked_with_our_key_and_without_the_users_cookie() -> None:
    _, upstream = await ended(whole)
    head = upstream.calls[0].head.decode().lower()
    assert f"authorization: bearer {KEY}" in head
    assert "cookie" not in head


# truncated


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"", 0),
        (b": hello\n\n", 0),
        (sse(chunk("Hel"), chunk("lo")), 2),
        (sse(chunk("Hel")) + sse(STOP)[:-1], 1),
        (sse(chunk("Hel")) + sse(STOP)[:-2], 1),
        (
            sse(b'{"choices":[{"index":0,"delta":{"content":"\\"finish_reason\\": \\"stop\\""}}]}'),
            1,
        ),
    ],
)
async def test_a_connection_that_ends_early_truncates(sent: bytes, kept: int, cut: bool) -> None:
    got, upstream = await ended(sends(OK, sent, cut=cut), upstream_retries=3)
    assert (got.end["state"], len(got.data), len(upstream.calls)) == ("truncated", kept, 1)
    assert (got.failure["code"], got.failure["retryable"]) == ("upstream_cut", True)
    assert "status" not in got.failure


@pytest.mark.parametrize("cut", [False, True])
async def test_a_chunked_body_that_breaks_off_truncates(cut: bool) -> None:
    event = sse(chunk("Hel"))
    script = sends(CHUNKED, b"%x\r\n" % len(event), event, b"\r\nff\r\ndata: ", cut=cut)
    got, upstream = await ended(script, upstream_retries=3)
    assert (got.end["state"], got.data) == ("truncated", [chunk("Hel")])
    assert len(upstream.calls) == 1


async def test_a_chunked_body_that_breaks_off_after_the_finish_is_done() -> None:
    event = sse(STOP)
    got, _ = await ended(sends(CHUNKED, b"%x\r\n" % len(event), event, b"\r\n", cut=True))
    assert (got.names, got.end["state"]) == (["", "end"], "done")


@pytest.mark.parametrize("cut", [False, True])
async def test_a_request_that_was_taken_and_never_answered_is_not_sent_again(cut: bool) -> None:
    got, upstream = await ended(sends(cut=cut), upstream_retries=3)
    assert (got.end["state"], got.failure["code"]) == ("truncated", "upstream_cut")
    assert (got.end["attempts"], len(upstream.calls)) == (1, 1)


async def test_an_event_above_the_limit_truncates_and_what_came_before_is_kept() -> None:
    huge = b"data: " + b"x" * 3000 + b"\n\n"
    got, _ = await ended(sends(OK, sse(chunk("Hel")) + huge + sse(STOP)), max_event=2048)
    assert (got.end["state"], got.data) == ("truncated", [chunk("Hel")])
    assert (got.failure["code"], got.failure["retryable"]) == ("event_too_large", False)


async def test_an_event_that_never_ends_truncates() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        while not call.left.is_set():
            await call.send(b"data: more\n")
            await asyncio.sleep(0)

    got, _ = await ended(script, max_event=2048)
    assert (got.failure["code"], got.data) == ("event_too_large", [chunk("Hel")])


async def test_a_log_above_the_limit_truncates_and_what_came_before_is_kept() -> None:
    async def script(call: Call) -> None:
        await call.send(OK)
        while not call.left.is_set():
            await call.send(sse(chunk("word " * 20)))
            await asyncio.sleep(0)

    got, _ = await ended(script, max_log=4096)
    assert (got.end["state"], got.failure["code"]) == ("truncated", "log_full")
    assert set(got.data) == {chunk("word " * 20)}
    assert len(got.raw) > 4096


async def test_a_log_stays_near_its_limit_however_well_it_was_compressed() -> None:
    body = gzip.compress(sse(chunk("x" * 1000)) * 20_000)
    head = OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    got, _ = await ended(sends(head + body), max_log=64 * 1024)
    assert got.failure["code"] == "log_full"
    assert len(got.raw) < 4 * 64 * 1024


async def test_an_answer_that_is_compressed_too_well_holds_nobody_else() -> None:
    bomb = gzip.compress(b"\n" * (400 << 20))
    head = OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")

    async def script(call: Call) -> None:
        if call.json["model"] == "bomb":
            await call.send(head, bomb)
        else:
            await call.send(OK)
            while not call.left.is_set():
                await call.send(sse(chunk("tick")))
                await asyncio.sleep(0.01)

    async with scripted(script) as upstream, running(upstream_url=upstream.url) as gate:
        heard, over = [time.process_time()], asyncio.Event()
        url, other = await gate.ticket(), await gate.ticket(ask() | {"model": "bomb"})

        def enough(got: Transcript) -> bool:
            heard.append(time.process_time())
            return over.is_set()

        reading = asyncio.create_task(gate.read(url, enough=enough))
        await until(lambda: len(heard) > 1)
        got = await gate.read(other)
        heard.append(time.process_time())
        over.set()
        await reading
    assert (got.end["state"], got.failure["code"]) == ("truncated", "upstream_noise")
    # Seconds of this whole process: what others do meanwhile is not its fault.
    assert max(after - before for before, after in pairwise(heard)) < 2


@pytest.mark.parametrize("piece", [b"data:\n\n", b":\n\n", b"x\n\n"])
async def test_a_flood_of_tiny_events_leaves_the_others_their_time(piece: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(OK)
        while not call.left.is_set():
            await call.send(piece * 100_000)

    worst = 0.0
    given = {"lease": 10, "grace": 60, "max_log": 4 << 20}
    async with scripted(script) as up, running(upstream_url=up.url, **given) as gate:
        url = await gate.ticket()
        await gate.read(url, enough=lambda got: got.raw)
        deadline = time.monotonic() + 60
        while gate.gateway.supervisor.active:
            assert time.monotonic() < deadline
            before = time.process_time()
            await asyncio.sleep(0.001)
            worst = max(worst, time.process_time() - before)
    assert worst < 1  # Seconds of this whole process, the upstream's too.


async def test_many_events_in_one_read_are_all_kept_in_order() -> None:
    events = [chunk(str(number)) for number in range(8000)]
    got, _ = await ended(sends(OK + sse(*events, STOP, b"[DONE]")))
    assert (got.end["state"], got.data) == ("done", [*events, STOP, b"[DONE]"])


async def test_a_run_has_a_longest_time() -> None:
    async def script(call: Call) -> None:
        await call.send(OK)
        while not call.left.is_set():
            await call.send(sse(chunk("tick")))
            await asyncio.sleep(0.05)

    started = time.monotonic()
    got, _ = await ended(script, max_run=0.6)
    assert 0.5 < time.monotonic() - started < 20
    assert (got.end["state"], got.failure["code"]) == ("truncated", "run_too_long")
    assert got.data


# stalled


@pytest.mark.parametrize("sent", [[], [OK], [OK, sse(chunk("Hel"))], [OK, b": hi\n\n"]])
async def test_an_upstream_that_falls_silent_stalls(sent: list[bytes]) -> None:
    got, upstream = await ended(sends(*sent, hold=True), upstream_stall=0.3, upstream_retries=3)
    assert (got.end["state"], got.failure["code"]) == ("stalled", "upstream_stalled")
    assert (got.end["attempts"], len(upstream.calls)) == (1, 1)
    await asyncio.wait_for(upstream.calls[0].left.wait(), 20)


async def test_the_first_byte_may_take_longer_than_the_others() -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(0.8)
        await call.send(OK, WHOLE)

    got, _ = await ended(script, upstream_stall=0.3, upstream_first_byte=5)
    assert got.end["state"] == "done"


async def test_comments_are_life() -> None:
    async def script(call: Call) -> None:
        await call.send(OK)
        for _ in range(20):
            await call.send(b": thinking\n\n")
            await asyncio.sleep(0.1)
        await call.send(WHOLE)

    got, _ = await ended(script, upstream_stall=1.5)
    assert got.end["state"] == "done"


# failed

MESSAGE = b'{"error":{"message":"No more of %s","type":"x"}}' % KEY.encode()


@pytest.mark.parametrize(
    ("status", "retryable"),
    [("429 Slow", True), ("500 Oops", True), ("503 Busy", True), ("401 Who", False)],
)
async def test_a_refusal_is_told_with_its_status_but_without_our_key(
    status: str, retryable: bool
) -> None:
    got, upstream = await ended(sends(answers(status, MESSAGE)))
    told = {"code": "upstream_refused", "message": "No more of ***", "retryable": retryable}
    assert got.names == ["failure", "end"]
    assert got.failure == {**told, "status": int(status[:3])}
    assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("failed", 1, 1)
    assert KEY.encode() not in got.raw


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html><h1>Bad gateway</h1></html>", "text/html"),
        (b"", "text/plain"),
        (b"\xff\xfe\0", "application/octet-stream"),
        (b"[" * 5000, "application/json"),
        (b'{"error":[1]}' * 5000, "application/json"),
        (b'{"error":"\\ud800"}', "application/json"),
    ],
)
async def test_a_refusal_with_any_body_is_told_in_few_words(body: bytes, kind: str) -> None:
    got, _ = await ended(sends(answers("502 Bad", body, kind)))
    assert (got.end["state"], got.failure["status"]) == ("failed", 502)
    assert 0 < len(got.failure["message"]) <= 500
    assert "<" not in got.failure["message"]


async def test_a_refusal_is_told_although_its_body_never_ends() -> None:
    head = answers("429 Slow", MESSAGE).replace(b"Content-Length: ", b"Content-Length: 9")
    got, _ = await ended(sends(head, hold=True), upstream_stall=0.4)
    assert (got.end["state"], got.failure["status"]) == ("failed", 429)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>Log in</html>"),
        ("application/json", b'{"choices":[{"message":{"content":"Hi"}}]}'),
        ("application/json", MESSAGE),
        ("application/x-ndjson", b'{"done":true}\n'),
        ("text/event-stream\r\nContent-Encoding: br", b"\x0b\x05\x80{}\x03"),
    ],
)
async def test_a_200_that_is_no_stream_fails_and_is_not_asked_again(kind: str, body: bytes) -> None:
    got, upstream = await ended(sends(answers("200 OK", body, kind)), upstream_retries=3)
    assert (got.end["state"], got.failure["code"]) == ("failed", "upstream_not_a_stream")
    assert (got.names, len(upstream.calls)) == (["failure", "end"], 1)
    assert KEY.encode() not in got.raw


@pytest.mark.parametrize("status", ["301 Moved", "307 Moved"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    moved = answers(status, b"", "text/plain", "Location: http://127.0.0.1:9/")
    got, upstream = await ended(sends(moved))
    assert (got.end["state"], len(upstream.calls)) == ("failed", 1)


ERROR = b'{"error":{"message":"Overloaded","code":529}}'


@pytest.mark.parametrize("more", [[], [b"[DONE]"]])
async def test_an_error_in_mid_stream_fails(more: list[bytes], redis_url: str) -> None:
    script = sends(OK, sse(chunk("Hel"), ERROR, *more))
    got, upstream = await ended(script, upstream_retries=3, redis_url=redis_url)
    assert (got.end["state"], got.data) == ("failed", [chunk("Hel"), ERROR, *more])
    assert (got.failure["code"], got.failure["message"]) == ("upstream_error", "Overloaded")
    assert len(upstream.calls) == 1


async def test_an_error_fails_also_where_the_connection_breaks_after_it() -> None:
    event = sse(ERROR)
    script = sends(CHUNKED, b"%x\r\n" % len(event), event, b"\r\n", cut=True)
    got, _ = await ended(script)
    assert (got.end["state"], got.data) == ("failed", [ERROR])
    assert got.failure["message"] == "Overloaded"


async def test_an_error_fails_also_where_the_upstream_is_silent_after_it() -> None:
    got, _ = await ended(sends(OK, sse(ERROR), hold=True), upstream_stall=0.4)
    assert (got.end["state"], got.failure["message"]) == ("failed", "Overloaded")


async def test_an_error_that_comes_as_a_finish_reason_is_no_clean_end() -> None:
    """As OpenRouter does: the chunk of the error finishes the choice as well."""
    choice = b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]'
    error = b'{"error":{"message":"Provider disconnected","code":502},' + choice + b"}"
    got, _ = await ended(sends(OK, sse(chunk("Hel"), error, b"[DONE]")))
    assert (got.end["state"], got.end["finish_reason"]) == ("failed", "error")
    assert got.failure["message"] == "Provider disconnected"


@pytest.mark.parametrize(
    "error", [b'"words"', b'{"message":null}', b'{"message":{"a":1}}', b"[1]", b"true", b"1"]
)
async def test_an_error_of_any_shape_fails(error: bytes) -> None:
    got, _ = await ended(sends(OK, sse(b'{"error":' + error + b"}")))
    assert got.end["state"] == "failed"
    assert isinstance(got.failure["message"], str)


async def test_an_error_that_is_null_is_none() -> None:
    got, _ = await ended(sends(OK, sse(b'{"error":null,"choices":[]}', STOP)))
    assert got.end["state"] == "done"


async def test_an_upstream_that_cannot_be_reached_fails_after_counted_attempts() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    async with running(upstream_url=url, upstream_retries=1) as gate:
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["attempts"]) == ("failed", 2)
    assert (got.failure["code"], got.failure["retryable"]) == ("upstream_unreachable", True)


@pytest.mark.parametrize("junk", [b"\x00\xff" * 99, b"HTTP/9.9 hello\r\n\r\n", b"SSH-2.0-x\r\n"])
async def test_an_upstream_that_speaks_another_protocol_has_an_end(junk: bytes) -> None:
    got, upstream = await ended(sends(junk), upstream_retries=3)
    assert got.end["state"] in {"failed", "truncated"}
    assert len(upstream.calls) == 1


# Further attempts


def refuses(times: int, refusal: bytes) -> Script:
    """Return the script of an upstream that refuses some calls, then answers."""
    count = 0

    async def script(call: Call) -> None:
        nonlocal count
        count += 1
        await call.send(refusal if count <= times else OK + WHOLE)

    return script


def busy(status: str = "503 Busy", *more: str) -> bytes:
    """Return a refusal that asks to come back at once."""
    return answers(status, b"{}", "application/json", *(more or ("Retry-After: 0",)))


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy", "529 Overloaded"])
async def test_a_sure_refusal_is_followed_by_another_attempt(status: str, redis_url: str) -> None:
    script = refuses(2, busy(status))
    got, upstream = await ended(script, upstream_retries=2, redis_url=redis_url)
    assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("done", 3, 3)
    assert len({call.body for call in upstream.calls}) == 1
    assert "failure" not in got.names


FORGED = b'{"error":{"message":"busy\\n2026 ERROR gateway: \\u001b[31mforged %s"}}' % KEY.encode()


async def test_an_upstreams_words_forge_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    got, _ = await ended(sends(answers("503 Busy", FORGED)), upstream_retries=1)
    in_stream, _ = await ended(sends(OK, sse(FORGED)))
    for words in (*caplog.messages, got.failure["message"], in_stream.failure["message"]):
        assert words.isprintable()
        assert KEY not in words
    assert sum("forged" in line for line in caplog.messages) == 3  # Each attempt and both ends.


@pytest.mark.parametrize("status", ["500 Oops", "502 Bad", "504 Late", "520 Odd", "524 Late"])
async def test_what_a_gateway_says_after_its_provider_was_paid_is_not_asked_again(
    status: str,
) -> None:
    got, upstream = await ended(refuses(9, busy(status)), upstream_retries=2)
    assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("failed", 1, 1)
    assert got.failure["retryable"]


async def test_a_status_that_the_preset_lists_is_asked_again() -> None:
    script = refuses(2, busy("500 Oops"))
    async with scripted(script) as upstream:
        knows = Preset.model_validate({"url": upstream.url, "retry_on": [500], "retries": 2})
        async with running(presets={"default": knows}) as gate:
            got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("done", 3, 3)


async def test_attempts_have_a_bound() -> None:
    got, upstream = await ended(refuses(9, busy()), upstream_retries=2)
    assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("failed", 3, 3)


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "404 What", "422 No"])
async def test_a_refusal_that_will_not_change_is_final(status: str) -> None:
    got, upstream = await ended(refuses(9, busy(status)), upstream_retries=2)
    assert (got.failure["retryable"], len(upstream.calls)) == (False, 1)


async def test_retry_after_is_honoured() -> None:
    started = time.monotonic()
    script = refuses(1, busy("429 Slow", "Retry-After: 1"))
    got, upstream = await ended(script, upstream_retries=1)
    assert (got.end["state"], len(upstream.calls)) == ("done", 2)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("value", ["21", "9" * 400, "Fri, 31 Dec 2999 23:59:59 GMT"])
async def test_a_retry_after_beyond_the_bound_is_not_waited_for(value: str) -> None:
    script = refuses(1, busy("429 Slow", f"Retry-After: {value}"))
    got, upstream = await ended(script, upstream_retries=3)
    assert (got.end["state"], got.failure["status"]) == ("failed", 429)
    assert (got.failure["retryable"], len(upstream.calls)) == (True, 1)


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "Fri, 31 Dec 1999 23:59:59 GMT", "\xb2"])
async def test_a_retry_after_that_makes_no_sense_does_no_harm(value: str) -> None:
    got, _ = await ended(refuses(1, busy("503 Busy", f"Retry-After: {value}")), upstream_retries=1)
    assert (got.end["state"], got.end["attempts"]) == ("done", 2)


async def test_nothing_is_asked_again_once_a_stream_began() -> None:
    got, upstream = await ended(sends(OK, sse(chunk("Hel"))), upstream_retries=3)
    assert (got.end["state"], len(upstream.calls)) == ("truncated", 1)


# The run and its viewers


async def test_a_run_goes_on_without_any_viewer(redis_url: str) -> None:
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(sse(chunk("lo"), STOP))

    async with (
        scripted(script) as upstream,
        running(upstream_url=upstream.url, redis_url=redis_url) as gate,
    ):
        url = await gate.ticket()
        first = await gate.read(url, enough=lambda got: got.events)
        await until(lambda: gate.gateway.fanout.viewers == 0)
        go.set()
        await until(lambda: done(gate.completion(url)))
        rest = await gate.read(url, last_id=first.last_id)
    assert (rest.data, rest.end["state"]) == ([chunk("lo"), STOP], "done")
    assert len(upstream.calls) == 1


async def done(completion: Any) -> bool:
    """Tell whether a completion is done."""
    return bool((await completion)["state"] == "done")


async def test_a_client_that_leaves_before_the_answer_started_has_started_one_run() -> None:
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as gate:
        url = await gate.ticket()
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gate.url).port)
        cookie = gate.cookie()["Cookie"]
        writer.write(f"GET {url} HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n".encode())
        await writer.drain()
        writer.transport.abort()
        await until(lambda: done(gate.completion(url)))
        assert (await gate.read(url)).end["state"] == "done"
    assert len(upstream.calls) == 1


# The last events


def told_by(*data: bytes) -> ChatState:
    """Return what these events tell."""
    seen = ChatState()
    for each in data:
        seen.see(Event(each))
    return seen


def test_the_end_is_last_and_a_failure_comes_before_it() -> None:
    told = failure("upstream_cut", "It broke.", retryable=True, status=502)
    events, _, _ = ending_events(Ending("truncated", told), told_by(chunk("Hi")), 2)
    assert [event.name for event in events] == [b"failure", b"end"]
    assert json.loads(events[0].data) == told
    facts = {"finish_reason": None, "usage": {"completion_tokens": 1, "estimated": True}}
    unbilled = {"tokens": None, "preset": None}
    assert json.loads(events[1].data) == {"state": "truncated", **facts, **unbilled, "attempts": 2}


def test_a_failure_has_a_status_only_where_there_is_one() -> None:
    assert set(failure("a", "b", retryable=False)) == {"code", "message", "retryable"}


def test_a_clean_end_has_no_failure_and_the_record_says_the_same() -> None:
    events, cancelled, result = ending_events(Ending("done"), told_by(STOP, b"[DONE]"), 1)
    unbilled = {"tokens": None, "preset": None}
    facts = {"finish_reason": "stop", "usage": None, **unbilled, "attempts": 1}
    assert [event.name for event in events] == [b"end"]
    assert json.loads(events[0].data) == {"state": "done", **facts}
    assert json.loads(cancelled.data) == {"state": "cancelled", **facts}
    assert json.loads(result) == facts


@pytest.mark.parametrize("state", sorted(FINAL - {"done"}))
def test_an_end_that_broke_off_estimates_what_was_paid_and_says_so(state: EndState) -> None:
    events, cancelled, result = ending_events(Ending(state), told_by(chunk("a"), chunk("b")), 1)
    for told in (events[-1].data, cancelled.data, result):
        assert json.loads(told)["usage"] == {"completion_tokens": 2, "estimated": True}
    events, _, _ = ending_events(Ending(state), told_by(), 1)
    assert json.loads(events[-1].data)["usage"] is None


@pytest.mark.parametrize("how", ["cut", "stalled", "cancelled"])
async def test_what_broke_off_and_was_paid_tells_an_estimate_to_viewers_and_record(
    how: str, redis_url: str
) -> None:
    script = sends(OK, sse(chunk("Hel"), chunk("lo")), hold=how != "cut")
    given = {"upstream_stall": 0.3 if how == "stalled" else 9, "redis_url": redis_url}
    async with scripted(script) as upstream, running(upstream_url=upstream.url, **given) as gate:
        url = await gate.ticket()
        if how == "cancelled":
            await gate.read(url, enough=lambda got: len(got.events) == 2)
            await gate.http.delete(url, headers=gate.cookie())
        end = (await gate.read(url)).end
        assert end["usage"] == (await gate.completion(url))["usage"]
        assert end["usage"] == {"completion_tokens": 2, "estimated": True}


def test_every_last_event_is_one_line() -> None:
    told = failure("x", "two\nlines\r\u2028", retryable=True)
    events, cancelled, _ = ending_events(Ending("failed", told), told_by(), 1)
    assert all(event.data.isascii() and b"\n" not in event.data for event in [*events, cancelled])

"""format=raw: the text alone, over real sockets; what is not whole never ends cleanly."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from gateway.serve.sockets import bind, url_of
from gateway.sse import Event, encode
from gateway.upstream.protocols.chat_text import ChatText
from gateway.web.raw_stream import RawText
from tests.support import (
    OK,
    Call,
    RedisServer,
    Script,
    Served,
    ask,
    chunk,
    client,
    cookie,
    gateway,
    running,
    scripted,
    sse,
    until,
    whole,
)

BROKEN = b"<broken off>"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing here makes our own server log an error: a stream that fails is no fault of it."""
    yield
    if "foreign" not in request.node.name:
        assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


async def raw(http: httpx.AsyncClient, url: str, **headers: str) -> tuple[int, bytes]:
    """Return the status and the text of a stream as a page reads it, and whether it was cut."""
    async with http.stream("GET", f"{url}&format=raw", headers=headers) as answer:
        return answer.status_code, b"".join([part async for part in parts(answer)])


async def parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield a body as it comes, and at last that it is not whole."""
    try:
        async for part in answer.aiter_raw():
            yield part
    except httpx.RemoteProtocolError:
        yield BROKEN


def sends(*data: bytes, held: asyncio.Event | None = None, whole: bool = True) -> Script:
    """Return the script of an answer of these events, which may wait, or break off."""

    async def script(call: Call) -> None:
        await call.send(OK, sse(*data))
        if held is not None:
            await held.wait()
        if whole:
            await call.send(sse(chunk("", finish="stop"), b"[DONE]"))

    return script


async def test_a_page_reads_the_exact_text_and_nothing_else() -> None:
    texts = ["Ä\r", "\n\ud83d", "\ude42 ", "data: x\n\n", "\ud83d", "end"]
    events = [*map(chunk, texts[:2]), chunk("other", index=1), b"junk", *map(chunk, texts[2:])]
    async with gateway(sends(*events)) as (gate, _):
        url = await gate.ticket()
        for accept in ("*/*", "text/plain", "text/*;q=0.5, application/json"):
            headers = {**gate.cookie(), "Accept": accept}
            answer = await gate.http.get(f"{url}&format=raw&snapshot=1", headers=headers)
            assert answer.status_code == 200
            assert answer.content == "Ä\r\n🙂 data: x\n\n?end".encode()
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["transfer-encoding"] == "chunked"
        assert gate.gateway.fanout.viewers == 0


async def test_text_comes_as_it_is_written_and_heartbeats_do_not() -> None:
    go, beats = asyncio.Event(), []
    async with gateway(sends(chunk("Hel"), held=go), heartbeat=0.05) as (gate, _):
        url, headers = await gate.ticket(), gate.cookie()
        async with gate.http.stream("GET", f"{url}&format=raw", headers=headers) as answer:
            text = parts(answer)
            assert await anext(text) == b"Hel"
            async with gate.http.stream("GET", url, headers=headers) as other:
                async for line in other.aiter_lines():  # Meanwhile others had some.
                    beats.append(line == ":")
                    if sum(beats) == 3:
                        break
            go.set()
            assert [each async for each in text] == []


async def test_what_is_not_whole_is_broken_off_after_its_last_text() -> None:
    async with gateway(sends(chunk("Hel" * 9000), chunk("lo"), whole=False)) as (gate, _):
        url = await gate.ticket()
        for _ in range(2):  # Live, and of a stream that has ended.
            got = await raw(gate.http, url, **gate.cookie())
            assert got == (200, b"Hel" * 9000 + b"lo" + BROKEN)
        await until(lambda: gate.gateway.fanout.viewers == 0)


async def test_a_foreign_server_is_made_to_break_it_off_too() -> None:
    async with gateway(sends(chunk("Hello"), whole=False)) as (gate, _):
        server = uvicorn.Server(uvicorn.Config(gate.gateway.app, lifespan="off", log_config=None))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        with bind("127.0.0.1", 0) as listener:
            task = asyncio.create_task(server._serve([listener]))
            async with client(url_of(listener)) as http:
                got = await raw(http, await gate.ticket(), **gate.cookie())
            server.should_exit = True
            await task
    assert got == (200, b"Hello" + BROKEN)


async def test_a_failure_before_any_text_is_a_status() -> None:
    async def refuses(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    async with gateway(refuses) as (gate, _):
        url = await gate.ticket()
        origin = {"Origin": gate.url, **gate.cookie()}
        answer = await gate.http.get(f"{url}&format=raw", headers=origin)
        end = (await gate.completion(url))["last_event_id"]
        assert answer.headers["access-control-allow-origin"] == gate.url
        late = await gate.http.get(f"{url}&format=raw&last_event_id={end}", headers=gate.cookie())
    for each in (answer, late):
        assert each.headers["content-type"] == "application/problem+json"
        told = each.json()
        assert (each.status_code, told["code"]) == (502, "upstream_refused")
        assert told["state"] == "failed"


async def test_an_answer_without_text_is_whole_all_the_same() -> None:
    async with gateway(sends()) as (gate, _):
        assert await raw(gate.http, await gate.ticket(), **gate.cookie()) == (200, b"")


async def test_a_cancelled_stream_does_not_end_cleanly() -> None:
    held = asyncio.Event()
    async with gateway(sends(chunk("Hel"), held=held)) as (gate, _):
        url, headers = await gate.ticket(), gate.cookie()
        async with gate.http.stream("GET", f"{url}&format=raw", headers=headers) as answer:
            text = parts(answer)
            assert await anext(text) == b"Hel"
            await gate.http.delete(url, headers=headers)
            assert [each async for each in text] == [BROKEN]
        unasked = await gate.ticket()
        await gate.http.delete(unasked, headers=headers)
        status, told = await raw(gate.http, unasked, **headers)
        assert (status, json.loads(told)["code"]) == (502, "cancelled")


async def test_a_replica_that_drains_breaks_it_off_or_says_when_to_come_back(
    shared_redis: RedisServer,
) -> None:
    held = asyncio.Event()
    scripts = iter((sends(chunk("Hel"), held=held), sends(held=held)))

    async def script(call: Call) -> None:
        await next(scripts)(call)

    async with (
        scripted(script) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url, lease=10) as gate,
    ):
        url, silent, headers = await gate.ticket(), await gate.ticket(), gate.cookie()
        async with gate.http.stream("GET", f"{url}&format=raw", headers=headers) as answer:
            text = parts(answer)
            assert await anext(text) == b"Hel"
            waiting = asyncio.create_task(
                gate.http.get(f"{silent}&format=raw", headers=gate.cookie())
            )
            await until(lambda: gate.gateway.fanout.viewers == 2)
            gate.gateway.supervisor.send_away()
            assert [each async for each in text] == [BROKEN]
        for refused in (
            await waiting,
            await gate.http.get(
                f"{url}&format=raw", headers={**headers, "Accept": "text/event-stream, */*"}
            ),
        ):
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
        held.set()


async def test_what_follows_a_completion_is_had_from_its_id_on() -> None:
    held = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await held.wait()
        await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))

    async with gateway(script) as (gate, _):
        url, headers = await gate.ticket(), gate.cookie()
        assert (await gate.read(url, enough=lambda got: bool(got.events))).status == 200
        before = await gate.completion(url)
        held.set()
        position = {"Last-Event-ID": before["last_event_id"]}
        status, rest = await raw(gate.http, url, **headers, **position)
        assert (status, before["text"] + rest.decode()) == (200, "Hello")
        end = (await gate.completion(url))["last_event_id"]
        assert (await raw(gate.http, url, **headers, **{"Last-Event-ID": end}))[0] == 204
        status, told = await raw(gate.http, url, **headers, **{"Last-Event-ID": "7-7"})
        assert (status, json.loads(told)["code"]) == (410, "log_expired")


async def test_who_could_not_read_it_is_refused_before_anything_starts() -> None:
    async with gateway(whole) as (gate, upstream):
        url, headers = await gate.ticket(), gate.cookie()
        for query, accept, expected in (
            ("&format=json", "*/*", (400, "bad_request")),
            ("&format=raw", "text/event-stream", (406, "not_acceptable")),
            ("&format=raw", "text/html, */*;q=0", (406, "not_acceptable")),
        ):
            answer = await gate.http.get(url + query, headers={**headers, "Accept": accept})
            assert (answer.status_code, answer.json()["code"]) == expected
        sent = {**headers, "Accept": "text/event-stream"}
        answer = await gate.http.post("/tickets?format=json", json=ask(), headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert (await gate.http.head(f"{url}&format=raw", headers=headers)).status_code == 405
        assert b"HTTP/1.0 cannot" in await in_http_10(gate, f"{url}&format=raw")
        assert upstream.calls == []
        answer = await gate.http.post("/tickets?format=raw", json=ask(), headers=sent)
        assert (answer.text, answer.headers["content-type"][:10]) == ("Hello", "text/plain")
        assert answer.headers["content-location"].startswith("/stream?ticket=")


async def in_http_10(gate: Served, url: str) -> bytes:
    """Return the whole answer to a caller who knows no chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gate.url).port)
    sent = cookie(gate.gateway.settings)["Cookie"]
    writer.write(f"GET {url} HTTP/1.0\r\nHost: a\r\nCookie: {sent}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


# What cannot be taken back


def frames(*events: tuple[str, Any]) -> bytes:
    """Return frames: of text, or of an event of ours."""
    return b"".join(
        encode(chunk(data) if not name else json.dumps(data).encode(), b"1-1", name.encode())
        for name, data in events
    )


@pytest.mark.parametrize("name", ["reset", "gap"])
def test_what_was_not_sent_yet_may_begin_anew(name: str) -> None:
    text = RawText(ChatText(), begun=False)
    assert text.text_of(frames(("", "lost"), (name, {}), ("", "Hel"))) == b"Hel"
    assert text.text_of(frames(("", "lo"))) == b"lo"
    assert not text.broken


@pytest.mark.parametrize("begun", [True, False])
def test_what_was_sent_or_is_known_to_the_page_cannot(begun: bool) -> None:
    text = RawText(ChatText(), begun=begun)
    assert begun or text.text_of(frames(("", "lost"))) == b"lost"
    assert text.text_of(frames(("reset", {}), ("", "Hello"))) == b""
    assert text.broken


def test_half_a_character_waits_however_frames_are_cut() -> None:
    whole = frames(("", "a\ud83d"), ("", "\ude42b"), ("", "\ud83d"))
    text = RawText(ChatText(), begun=False)
    got = [text.text_of(whole[at : at + 1]) for at in range(len(whole))]
    assert b"".join([*got, text.rest()]).decode() == "a🙂b?"


def test_a_text_that_becomes_another_answers_is_not_joined_to_it() -> None:
    """A choice that came first may turn out to be none of the answer's."""
    second, first = chunk("b", index=1), chunk("a", index=0)
    events = [Event(second, b"", b"1-1"), Event(first, b"", b"1-2")]
    at_once = RawText(ChatText(), begun=False)
    assert at_once.text_of(b"".join(encode(each.data, each.id) for each in events)) == b"a"

"""format=plain: `data:` lines of text and nothing else, and an end that only a whole answer has."""

import asyncio
import random

import pytest

from gateway.sse import encode, parse
from gateway.upstream.protocols.chat_text import ChatText
from gateway.web.plain_stream import FramedText
from tests.support import OK, Call, Script, ask, chunk, gateway, sse, whole
from tests.web.test_raw_stream import BROKEN, in_http_10, parts

DONE = b"data: [DONE]\n\n"


def framed(*texts: str) -> bytes:
    """Return what is sent of a whole answer whose events have these texts."""
    text = FramedText(ChatText(), begun=False)
    sent = [text.text_of(encode(chunk(each), b"1-1")) for each in texts]
    return b"".join([*sent, text.rest()])


def split_by_hand(body: str) -> str:
    """Return the text that the loops of articles have, which split on the words `data: `."""
    pieces = [each.removesuffix("\n\n") for each in body.split("data: ")[1:]]
    assert pieces.pop() == "[DONE]"
    assert "[DONE]" not in "".join(each + "\0" for each in pieces)
    return "".join(pieces)


def read_by_lines(body: bytes) -> str:
    """Return the text that a parser of event streams has."""
    return "".join(each.data.decode() for each in parse(body)[:-1])


@pytest.mark.parametrize(
    "text",
    [
        *("Hello", " two  spaces ", "\n", "\n\n", "a\n", "\na", "a\n\nb\n", "data: x", "data:"),
        *("\ndata: [DONE]\n", "[DONE]", "[[DONE]]", "data: data: ", "🙂", ": \nid: 1\nretry: 2"),
    ],
)
def test_a_text_arrives_exactly_whether_it_is_split_or_parsed(text: str) -> None:
    assert split_by_hand(framed(text).decode()) == text
    assert read_by_lines(framed(text)) == text


@pytest.mark.parametrize("seed", range(5))
def test_it_does_so_however_it_is_cut_into_events(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("da:t [DONE]\nx🙂", k=4000)) + "data: [DONE]"
    borders = sorted(chance.sample(range(len(text)), 900))
    parts = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    body = framed(*parts)
    assert split_by_hand(body.decode()) == read_by_lines(body) == text


def test_a_carriage_return_waits_for_its_newline() -> None:
    assert read_by_lines(framed("a\r", "\nb\r", "c\r")) == "a\nb\nc\n"


def paused(go: asyncio.Event, *, whole: bool = True) -> Script:
    """Return the script of an answer that waits in its middle, and may break off."""

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(sse(chunk("lo\nyou")))
        if whole:
            await call.send(sse(chunk("", finish="stop"), b"[DONE]"))

    return script


async def test_there_is_nothing_in_it_but_data_and_the_end_is_marked() -> None:
    go = asyncio.Event()
    async with gateway(paused(go), heartbeat=0.05) as (gate, _):
        events, headers = await gate.ticket(), gate.cookie()
        url = f"{events}&format=plain"
        async with gate.http.stream("GET", url, headers=headers) as answer:
            came = parts(answer)
            assert await anext(came) == b"data: Hel\n\n"
            await gate.read(events, enough=lambda got: got.raw.endswith(b"\n:\n:\n:\n"))
            go.set()  # Others had heartbeats meanwhile.
            rest = b"".join([part async for part in came])
        assert rest == b"data: lo\ndata: you\n\n" + DONE
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        sent = {**headers, "Accept": "text/event-stream"}
        again = await gate.http.get(url, headers=sent)
        assert split_by_hand(again.text) == "Hello\nyou"


async def test_what_is_not_whole_has_no_mark_and_no_clean_end() -> None:
    go = asyncio.Event()
    go.set()
    async with gateway(paused(go, whole=False)) as (gate, _):
        url, headers = f"{await gate.ticket()}&format=plain", gate.cookie()
        for _ in range(2):  # Live, and of a stream that has ended.
            async with gate.http.stream("GET", url, headers=headers) as answer:
                came = b"".join([part async for part in parts(answer)])
            assert came.endswith(b"you\n\n" + BROKEN)
            assert b"DONE" not in came


async def test_a_failure_before_any_text_is_a_status_for_everybody() -> None:
    async def refuses(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    async with gateway(refuses) as (gate, _):
        url = f"{await gate.ticket()}&format=plain"
        for accept in ("*/*", "text/event-stream"):
            answer = await gate.http.get(url, headers={**gate.cookie(), "Accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (502, "upstream_refused")
        gate.gateway.supervisor.send_away()
        answer = await gate.http.get(url, headers={**gate.cookie(), "Accept": "text/event-stream"})
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")


async def test_a_post_may_be_answered_so_and_who_could_not_read_it_is_refused() -> None:
    async with gateway(whole) as (gate, upstream):
        url, headers = f"{await gate.ticket()}&format=plain", gate.cookie()
        accept = {"Accept": "text/plain"}
        answer = await gate.http.get(url, headers={**headers, **accept})
        assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
        for wrong in (f"{url}&heartbeat=event", "/events?format=plain"):
            answer = await gate.http.get(wrong, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert b"HTTP/1.0 cannot" in await in_http_10(gate, url)
        assert upstream.calls == []
        sent = {**headers, "Accept": "text/event-stream"}
        answer = await gate.http.post("/tickets?format=plain", json=ask(), headers=sent)
        assert split_by_hand(answer.text) == "Hello"
        assert answer.headers["content-location"].startswith("/stream?ticket=")


async def test_an_answer_without_text_is_whole_all_the_same() -> None:
    async def silent(call: Call) -> None:
        await call.send(OK, sse(chunk("", finish="stop"), b"[DONE]"))

    async with gateway(silent) as (gate, _):
        url = f"{await gate.ticket()}&format=plain"
        assert (await gate.http.get(url, headers=gate.cookie())).content == DONE

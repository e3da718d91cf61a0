"""heartbeat=event: pages see that their connection lives; nobody else sees anything new."""

import asyncio
import re
from typing import Any

import httpx
import pytest
import uvicorn

from gateway.serve.sockets import bind, url_of
from gateway.store.keys import new_id
from tests.support import (
    OK,
    WHOLE,
    Call,
    Script,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    gateway,
    sse,
)

BEAT = b"event: heartbeat\ndata: {}\n\n"
QUICK: dict[str, Any] = {"heartbeat": 0.1, "grace": 20, "lease": 10}
STREAM = {"Accept": "text/event-stream"}


def held(go: asyncio.Event) -> Script:
    """Return the script of an answer that waits in its middle."""

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(WHOLE)

    return script


async def beaten(gate: Served, url: str, go: asyncio.Event, **options: Any) -> Transcript:
    """Read a stream that goes on once it has had two heartbeats."""

    def seen(got: Transcript) -> bool:
        if got.names.count("heartbeat") >= 2:
            go.set()
        return False

    return await asyncio.wait_for(gate.read(url, enough=seen, **options), 20)


def others(got: Transcript) -> list[Any]:
    """Return the events beside the heartbeats."""
    return [each for each in got.events if each.name != b"heartbeat"]


@pytest.mark.parametrize("query", ["", "&format=text"])
async def test_a_heartbeat_is_an_event_without_an_id_and_takes_nothing_from_the_stream(
    query: str,
) -> None:
    go = asyncio.Event()
    async with gateway(held(go), **QUICK) as (gate, _):
        url = await gate.ticket() + query
        got = await beaten(gate, f"{url}&heartbeat=event", go)
        plain = await gate.read(url)
    assert got.raw.count(BEAT) == got.names.count("heartbeat")
    assert b"\n:" not in got.raw
    assert others(got) == plain.events
    assert got.events[-1].name == b"end"


async def test_a_post_that_is_answered_with_the_stream_may_ask_for_them_too() -> None:
    go = asyncio.Event()
    async with gateway(held(go), **QUICK) as (gate, _):
        got = await beaten(gate, "/tickets?heartbeat=event", go, body=ask())
    assert others(got)[-1].name == b"end"


async def test_the_channel_and_a_connection_for_everything_may_ask_for_them_too() -> None:
    go, user = asyncio.Event(), new_id()
    async with gateway(held(go), **QUICK) as (gate, _):
        ticket = (await gate.ticket(subject=user)).partition("?")[2]
        for url in ("/events?heartbeat=event", f"/events?{ticket}&heartbeat=event"):
            headers = {**gate.cookie(user), **STREAM}
            came = b""
            async with gate.http.stream("GET", url, headers=headers) as answer:
                async for part in answer.aiter_raw():
                    came += part
                    # The position, from which a page goes on that was cut before any event.
                    assert re.match(rb"retry: \d+\n%sid: [^\n]+\n\n" % BEAT[:-1], came)
                    if came.count(BEAT) == 2 and (b"Hel" in came or "ticket" not in url):
                        break
            assert b"\n:" not in came


async def test_under_a_foreign_server_they_come_as_well() -> None:
    go = asyncio.Event()
    async with gateway(held(go), **QUICK) as (gate, _):
        server = uvicorn.Server(uvicorn.Config(gate.gateway.app, lifespan="off", log_config=None))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        with bind("127.0.0.1", 0) as listener:
            task = asyncio.create_task(server._serve([listener]))
            async with client(url_of(listener)) as http:
                there = Served(gate.gateway, gate.url, http)
                got = await beaten(there, await gate.ticket() + "&heartbeat=event", go)
            server.should_exit = True
            await task
    assert others(got)[-1].name == b"end"


async def test_any_other_kind_is_refused_before_anything_begins() -> None:
    async with gateway() as (gate, upstream):
        url = await gate.ticket()
        answers = [
            await refused(gate, "GET", f"{url}&heartbeat=comment"),
            await refused(gate, "GET", f"{url}&heartbeat=event&format=raw"),
            await refused(gate, "POST", "/tickets?heartbeat=1"),
            await refused(gate, "GET", "/events?heartbeat=no"),
        ]
        assert gate.gateway.fanout.viewers == 0
    assert {each.json()["code"] for each in answers} == {"bad_request"}
    assert all(re.search("heartbeat", each.json()["detail"]) for each in answers)
    assert upstream.calls == []


async def refused(gate: Served, method: str, url: str) -> httpx.Response:
    """Return the answer to who wants what there is not."""
    headers = {**gate.cookie(), "Accept": "*/*" if "raw" in url else "text/event-stream"}
    body = ask() if method == "POST" else None
    answer = await gate.http.request(method, url, headers=headers, json=body)
    assert answer.status_code == 400, answer.text
    return answer

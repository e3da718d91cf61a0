"""An answer that its upstream keeps is gone on with, asked after, and stopped; paid once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import pytest

from gateway.runs import attempts
from tests.kept import KEPT, keeps, kind, use_kept_chat
from tests.support import (
    OK,
    Call,
    RedisServer,
    Script,
    ScriptedUpstream,
    Served,
    ask,
    gateway,
    sse,
    until,
)

TWO = sse(*KEPT[:2])
GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every preset speak a chat that is kept."""
    use_kept_chat(monkeypatch)


pytestmark = pytest.mark.usefixtures("kept")


def said(words: bytes) -> bytes:
    """Return an answer that is no stream."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(words), words)


def script(**ways: Callable[[Call], Any]) -> Script:
    """Return a script that answers each kind of call in its own way; `keeps` is for the rest."""

    async def answer(call: Call) -> None:
        await ways.get(kind(call), keeps)(call)

    return answer


def sends(*parts: bytes) -> Script:
    """Return a way to answer: these bytes, and the end of the connection."""

    async def send(call: Call) -> None:
        await call.send(*parts)

    return send


def holds(*parts: bytes) -> Script:
    """Return a way to answer: these bytes, and silence."""

    async def hold(call: Call) -> None:
        await call.send(*parts)
        await call.left.wait()

    return hold


async def cuts(call: Call) -> None:
    """Break the connection after two events."""
    await call.send(OK, TWO)
    await asyncio.sleep(0.05)  # Else the reset may overtake what was sent.
    call.cut()


def kinds(upstream: ScriptedUpstream) -> list[str]:
    """Return what was asked, in order."""
    return [kind(call) for call in upstream.calls]


def phases(upstream: ScriptedUpstream) -> list[str]:
    """Return the same, several looks in a row as one: a slow machine needs more of them."""
    return [each for each, _ in groupby(kinds(upstream))]


@pytest.mark.parametrize("way", [cuts, sends(OK, TWO)], ids=["cut", "a clean end"])
async def test_a_kept_answer_goes_on_where_its_connection_ended_and_is_paid_once(
    way: Script,
) -> None:
    async with gateway(script(create=way)) as (gate, upstream):
        url = await gate.ticket(ask(n=2))
        got = await gate.read(url)
        assert (got.names, got.data) == ([*[""] * 4, "end"], KEPT)
        assert (got.end["state"], got.end["attempts"]) == ("done", 1)
        assert (await gate.completion(url))["text"] == "Hello"
    assert kinds(upstream) == ["create", "rest"]


async def test_a_rest_that_breaks_again_is_asked_for_again() -> None:
    broken: list[Call] = []

    async def rest(call: Call) -> None:
        broken.append(call)
        if len(broken) == 1:
            await call.send(OK, sse(KEPT[2]))
        elif len(broken) == 2:
            await call.send(BUSY)
        else:
            await keeps(call)

    async with gateway(script(create=cuts, rest=rest)) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
    assert (got.data, got.end["state"], got.end["attempts"]) == (KEPT, "done", 1)
    assert kinds(upstream) == ["create", "rest", "rest", "rest"]


async def test_a_rest_that_is_refused_ends_truncated_and_nothing_new_is_asked_for() -> None:
    ways = script(create=cuts, rest=sends(GONE), stop=sends(said(b"")))
    async with gateway(ways) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
        await until(lambda: kinds(upstream)[-1] == "stop")
    assert (got.end["state"], got.end["attempts"]) == ("truncated", 1)
    assert got.failure["code"] == "upstream_cut"
    assert kinds(upstream) == ["create", "rest", "stop"]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no pause between two tries be a long one."""
    monkeypatch.setattr(attempts, "_LONGEST", 0.05)


@pytest.mark.usefixtures("hurried")
async def test_an_answer_that_is_over_and_has_no_rest_is_not_asked_for_for_ever() -> None:
    """As one that has failed, and whose last event its upstream did not keep."""
    ways = script(create=cuts, rest=sends(OK), look=sends(said(b"over")), stop=sends(said(b"")))
    async with gateway(ways) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
    assert (got.end["state"], got.end["attempts"]) == ("truncated", 1)
    assert got.failure["code"] == "upstream_cut"
    assert kinds(upstream)[:7] == ["create", *["rest", "look"] * 3]


@pytest.mark.usefixtures("hurried")
async def test_an_answer_that_goes_on_is_asked_for_however_often_there_is_no_rest_yet() -> None:
    asked: list[Call] = []

    async def rest(call: Call) -> None:
        asked.append(call)
        await (keeps(call) if len(asked) == 5 else call.send(OK))

    ways = script(create=cuts, rest=rest, look=sends(said(b"running")))
    async with gateway(ways) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
    assert (got.data, got.end["state"], got.end["attempts"]) == (KEPT, "done", 1)
    assert kinds(upstream).count("create") == 1


async def test_a_connection_that_breaks_before_the_first_event_is_truncated() -> None:
    async with gateway(script(create=sends(OK))) as (gate, upstream):
        got = await gate.read(await gate.ticket())
    assert got.end["state"] in {"truncated", "failed"}
    assert kinds(upstream) == ["create"]


async def test_a_silent_answer_that_goes_on_is_waited_for() -> None:
    looked, ways = asyncio.Event(), {"create": holds(OK, TWO)}

    async def create(call: Call) -> None:
        await call.send(OK, TWO)
        await looked.wait()
        await call.send(sse(*KEPT[2:]))

    async def look(call: Call) -> None:
        if len([each for each in kinds_seen if each == "look"]) == 2:
            looked.set()
        await call.send(said(b"running"))

    kinds_seen: list[str] = []

    async def answer(call: Call) -> None:
        kinds_seen.append(kind(call))
        await {"create": create, "look": look}.get(kind(call), ways["create"])(call)

    async with gateway(answer, upstream_stall=0.3) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
    assert (got.data, got.end["state"]) == (KEPT, "done")
    assert phases(upstream) == ["create", "look"]


async def test_a_redis_that_is_away_before_the_rest_is_asked_for_is_no_silence_of_the_upstream(
    own_redis: RedisServer,
) -> None:
    is_to_break = asyncio.Event()

    async def create(call: Call) -> None:
        await call.send(OK, TWO)
        await is_to_break.wait()

    ways = script(create=create, look=sends(said(b"running")))
    given: dict[str, Any] = {"redis_url": own_redis.url, "upstream_stall": 0.3, "lease": 1}
    async with gateway(ways, **given) as (gate, upstream):
        url = await gate.ticket(ask(n=2))
        await gate.read(url, enough=lambda got: len(got.data) == 2)
        own_redis.pause()
        await asyncio.sleep(1.5)  # Past the lease: to ask again takes a Redis.
        is_to_break.set()
        await asyncio.sleep(1.5)  # Past the stall.
        own_redis.resume()
        got = await gate.read(url)
    assert (got.data, got.end["state"]) == (KEPT, "done")
    assert [each for each in kinds(upstream) if each != "look"] == ["create", "rest"]


@pytest.mark.parametrize("answer", [said(b"over"), GONE], ids=["over", "unknown"])
async def test_of_a_silent_answer_that_is_over_the_rest_is_asked_for(answer: bytes) -> None:
    ways = script(create=holds(OK, TWO), look=sends(answer))
    async with gateway(ways, upstream_stall=0.3) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=2)))
    assert (got.data, got.end["state"]) == (KEPT, "done")
    assert phases(upstream) == ["create", "look", "rest"]


async def test_a_silence_before_the_first_event_is_a_stall() -> None:
    async with gateway(script(create=holds(OK)), upstream_stall=0.3) as (gate, upstream):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.failure["code"]) == ("stalled", "upstream_stalled")
    assert kinds(upstream) == ["create"]


# Told to stop


@asynccontextmanager
async def under_way(**changes: Any) -> AsyncIterator[tuple[Served, ScriptedUpstream, str]]:
    """Run a gateway with a stream of which two events were seen, and that goes on."""
    ways = script(create=holds(OK, TWO), look=sends(said(b"running")), stop=sends(said(b"")))
    async with gateway(ways, **changes) as (gate, upstream):
        url = await gate.ticket(ask(n=2))
        await gate.read(url, enough=lambda got: len(got.data) == 2)
        yield gate, upstream, url


async def stopped(upstream: ScriptedUpstream) -> None:
    """Check that the upstream is told to stop, once."""
    await until(lambda: "stop" in kinds(upstream), "it is told to stop")
    assert kinds(upstream) == ["create", "stop"]


async def test_a_cancel_is_told_to_the_upstream_once() -> None:
    async with under_way() as (gate, upstream, url):
        await gate.http.delete(url, headers=gate.cookie())
        assert (await gate.read(url)).end["state"] == "cancelled"
        await stopped(upstream)


async def test_a_run_that_nobody_watches_any_more_is_stopped_at_its_upstream() -> None:
    async with under_way(grace=0.3) as (_, upstream, _):
        await stopped(upstream)


async def test_a_run_that_takes_too_long_is_stopped_at_its_upstream() -> None:
    async with under_way(max_run=0.5) as (gate, upstream, url):
        assert (await gate.read(url)).end["state"] == "truncated"
        await stopped(upstream)


async def test_a_run_that_a_drain_interrupts_is_stopped_at_its_upstream() -> None:
    async with under_way(drain=0.1) as (gate, upstream, _):
        await gate.gateway.drain()
        await stopped(upstream)


@pytest.mark.parametrize("status", [b"429", b"503"])
async def test_an_upstream_that_cannot_hear_it_is_told_to_stop_again(status: bytes) -> None:
    told: list[Call] = []

    async def stop(call: Call) -> None:
        told.append(call)
        await call.send(BUSY.replace(b"503", status) if len(told) == 1 else said(b""))

    async with gateway(script(create=holds(OK, TWO), stop=stop)) as (gate, upstream):
        url = await gate.ticket(ask(n=2))
        await gate.read(url, enough=lambda got: len(got.data) == 2)
        await gate.http.delete(url, headers=gate.cookie())
        await until(lambda: len(told) == 2)
    assert kinds(upstream) == ["create", "stop", "stop"]


@pytest.mark.parametrize("n", [1, 2])
async def test_an_answer_that_came_to_its_end_is_not_stopped(n: int) -> None:
    answer = KEPT[2:] if n == 1 else KEPT
    async with gateway(script(create=sends(OK, sse(*answer, b"[DONE]")))) as (gate, upstream):
        got = await gate.read(await gate.ticket(ask(n=n)))
        assert got.end["state"] == "done"
    assert kinds(upstream) == ["create"]

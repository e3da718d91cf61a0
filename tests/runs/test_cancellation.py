"""A cancel is effective wherever a run is, and only what is meant to cancel does."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from gateway.runs.endings import Ending
from gateway.runs.intake import BACKLOG
from gateway.runs.run import Run
from gateway.store.keys import cancels_key
from tests.support import (
    OK,
    Call,
    RedisServer,
    Script,
    ScriptedUpstream,
    Served,
    Transcript,
    chunk,
    first_event,
    gateway,
    running,
    sse,
    until,
)

BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 15\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HALF = OK + sse(chunk("Hel")) + b"data: an event that is not who"
FINISHED = OK + sse(chunk("Hi", finish="stop"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No cancel makes the gateway log an error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


def sends(*parts: bytes) -> Script:
    """Return a script that sends these bytes, then waits until the gateway leaves."""

    async def script(call: Call) -> None:
        await call.send(*parts)
        await call.left.wait()

    return script


def start(gate: Served, url: str) -> asyncio.Task[Transcript]:
    """Look at a stream."""
    return asyncio.create_task(gate.read(url))


async def cancel(gate: Served, url: str, look: asyncio.Task[Transcript]) -> Transcript:
    """Cancel a stream; return what its viewer got, who must hear of it."""
    answer = await gate.http.delete(url, headers=gate.cookie())
    assert answer.json() == {"state": "cancelled"}
    return await asyncio.wait_for(look, 20)


def the_run(gate: Served) -> Run:
    """Return the only run."""
    (run,) = gate.gateway.supervisor.active
    return run


# Wherever the run is


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param(b"", 0, id="waiting for the answer's head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Ty", 0, id="in the head"),
        pytest.param(OK, 0, id="waiting for the first event"),
        pytest.param(HALF, 1, id="in the middle of an event"),
        pytest.param(FINISHED, 1, id="waiting for [DONE]"),
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n{", 0, id="in a refusal"),
    ],
)
async def test_a_cancel_closes_the_upstream_and_ends_the_stream(
    sent: bytes, shown: int, redis_url: str
) -> None:
    async with gateway(sends(sent), redis_url=redis_url) as (gate, upstream):
        url = await gate.ticket()
        look = start(gate, url)
        await until(lambda: upstream.calls)
        if shown:
            await gate.read(url, enough=lambda got: got.events)
        got = await cancel(gate, url, look)
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert (await gate.completion(url))["state"] == "cancelled"
    assert (len(got.data), got.end["state"], got.end["attempts"]) == (shown, "cancelled", 1)
    assert (len(upstream.calls), "failure" in got.names) == (1, False)


async def test_a_cancel_in_the_pause_before_another_attempt_is_effective() -> None:
    async with gateway(sends(BUSY), upstream_retries=3) as (gate, upstream):
        url = await gate.ticket()
        look = start(gate, url)
        await until(lambda: upstream.calls and the_run(gate).pausing, "it pauses")
        got = await cancel(gate, url, look)
    assert (got.end["state"], got.end["attempts"]) == ("cancelled", 1)
    assert len(upstream.calls) == 1


async def test_a_cancel_while_connecting_is_effective() -> None:
    """A listener whose queue is full lets a connection hang."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        async with running(upstream_url=url, drain=0.2) as gate:
            stream = await gate.ticket()
            look = start(gate, stream)
            await until(lambda: gate.gateway.supervisor.active and the_run(gate).pulling)
            got = await cancel(gate, stream, look)
    assert (got.names, got.end["state"]) == (["end"], "cancelled")


def endless() -> Script:
    """Return the script of an upstream that sends as fast as it can."""

    async def script(call: Call) -> None:
        with suppress(ConnectionError):
            await call.send(OK)
            while not call.left.is_set():
                await call.send(sse(chunk("x" * 10_000)))
                await asyncio.sleep(0)
        await call.left.wait()

    return script


async def test_a_cancel_of_a_run_that_waits_for_the_store_is_effective(
    own_redis: RedisServer,
) -> None:
    limits = {"max_log": 1 << 28, "lease": 10, "grace": 30}
    async with gateway(endless(), redis_url=own_redis.url, **limits) as (gate, upstream):
        look = start(gate, await gate.ticket())
        await until(lambda: gate.gateway.supervisor.active and the_run(gate).log.entries[1:])
        own_redis.pause()
        await until(lambda: the_run(gate).pausing, "it waits for the store")
        assert the_run(gate).log.backlog < 3 * BACKLOG
        the_run(gate).stop(Ending("cancelled"))
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        own_redis.resume()
        got = await asyncio.wait_for(look, 20)
    assert got.end["state"] == "cancelled"
    assert [int(each.partition("-")[2]) for each in got.ids] == list(range(1, len(got.ids) + 1))


async def test_a_cancel_that_a_slow_store_takes_late_is_effective(own_redis: RedisServer) -> None:
    limits = {"max_log": 1 << 28, "lease": 10, "grace": 30}
    async with gateway(endless(), redis_url=own_redis.url, **limits) as (gate, upstream):
        url = await gate.ticket()
        look = start(gate, url)
        await until(lambda: gate.gateway.supervisor.active and the_run(gate).log.entries[1:])
        own_redis.pause()
        deletes = [await gate.http.delete(url, headers=gate.cookie())]
        own_redis.resume()
        await until(lambda: deleted(gate, url), "it is stored")
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        got = await asyncio.wait_for(look, 20)
    assert (deletes[0].status_code, got.end["state"]) == (503, "cancelled")


async def deleted(gate: Served, url: str) -> bool:
    """DELETE a stream; tell whether that is stored."""
    return (await gate.http.delete(url, headers=gate.cookie())).status_code == 200


async def test_a_cancel_between_the_claim_and_the_run_leaves_nothing_running(
    redis_url: str,
) -> None:
    async with gateway(sends(OK), redis_url=redis_url) as (gate, upstream):
        for _ in range(5):
            url = await gate.ticket()
            look = start(gate, url)
            await until(lambda url=url: deleted(gate, url))  # type: ignore[misc]
            assert (await asyncio.wait_for(look, 20)).end["state"] == "cancelled"
        await until(lambda: all(call.left.is_set() for call in upstream.calls), "", 20)
        assert gate.gateway.supervisor.active == []


async def test_a_cancel_while_the_end_is_on_its_way_has_one_outcome(redis_url: str) -> None:
    """Whoever is first: the answer to DELETE, the stream's end and the record say the same."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))

    async with gateway(script, redis_url=redis_url) as (gate, _):
        urls = [await gate.ticket() for _ in range(12)]
        looks = [start(gate, url) for url in urls]
        await until(lambda: len(gate.gateway.supervisor.active) == len(urls))
        go.set()
        deletes = (gate.http.delete(url, headers=gate.cookie()) for url in urls)
        answers = await asyncio.gather(*deletes)
        told = [each.json()["state"] for each in answers]
        ends = [(await look).end["state"] for look in looks]
        states = [(await gate.completion(url))["state"] for url in urls]
    assert told == ends == states


async def test_all_viewers_everywhere_hear_of_a_cancel(shared_redis: RedisServer) -> None:
    redis_url = shared_redis.url
    async with (
        gateway(sends(OK, sse(chunk("Hel"))), redis_url=redis_url) as (gate, _),
        running(redis_url=redis_url) as other,
    ):
        url = await gate.ticket()
        await gate.read(url, enough=lambda got: got.events)
        looks = [start(each, url) for each in (gate, gate, other, other)]
        await until(lambda: other.gateway.fanout.viewers == gate.gateway.fanout.viewers == 2)
        await other.http.delete(url, headers=other.cookie())
        seen = [await asyncio.wait_for(look, 20) for look in looks]
    assert {each.end["state"] for each in seen} == {"cancelled"}
    assert len({tuple(each.events) for each in seen}) == 1


# Viewers who leave


async def test_a_viewer_that_leaves_cancels_nothing(redis_url: str) -> None:
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(sse(chunk("lo", finish="stop")))

    async with gateway(script, redis_url=redis_url) as (gate, upstream):
        url = await gate.ticket()
        first = await gate.read(url, enough=lambda got: got.events)
        await until(lambda: gate.gateway.fanout.viewers == 0)
        look = asyncio.create_task(gate.read(url, last_id=first.last_id))
        await until(lambda: gate.gateway.fanout.viewers == 1)
        go.set()
        got = await look
    assert (got.end["state"], len(upstream.calls)) == ("done", 1)


async def test_the_last_viewer_gone_for_the_grace_cancels(redis_url: str) -> None:
    script = sends(OK, sse(chunk("Hel")))
    async with gateway(script, redis_url=redis_url, grace=0.9) as (gate, upstream):
        url = await gate.ticket()
        seen = list[float]()
        await gate.read(url, enough=first_event(seen))
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert time.monotonic() - seen[0] >= 0.8  # From before it left: it is not noticed sooner.
        got = await gate.read(url)
    assert (got.names, got.end["state"]) == (["", "end"], "cancelled")


async def test_an_idle_replica_forgets_a_request_to_cancel_that_came_after_the_end() -> None:
    """Its key may be used again, and what is asked for then is not to be cancelled."""
    async with gateway(sends(FINISHED)) as (gate, _):
        store, key = gate.gateway.store, cancels_key(gate.gateway.name)
        await store.call("SADD", key, "ended")

        async def forgotten() -> bool:
            return not await store.call("EXISTS", key)

        await until(forgotten, "it is forgotten", 20)


async def test_a_run_that_no_viewer_ever_reached_is_cancelled_after_the_grace() -> None:
    async with gateway(sends(OK), grace=0.6) as (gate, upstream):
        look = start(gate, await gate.ticket())
        await until(lambda: upstream.calls)
        look.cancel()
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)


async def later(call: Call, seconds: float) -> None:
    """Let an upstream take its time, unless the gateway leaves it."""
    with suppress(TimeoutError):
        await asyncio.wait_for(call.left.wait(), seconds)


async def slow(call: Call) -> None:
    """The script of a completion that takes longer than the grace of these tests."""
    await call.send(OK, sse(chunk("Hel")))
    await later(call, 3.5)
    await call.send(sse(chunk("lo", finish="stop")))


async def test_a_preset_may_finish_what_nobody_watches() -> None:
    presets = {"default": {"on_leave": "finish", "grace": 0.5}}
    async with gateway(slow, presets=presets) as (gate, upstream):
        url = await gate.ticket()
        await gate.read(url, enough=lambda got: got.events)
        await until(lambda: ended(gate, url))
        assert (await gate.read(url)).end["state"] == "done"
    assert len(upstream.calls) == 1


async def ended(gate: Served, url: str) -> bool:
    """Tell whether a stream has ended."""
    return bool((await gate.completion(url))["state"] not in {"cached", "starting", "streaming"})


async def test_a_viewer_of_another_replica_keeps_a_run_alive(shared_redis: RedisServer) -> None:
    redis_url = shared_redis.url
    async with (
        gateway(slow, redis_url=redis_url, grace=1.5) as (gate, upstream),
        running(redis_url=redis_url, grace=1.5) as other,
    ):
        look = await moved(gate, upstream, other)
        assert (await look).end["state"] == "done"


async def moved(
    gate: Served, upstream: ScriptedUpstream, other: Served
) -> asyncio.Task[Transcript]:
    """Look at a stream that runs here from another replica only, with no moment between."""
    url = await gate.ticket()
    here = start(gate, url)
    await until(lambda: upstream.calls, "it runs")
    there = start(other, url)
    await until(lambda: other.gateway.fanout.viewers == 1, "it is watched elsewhere")
    here.cancel()
    return there


async def test_one_viewer_of_two_keeps_a_run_alive() -> None:
    async with gateway(slow, grace=1.5) as (gate, _):
        url = await gate.ticket()
        look = start(gate, url)
        await gate.read(url, enough=lambda got: got.events)
        assert (await look).end["state"] == "done"


async def test_a_viewer_behind_a_store_that_is_away_is_not_taken_for_gone(
    own_redis: RedisServer,
) -> None:
    """The grace is counted only while the store answers."""
    async with (
        gateway(slow, redis_url=own_redis.url, grace=1.2, lease=10) as (gate, upstream),
        running(redis_url=own_redis.url, grace=1.2, lease=10) as other,
    ):
        look = await moved(gate, upstream, other)
        own_redis.pause()
        await asyncio.sleep(1.5)  # Not for a state: the store is away for that long.
        own_redis.resume()
        assert (await asyncio.wait_for(look, 20)).end["state"] == "done"

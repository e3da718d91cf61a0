"""A fallback is asked after a sure refusal only, before the first event, and says who answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.config.presets import Preset, chain_of
from gateway.errors import UpstreamFailure
from gateway.runs.failover import Plan, Refusals
from tests.support import (
    OK,
    Call,
    RedisServer,
    Script,
    ScriptedUpstream,
    Served,
    ask,
    chunk,
    running,
    scripted,
    sse,
    until,
    whole,
)


def refuses(status: int, *headers: str) -> Script:
    """Return a script that refuses all."""
    lines = [f"HTTP/1.1 {status} No", "Content-Length: 0", *headers, "", ""]

    async def refuse(call: Call) -> None:
        await call.send("\r\n".join(lines).encode())

    return refuse


async def silent(call: Call) -> None:
    """Take the request, and say nothing."""
    await call.left.wait()


async def cut(call: Call) -> None:
    """Take the request, and close the connection."""
    call.cut()


async def one_event(call: Call) -> None:
    """Say one word, then nothing."""
    await call.send(OK, sse(chunk("Hel")))
    await call.left.wait()


@asynccontextmanager
async def chain(
    *scripts: Script,
    given: dict[str, Any] | None = None,
    p1: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[tuple[Served, list[ScriptedUpstream]]]:
    """Run a gateway whose presets default, p1, p2… fall back in turn; `given` is of default."""
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(scripted(each)) for each in scripts]
        names = ["default", *(f"p{number}" for number in range(1, len(ups)))]
        tables = {
            name: {"url": up.url, "retries": 0, "fallback": names[place : place + 1]}
            for place, (name, up) in enumerate(zip(names, ups, strict=True), 1)
        }
        tables["default"] |= given or {}
        tables["p1"] |= p1 or {}
        presets = {name: Preset.model_validate(each) for name, each in tables.items()}
        gate = await stack.enter_async_context(running(presets=presets, drain=0.2, **changes))
        yield gate, ups


def counts(ups: list[ScriptedUpstream]) -> list[int]:
    """Return the requests that each upstream got."""
    return [len(each.calls) for each in ups]


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_after_a_sure_refusal_the_fallback_answers_and_all_say_so(status: int) -> None:
    async with chain(refuses(status), whole) as (gate, ups):
        url = await gate.ticket()
        got = await gate.read(url)
        completion = await gate.completion(url)
    assert (got.end["state"], got.end["attempts"], got.end["preset"]) == ("done", 2, "p1")
    assert (completion["preset"], completion["attempts"]) == ("p1", 2)
    assert (got.end["presets"], completion["presets"]) == (["default", "p1"],) * 2
    assert counts(ups) == [1, 1]


async def test_no_connection_is_a_sure_refusal_and_the_whole_chain_is_tried() -> None:
    given = {"url": "http://127.0.0.1:1/v1"}
    async with chain(whole, refuses(503), whole, given=given) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["preset"]) == ("done", "p2")
    assert got.end["presets"] == ["default", "p1", "p2"]
    assert counts(ups) == [0, 1, 1]


async def test_where_all_refuse_the_last_refusal_is_told() -> None:
    async with chain(refuses(429), refuses(529)) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["attempts"]) == ("failed", 2)
    assert (got.failure["code"], got.failure["status"]) == ("upstream_refused", 529)
    assert counts(ups) == [1, 1]


@pytest.mark.parametrize("status", [400, 401, 500, 502, 504])
async def test_what_may_have_been_paid_for_or_never_becomes_right_is_not_failed_over(
    status: int,
) -> None:
    async with chain(refuses(status), whole) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["preset"]) == ("failed", "default")
    assert "presets" not in got.end
    assert counts(ups) == [1, 0]


async def test_a_status_that_the_preset_calls_sure_is_failed_over() -> None:
    async with chain(refuses(500), whole, given={"retry_on": [500]}) as (gate, ups):
        assert (await gate.read(await gate.ticket())).end["preset"] == "p1"
    assert counts(ups) == [1, 1]


async def test_each_is_asked_as_often_as_it_may_be_before_the_next() -> None:
    given = {"retries": 2}
    async with chain(refuses(503), whole, given=given) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["preset"], got.end["attempts"]) == ("p1", 4)
    assert counts(ups) == [3, 1]


async def test_a_wait_that_is_told_yields_to_a_fallback_that_is_free() -> None:
    busy = refuses(429, "Retry-After: 15")
    async with chain(busy, whole, given={"retries": 2}) as (gate, ups):
        got = await asyncio.wait_for(gate.read(await gate.ticket()), 14)
    assert (got.end["preset"], counts(ups)) == ("p1", [1, 1])


async def test_one_that_refused_lately_is_passed_over_and_then_probed_by_one_call() -> None:
    states = iter([refuses(429, "Retry-After: 1"), whole])

    async def recovers(call: Call) -> None:
        await next(states, whole)(call)

    async with chain(recovers, whole) as (gate, ups):
        assert (await gate.read(await gate.ticket())).end["preset"] == "p1"
        got = await gate.read(await gate.ticket())
        assert (got.end["preset"], got.end["attempts"]) == ("p1", 1)
        assert counts(ups) == [1, 2]

        async def who() -> str:
            return str((await gate.read(await gate.ticket())).end["preset"])

        async def is_back() -> bool:
            return await who() == "default"

        await until(is_back, "it is asked again")


async def test_one_that_is_passed_over_is_asked_where_all_others_refuse() -> None:
    first, second = (iter(each) for each in ([refuses(429), whole], [whole, refuses(503)]))

    def in_turn(scripts: Iterator[Script]) -> Script:
        async def script(call: Call) -> None:
            await next(scripts)(call)

        return script

    async with chain(in_turn(first), in_turn(second)) as (gate, ups):
        assert (await gate.read(await gate.ticket())).end["preset"] == "p1"
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["presets"]) == ("done", ["p1", "default"])
    assert (got.end["attempts"], counts(ups)) == (2, [2, 2])


async def test_a_page_gets_the_presets_that_were_in_force_when_its_stream_began() -> None:
    async def body() -> bytes:
        return json.dumps(ask()).encode()

    tables: dict[str, dict[str, Any]] = {"a": {"fallback": ["b"]}, "b": {"url": "http://before/"}}
    presets = {name: Preset.model_validate(each) for name, each in tables.items()}
    plan = Plan("a", presets.get, Refusals(), body)
    presets["b"] = Preset.model_validate({"protocol": "anthropic"})
    refused = UpstreamFailure("upstream_refused", "", state="failed", sure=True)
    other = await plan.after(refused, waits=False)
    assert other is not None
    assert other.preset.url == "http://before/"


@pytest.mark.parametrize("on_timeout", [False, True])
async def test_while_redis_is_away_nobody_calls_the_upstream_silent(
    own_redis: RedisServer, on_timeout: bool
) -> None:
    refused = asyncio.Event()

    async def refuse(call: Call) -> None:
        own_redis.pause()
        await refuses(503)(call)
        refused.set()

    given = {"fallback_on_timeout": on_timeout}
    more: dict[str, Any] = {"redis_url": own_redis.url, "upstream_stall": 0.3}
    async with chain(refuse, whole, given=given, **more) as (gate, ups):
        reading = asyncio.create_task(gate.read(await gate.ticket()))
        await refused.wait()
        await asyncio.sleep(1.5)  # Redis is away for longer than an upstream may be silent.
        own_redis.resume()
        got = await reading
    assert (got.end["state"], got.end["preset"], counts(ups)) == ("done", "p1", [1, 1])


def test_of_those_who_ask_after_a_refusal_is_over_one_probes() -> None:
    async def look() -> list[bool]:
        refusals = Refusals()
        refusals.refused("a", 0)
        free = [refusals.is_free("a")]
        refusals._until["a"] = 0.0
        free.append(refusals.is_free("a"))
        refusals.ask("a")
        free.append(refusals.is_free("a"))
        refusals.answered("a")
        return [*free, refusals.is_free("a")]

    assert asyncio.run(look()) == [False, True, False, True]


@pytest.mark.parametrize("script", [silent, cut], ids=["silence", "a cut"])
async def test_a_time_out_or_a_cut_is_failed_over_only_where_the_preset_says_so(
    script: Script,
) -> None:
    for given in ({}, {"fallback_on_timeout": True}):
        async with chain(script, whole, given=given, upstream_stall=1) as (gate, ups):
            got = await gate.read(await gate.ticket())
            assert got.end["preset"] == ("p1" if given else "default")
            assert got.end["attempts"] == (2 if given else 1)
            assert counts(ups) == ([1, 1] if given else [1, 0])


async def test_the_first_is_hung_up_before_the_second_is_asked() -> None:
    first: list[Call] = []
    order: list[str] = []

    async def slow(call: Call) -> None:
        first.append(call)
        await call.left.wait()
        order.append("hung up")

    async def second(call: Call) -> None:
        await first[0].left.wait()
        order.append("asked")
        await whole(call)

    given = {"fallback_on_timeout": True}
    async with chain(slow, second, given=given, upstream_stall=1) as (gate, _):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], order) == ("done", ["hung up", "asked"])


async def test_after_the_first_event_nothing_is_failed_over() -> None:
    given = {"fallback_on_timeout": True}
    async with chain(one_event, whole, given=given, upstream_stall=1) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["preset"]) == ("stalled", "default")
    assert counts(ups) == [1, 0]


async def test_a_fallback_is_asked_for_what_its_own_preset_makes_of_the_page_s_request() -> None:
    async with scripted(refuses(429)) as one, scripted(whole) as two:
        presets = {
            "default": {"url": one.url, "models": ["small"], "retries": 0, "fallback": ["other"]},
            "other": {"url": two.url, "models": ["large"], "force": {"temperature": 0}},
        }
        models = {name: Preset.model_validate(each) for name, each in presets.items()}
        async with running(presets=models) as gate:
            got = await gate.read(await gate.ticket(ask("Why?", model="small")))
            assert got.end["preset"] == "other"
    sent = two.calls[0].json
    assert (sent["model"], sent["temperature"]) == ("large", 0)
    assert sent["messages"] == one.calls[0].json["messages"]


async def test_a_fallback_that_does_not_allow_the_request_is_left_out() -> None:
    narrow = {"force": {"stream": False}}
    async with chain(refuses(429), whole, whole, p1=narrow) as (gate, ups):
        got = await gate.read(await gate.ticket())
    assert (got.end["preset"], counts(ups)) == ("p2", [1, 0, 1])


async def test_what_is_kept_for_fallbacks_goes_with_the_end(own_redis: RedisServer) -> None:
    async with chain(refuses(429), whole, redis_url=own_redis.url) as (gate, _):
        url = await gate.ticket()
        store = gate.gateway.store
        stream_id = gate.gateway.tickets.verify(url.partition("ticket=")[2]).stream_id
        kept = await store.call("HGET", f"gw:{{{stream_id}}}:record", "body")
        assert json.loads(kept) == ask()
        await gate.read(url)
        assert await store.call("HGET", f"gw:{{{stream_id}}}:record", "body") is None


def test_a_chain_has_each_preset_once_and_those_of_a_fallback_after_it() -> None:
    tables = {"a": ["b", "d"], "b": ["c", "a"], "c": [], "d": ["c"], "e": ["nobody"]}
    presets = {name: Preset.model_validate({"fallback": each}) for name, each in tables.items()}
    assert chain_of("a", presets.get) == ["b", "c", "d"]
    assert chain_of("e", presets.get) == []

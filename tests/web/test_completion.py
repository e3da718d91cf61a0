"""The answer as one object: so far, or waited for; and what the app calls its stream."""

import asyncio
import time
from typing import Any

import pytest

from gateway.errors import Rejected
from tests.limits.test_permits import Held, replicas
from tests.support import Call, RedisServer, Served, ask, running, scripted, until, whole

REF = "chat 7, answer 3"


async def completion(served: Served, url: str, more: str, subject: str = "alice") -> dict[str, Any]:
    """Ask for the answer of a stream, with more in the query."""
    where = url.replace("/stream", "/completion") + more
    answer = await served.http.get(where, headers=served.cookie(subject))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_who_waits_has_the_whole_answer_as_soon_as_it_is_whole(
    shared_redis: RedisServer,
) -> None:
    script = Held()
    async with replicas(shared_redis, script) as (upstream, (a, b)):
        url = await a.ticket()
        waiting = [
            asyncio.create_task(completion(each, url, "&wait=30&start=1")) for each in (a, b, a)
        ]
        await until(lambda: len(upstream.calls) == 1)
        script.go.set()
        answers = await asyncio.gather(*waiting)
        assert {(each["state"], each["text"]) for each in answers} == {("done", "Hello")}
        assert len(upstream.calls) == 1


async def test_the_wait_ends_with_the_answer_so_far(shared_redis: RedisServer) -> None:
    async with replicas(shared_redis, Held(), 1) as (_, (a,)):
        url, began = await a.ticket(), time.monotonic()
        got = await completion(a, url, "&wait=1&start=1")
        assert (got["state"], got["text"]) == ("streaming", "Hel")
        assert 0.9 < time.monotonic() - began < 20


async def test_waiting_alone_redeems_nothing(shared_redis: RedisServer) -> None:
    script = Held()
    async with replicas(shared_redis, script, 1) as (upstream, (a,)):
        url = await a.ticket()
        assert (await completion(a, url, "&wait=1"))["state"] == "cached"
        assert not upstream.calls
        waiting = asyncio.create_task(completion(a, url, "&wait=20"))
        script.go.set()
        await a.read(url)  # Now somebody redeems it.
        assert (await waiting)["state"] == "done"


async def test_who_waits_is_a_viewer_and_who_leaves_is_none(shared_redis: RedisServer) -> None:
    async with replicas(shared_redis, Held(), 1, grace=1) as (upstream, (a,)):
        url = await a.ticket()
        assert (await completion(a, url, "&wait=3&start=1"))["state"] == "streaming"
        assert not upstream.calls[0].left.is_set()
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)  # Nobody waits any more.


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "x", "inf"])
async def test_a_wait_is_a_bounded_number_of_seconds(wait: str) -> None:
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as served:
        url = (await served.ticket()).replace("/stream", "/completion")
        answer = await served.http.get(f"{url}&wait={wait}", headers=served.cookie())
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_an_app_finds_its_own_name_of_a_stream(shared_redis: RedisServer) -> None:
    async with (
        scripted(whole) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket(**{"X-Stream-Ref": REF})
        assert (await completion(served, url, ""))["ref"] == REF
        await served.read(url)
        assert (await completion(served, url, ""))["ref"] == REF
        other = await served.ticket()
        assert "ref" not in await completion(served, other, "")
        made = await served.gateway.ticket("alice", ask(), ref="Ä 7")
        assert (await completion(served, made.stream_url, ""))["ref"] == "Ä 7"
        with pytest.raises(Rejected) as caught:
            await served.gateway.ticket("alice", ask(), ref="x" * 201)
        assert caught.value.code == "bad_ref"


@pytest.mark.parametrize("ref", ["x" * 201, "a\tb"])
async def test_a_name_that_is_none_stores_nothing(ref: str) -> None:
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as served:
        answer = await served.post(**{"X-Stream-Ref": ref})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_ref")


async def test_who_never_sees_events_is_told_why_an_answer_failed(
    shared_redis: RedisServer,
) -> None:
    async def refuses(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")

    async with replicas(shared_redis, refuses, 1) as (_, (a,)):
        got = await completion(a, await a.ticket(), "&wait=20&start=1")
        assert (got["state"], got["failure"]["code"]) == ("failed", "upstream_refused")

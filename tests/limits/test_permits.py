"""What a user may ask for and spend: refused in time, on all replicas, and healed by itself."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway.config import settings as settings_
from gateway.config.presets import Preset
from gateway.config.user_limits import UNBOUNDED, Bounds, UserLimits
from gateway.errors import SettingsError, Unavailable
from gateway.limits import subjects
from gateway.limits.permits import Permits, Slot, Taken
from gateway.runs.booking import taken as expected_of
from gateway.runs.record import ClaimVerdict
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import new_id, subject_keys
from tests.clusters import RedisCluster
from tests.support import (
    OK,
    SECRET,
    Call,
    RedisServer,
    ScriptedUpstream,
    Served,
    ask,
    chunk,
    client,
    process,
    read,
    running,
    scripted,
    sse,
    until,
)
from tests.test_promises import at_least

EVENTS = {"Accept": "text/event-stream"}


class Held:
    """An upstream's script: one event, then the rest and a usage when it is let go."""

    def __init__(self, prompt: int = 10, completion: int = 20) -> None:
        self.go = asyncio.Event()
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion}

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        await call.send(OK, sse(chunk("Hel")))
        going = asyncio.create_task(self.go.wait())
        leaving = asyncio.create_task(call.left.wait())
        await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (going, leaving):
            task.cancel()
        if self.go.is_set():
            usage = json.dumps({"choices": [], "usage": self.usage}).encode()
            await call.send(sse(chunk("lo", finish="stop"), usage, b"[DONE]"))


@asynccontextmanager
async def replicas(
    redis: RedisServer, script: Any, number: int = 2, **more: Any
) -> AsyncIterator[tuple[ScriptedUpstream, list[Served]]]:
    """Run replicas in this process, on one Redis and with one upstream."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted(script))
        given = {"redis_url": redis.url, "upstream_url": upstream.url, **more}
        yield (
            upstream,
            [await stack.enter_async_context(running(**given)) for _ in range(number)],
        )


def refused(answer: httpx.Response, code: str, status: int = 429) -> int:
    """Check that an answer is a refusal of that kind; return the seconds to wait."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return int(answer.headers["retry-after"])


def somebody() -> str:
    """Return a subject that no other test has."""
    return f"user-{new_id()}"


async def opened(served: Served, url: str, subject: str) -> httpx.Response:
    """Redeem a ticket by a bare GET, and return what is answered at once."""
    return await served.http.get(url, headers={**served.cookie(subject), "Accept": "*/*"})


# POSTs in a minute


async def test_posts_beyond_the_limit_are_refused_on_all_replicas(
    shared_redis: RedisServer,
) -> None:
    limits = {"posts_per_minute": 10}
    async with replicas(shared_redis, Held(), limits=limits) as (upstream, (a, b)):
        user = somebody()
        answers = await asyncio.gather(*((a, b)[n % 2].post(subject=user) for n in range(40)))
        made = [each for each in answers if each.status_code == 201]
        assert len(made) == 10
        for each in answers:
            if each not in made:
                assert 1 <= refused(each, "rate_limited") <= 60
                assert each.headers["ratelimit"].startswith('"posts";r=0;t=')
        assert min(each.headers["ratelimit"] for each in made).startswith('"posts";r=0;t=')
        assert {each.headers["ratelimit-policy"] for each in answers} == {'"posts";q=10;w=60'}
        assert (await a.post(subject=somebody())).status_code == 201
        assert not upstream.calls


async def test_the_first_post_of_a_minute_tells_when_there_are_more(
    shared_redis: RedisServer,
) -> None:
    async with replicas(shared_redis, Held(), 1, limits={"posts_per_minute": 1}) as (_, (a,)):
        assert (await a.post(subject=somebody())).headers["ratelimit"] == '"posts";r=0;t=60'


async def test_a_repeated_key_costs_no_post(shared_redis: RedisServer) -> None:
    async with replicas(shared_redis, Held(), limits={"posts_per_minute": 2}) as (_, (a, b)):
        user, key = somebody(), {"Idempotency-Key": new_id()}
        first = await a.post(subject=user, **key)
        for served in (a, b, a, b):
            again = await served.post(subject=user, **key)
            assert (again.status_code, again.json()["ticket"]) == (200, first.json()["ticket"])
        assert (await a.post(subject=user)).status_code == 201
        refused(await b.post(subject=user), "rate_limited")
        assert (await b.post(subject=user, **key)).status_code == 200
        # A repeat after the first has left the minute does not take its place in it.
        keys = subject_keys(user)
        await a.gateway.store.call("DEL", keys.posts)
        record = f"gw:{{{stream_of(first, a)}}}:record"
        await a.gateway.store.call("HINCRBY", record, "issued", -61_000)
        assert (await b.post(subject=user, **key)).status_code == 200
        assert await a.gateway.store.call("ZCARD", keys.posts) == 0


def stream_of(answer: httpx.Response, served: Served) -> str:
    """Return the stream that a ticket leads to."""
    return served.gateway.tickets.verify(answer.json()["ticket"]).stream_id


async def test_a_preset_has_limits_of_its_own(shared_redis: RedisServer) -> None:
    async with scripted(Held()) as upstream:
        presets = {"default": {}, "dear": {"limits": {"posts_per_minute": 1}}}
        given = {"redis_url": shared_redis.url, "upstream_url": upstream.url, "presets": presets}
        async with running(**given, limits={"posts_per_minute": 3}) as served:
            user = somebody()

            async def post(path: str) -> httpx.Response:
                return await served.http.post(path, json=ask(), headers=served.cookie(user))

            assert (await post("/tickets/dear")).status_code == 201
            refused(await post("/tickets/dear"), "rate_limited")
            assert [(await post("/tickets")).status_code for _ in range(3)] == [201, 201, 429]


# Streams at once


async def test_racing_redemptions_never_run_more_than_the_limit(
    shared_redis: RedisServer,
) -> None:
    script = Held()
    async with replicas(shared_redis, script, limits={"streams": 3}, lease=10) as (
        upstream,
        (a, b),
    ):
        user = somebody()
        urls = [await a.ticket(subject=user) for _ in range(20)]

        async def attempt(number: int) -> bytes:
            served, seen = (a, b)[number % 2], b""
            headers = {**served.cookie(user), **EVENTS}
            async with served.http.stream("GET", urls[number], headers=headers) as answer:
                assert answer.status_code == 200
                async for piece in answer.aiter_bytes():
                    seen += piece
                    if b"Hel" in seen:
                        return seen
            return seen

        seen = await asyncio.gather(*map(attempt, range(20)))
        begun = [each for each in seen if b"Hel" in each]
        assert len(begun) == 3 == len(upstream.calls)
        for each in seen:
            if each not in begun:
                assert each.startswith(b"retry: ")
                assert b"data:" not in each
        later = urls[next(n for n, each in enumerate(seen) if each not in begun)]
        assert refused(await opened_plain(b, later, user), "too_many_streams", 503) >= 1
        refused(await a.post(subject=user), "too_many_streams")
        script.go.set()

        async def takes_it() -> bool:
            return b'"state":"done"' in (await opened(b, later, user)).content

        await until(takes_it, "a slot is free")
        assert len(upstream.calls) == 4
        assert (await a.post(subject=user)).status_code == 201


async def opened_plain(served: Served, url: str, subject: str) -> httpx.Response:
    """Redeem a ticket as something that is no EventSource."""
    headers = {**served.cookie(subject), "Accept": "application/json, */*;q=0.1"}
    return await served.http.get(url, headers=headers)


async def test_reconnects_and_second_viewers_hold_no_slot(shared_redis: RedisServer) -> None:
    script = Held()
    async with replicas(shared_redis, script, limits={"streams": 2}) as (upstream, (a, b)):
        user = somebody()
        first, second = [await a.ticket(subject=user) for _ in range(2)]
        for served, url in ((a, first), (b, first), (a, first), (b, second), (b, first)):
            await read(served.http, url, headers=a.cookie(user), enough=at_least(1))
        assert len(upstream.calls) == 2
        assert await a.gateway.store.call("ZCARD", subject_keys(user).leases) == 2


async def test_slots_heal_within_a_lease_after_their_owner_was_killed(
    own_redis: RedisServer, tmp_path: Any
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[limits]\nstreams = 1\n")
    async with scripted(Held()) as upstream:
        given = {"redis_url": own_redis.url, "upstream_url": upstream.url, "lease": "2"}
        variables = {**given, "config": str(config), "secrets": SECRET}
        async with running(**{**given, "lease": 2}, limits={"streams": 1}) as here:
            with process("serve", "--port", "0", **variables) as other:
                url = await here.ticket()
                async with client(other.url) as http:
                    await read(http, url, headers=here.cookie(), enough=at_least(1))
                refused(await here.post(), "too_many_streams")
                other.process.kill()

                async def may_ask() -> bool:
                    return (await here.post()).status_code == 201

                await until(may_ask, "the slot is free", 20)


async def test_a_redis_that_forgot_learns_within_a_lease_what_runs(
    own_redis: RedisServer,
) -> None:
    script = Held()
    limits = {"streams": 1}
    async with replicas(own_redis, script, 1, limits=limits, lease=2) as (_, (a,)):
        await a.read(await a.ticket(), enough=at_least(1))
        await a.gateway.store.call("FLUSHALL")

        async def is_full() -> bool:
            return (await a.post()).status_code == 429

        await until(is_full, "the slot is taken again", 20)


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_reserved_is_the_sum_of_what_runs(store: RedisClient, seed: int) -> None:
    """However slots are taken, prolonged at another price, freed, and left to run out."""
    rng, user = random.Random(seed), somebody()
    most = UserLimits(streams=1000, tokens_per_day=1 << 40, cost_per_day=1e5)
    permits = Permits(store, lambda _: Bounds(most, most), lease=60)
    keys, presets = subject_keys(user), ("one", "two")
    for _ in range(60):
        stream, preset = f"stream-{rng.randrange(9)}", rng.choice(presets)
        taken = Taken(rng.randrange(99), rng.randrange(99))
        match rng.randrange(4):
            case 0:
                await store.script(*permits.to_run(user, stream, preset, taken))
            case 1:
                await store.script(*permits.held(user, [Slot(stream, *taken, preset)]))
            case 2:
                await store.script(*permits.held(user, [Slot(stream), Slot(f"{stream}0")]))
            case 3:
                await store.call("ZADD", keys.leases, "XX", 1, stream)  # Its lease is over.
        await permits.left(user, "one", UNBOUNDED)
        fields = await store.call("HGETALL", keys.slots)
        told = dict(zip(fields[::2], fields[1::2], strict=True))
        sums = {name: int(told.pop(name)) for name in list(told) if name.startswith(b"\n")}
        slots = [value.decode().split() for value in told.values()]
        assert {*told} == {*await store.call("ZRANGE", keys.leases, 0, -1)}
        for where in ("", *presets):
            here = [each for each in slots if where in ("", each[2])]
            counts = len(here), *(sum(int(each[n]) for each in here) for n in (0, 1))
            names = [f"\n{what}\n{where}".encode() for what in ("streams", "tokens", "cost")]
            assert tuple(sums.get(each, 0) for each in names) == counts


# Tokens and cost of a day


async def test_who_has_spent_all_asks_no_further_one(shared_redis: RedisServer) -> None:
    script = Held(prompt=60, completion=50)
    script.go.set()
    async with replicas(shared_redis, script, limits={"tokens_per_day": 100}) as (
        upstream,
        (a, b),
    ):
        user = somebody()
        first, second = [await a.ticket(subject=user) for _ in range(2)]
        assert b'"state":"done"' in (await opened(a, first, user)).content
        late = (await opened(b, second, user)).content
        assert b'event: failure\ndata: {"code":"quota_exhausted"' in late
        assert b'"state":"failed"' in late
        told = await b.post(subject=user)
        assert 1 <= refused(told, "quota_exhausted") <= 86_400
        assert told.json()["detail"] == "What a day allows is spent (tokens_per_day)"
        assert len(upstream.calls) == 1


async def test_what_runs_has_its_share_reserved(shared_redis: RedisServer) -> None:
    """Each may take 40 of 100 and ten of a prompt: so three may begin, the third with the rest."""
    script = Held(prompt=1, completion=1)
    async with replicas(shared_redis, script, limits={"tokens_per_day": 100}) as (
        upstream,
        (a, b),
    ):
        user, body = somebody(), ask(max_tokens=40)
        urls = [await a.ticket(body, subject=user) for _ in range(6)]

        async def attempt(number: int) -> str:
            served = (a, b)[number % 2]
            got = await read(
                served.http, urls[number], headers=served.cookie(user), enough=at_least(1)
            )
            return "".join(map(str, got.data))

        seen = await asyncio.gather(*map(attempt, range(6)))
        assert len([each for each in seen if "Hel" in each]) == 3 == len(upstream.calls)
        script.go.set()
        late = urls[next(n for n, each in enumerate(seen) if "Hel" not in each)]

        async def takes_it() -> bool:
            return b'"state":"done"' in (await opened(b, late, user)).content

        await until(takes_it, "what was not taken is free again")


async def test_two_hundred_racers_never_run_nor_spend_more_than_they_may(
    shared_redis: RedisServer,
) -> None:
    """Each stream takes the 31 tokens that are expected of it: ten of them begin, no eleventh."""
    running_now, most = 0, 0

    async def script(call: Call) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await call.send(OK, sse(chunk("Hel")))
        await asyncio.sleep(0.05)  # Not for a state: so that they meet.
        usage = json.dumps({"choices": [], "usage": USAGE}).encode()
        running_now -= 1  # Before the end is told: from then on another may begin.
        await call.send(sse(chunk("lo", finish="stop"), usage, b"[DONE]"))

    limits = {"streams": 4, "tokens_per_day": 10 * sum(USAGE.values())}
    # A lease that no pause of this busy process outlasts: what lapses is free, as it must be.
    async with replicas(shared_redis, script, limits=limits, lease=10) as (upstream, (a, b)):
        user, body = somebody(), ask(max_tokens=USAGE["completion_tokens"])

        async def race(number: int) -> str:
            served = (a, b)[number % 2]
            while True:
                answer = await served.post(body, subject=user)
                if answer.status_code == 201:
                    break
                if answer.json()["code"] == "quota_exhausted" and spent_all(answer):
                    return "refused"
                await asyncio.sleep(0.05)
            url = answer.json()["stream_url"]
            while True:
                seen = (await opened((a, b)[number // 2 % 2], url, user)).content
                if b"event: end" in seen:
                    return "failed" if b"quota_exhausted" in seen else "done"
                await asyncio.sleep(0.05)

        ends = await asyncio.gather(*map(race, range(200)))
        assert most <= 4
        assert ends.count("done") == len(upstream.calls) == 10
        assert ends.count("refused") + ends.count("failed") == 190


USAGE = {"prompt_tokens": 1, "completion_tokens": 30}


def spent_all(answer: httpx.Response) -> bool:
    """Whether nothing is left for the day, not only reserved."""
    return int(answer.headers["retry-after"]) > 2


async def test_a_cost_is_bounded_too(shared_redis: RedisServer) -> None:
    script = Held(prompt=1000, completion=1000)
    script.go.set()
    presets = {"default": {"price": {"prompt": 1.0, "completion": 2.0}}}
    async with replicas(
        shared_redis, script, 1, limits={"cost_per_day": 0.003}, presets=presets
    ) as (_, (a,)):
        user = somebody()
        url = await a.ticket(subject=user)
        assert b'"cost":0.003' in (await opened(a, url, user)).content
        refused(await a.post(subject=user), "quota_exhausted")


async def test_no_number_of_tokens_is_too_large_to_be_reserved(shared_redis: RedisServer) -> None:
    script = Held()
    presets = {"default": {"price": {"prompt": 1e9, "completion": 1e9}}}
    async with replicas(shared_redis, script, 1, limits={"cost_per_day": 1e6}, presets=presets) as (
        _,
        (a,),
    ):
        user = somebody()
        url = await a.ticket(ask(max_tokens=10**15), subject=user)
        await read(a.http, url, headers=a.cookie(user), enough=at_least(1))
        refused(await a.post(subject=user), "quota_exhausted")
        script.go.set()
        assert b'"state":"done"' in (await opened(a, url, user)).content
        fields = await a.gateway.store.call("HGETALL", subject_keys(user).slots)
        assert {*fields[1::2]} <= {b"0"}


def test_what_was_asked_for_before_it_was_bounded_reserves_something_too() -> None:
    price = {"prompt": 1.0, "completion": 1.0}
    assert expected_of("", Preset.model_validate({"price": price})) == (4096, 4_096_000)
    assert expected_of("", Preset.model_validate({"max_output_tokens": 7})).tokens == 7


async def test_a_claim_that_comes_after_the_end_leaves_no_slot(shared_redis: RedisServer) -> None:
    script = Held()
    script.go.set()
    async with replicas(shared_redis, script, limits={"streams": 1}, lease=30) as (_, (a, b)):
        user = somebody()
        url = await a.ticket(subject=user)
        ticket = b.gateway.tickets.verify(parse_qs(urlsplit(url).query)["ticket"][0])
        stale = await b.gateway.records.read(ticket.stream_id)
        assert b'"state":"done"' in (await opened(a, url, user)).content
        await a.gateway.records.limits._tell_all()  # All that its owner has to say of it.
        preset = b.gateway.presets.get("default")
        assert stale
        assert preset
        verdict = await b.gateway.supervisor._claims.claim(stale, preset)
        assert verdict is ClaimVerdict.ATTACH

        async def is_free() -> bool:
            return (await a.post(subject=user)).status_code == 201

        await until(is_free, "the slot is free long before its lease is over", 20)


async def test_a_stream_that_a_fallback_answered_leaves_no_slot(shared_redis: RedisServer) -> None:
    script = Held()
    script.go.set()
    async with scripted(script) as upstream:
        given = {"redis_url": shared_redis.url, "upstream_url": upstream.url, "lease": 30}
        scarce = {"url": "http://127.0.0.1:9", "fallback": ["spare"], "limits": {"streams": 1}}
        presets = {"default": {}, "scarce": scarce, "spare": {"retries": 0}}
        async with running(**given, presets=presets) as served:
            user = somebody()

            async def post() -> httpx.Response:
                headers = served.cookie(user)
                return await served.http.post("/tickets/scarce", json=ask(), headers=headers)

            got = await opened(served, (await post()).json()["stream_url"], user)
            assert b'"preset":"spare"' in got.content

            async def is_free() -> bool:
                return (await post()).status_code == 201

            await until(is_free, "the slot is free long before its lease is over", 20)


async def test_the_wait_that_is_told_is_that_of_the_limit_that_is_met(store: RedisClient) -> None:
    every, here = UserLimits(posts_per_minute=2), UserLimits(posts_per_minute=5)
    permits, user = Permits(store, lambda _: Bounds(every, here), lease=60), somebody()
    keys = subject_keys(user)
    for stream, preset, ago in (("s", "other", 50_000), ("t", "this", 1_000)):
        await store.script(*permits.to_ask(user, stream, preset))
        for key in (keys.posts, keys.posts_of(preset)):
            await store.call("ZINCRBY", key, -ago, stream)
    answer = await store.script(*permits.to_ask(user, "u", "this"))
    assert answer[:2] == [0, b"rate_limited"]
    assert 9_000 < answer[2] == answer[3] <= 10_000


async def test_a_clock_set_back_frees_no_slot_and_keeps_none(store: RedisClient) -> None:
    most = UserLimits(streams=1)
    permits, user = Permits(store, lambda _: Bounds(most), lease=60), somebody()
    await store.script(*permits.to_run(user, "s", "p", Taken(1)))
    await store.call("ZADD", subject_keys(user).leases, 1 << 43, "s")
    assert (await store.script(*permits.to_run(user, "t", "p", Taken(1))))[0] == 0
    seconds, _ = await store.call("TIME")
    until_when = float(await store.call("ZSCORE", subject_keys(user).leases, "s"))
    assert until_when <= (int(seconds) + 61) * 1000


@pytest.mark.parametrize("kind", ["slots", "leases", "today", "posts"])
async def test_keys_of_another_kind_keep_nobody_out(store: RedisClient, kind: str) -> None:
    most = UserLimits(posts_per_minute=5, streams=1, tokens_per_day=9)
    permits, user = Permits(store, lambda _: Bounds(most), lease=60), somebody()
    await store.call("SET", getattr(subject_keys(user), kind), "of whoever")
    for script in (permits.to_ask(user, "s", "p"), permits.to_run(user, "s", "p", Taken(1))):
        assert (await store.script(*script))[0] == 1
    await store.script(*permits.held(user, [Slot("s")]))
    assert {*(await store.call("HVALS", subject_keys(user).slots))} <= {b"0"}


async def test_a_full_redis_gives_no_free_pass(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    most = UserLimits(posts_per_minute=5, streams=1)
    permits, user = Permits(store, lambda _: Bounds(most), lease=60), somebody()
    await store.call("CONFIG", "SET", "maxmemory", "100kb")
    for script in (permits.to_ask(user, "s", "p"), permits.to_run(user, "s", "p", Taken(1))):
        with pytest.raises(Unavailable, match="OOM"):
            await store.script(*script)
    await store.script(*permits.held(user, [Slot("s")]))
    await store.close()


async def test_a_redis_that_is_away_gives_no_free_pass(own_redis: RedisServer) -> None:
    async with replicas(own_redis, Held(), 1, limits={"streams": 1}) as (upstream, (a,)):
        url = await a.ticket()
        own_redis.kill()
        assert (await a.post()).status_code == 503
        assert (await opened_plain(a, url, "alice")).status_code == 503
        own_redis.start()
        assert not upstream.calls


# What is set


@pytest.mark.parametrize(
    "told",
    [
        "streams = -1",
        "streams = 1.5",
        'streams = "2"',
        "streams = true",
        "cost_per_day = -0.1",
        "cost_per_day = nan",
        "posts_per_minute = 99999999",
        "stream = 1",
    ],
)
@pytest.mark.parametrize("table", ["limits", "presets.default.limits"])
def test_a_wrong_limit_stops_the_start(told: str, table: str, tmp_path: Any) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'upstream_url = "http://127.0.0.1:1/v1"\n[presets.default]\n[{table}]\n{told}\n'
    )
    with pytest.raises(SettingsError) as caught:
        settings_.load({"config": str(config)})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{config}: {table}.{told.split()[0]}")


class Runs(NamedTuple):
    """What runs, as its subject holds it."""

    held: subjects.Held
    taken: Taken = Taken()


async def test_a_server_that_hangs_lets_no_slot_lapse_on_another(
    shared_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.node.TIMEOUT", 60.0)
    here, there = (subject_of(shared_cluster, shard) for shard in (0, 1))
    store, hangs = RedisClient(shared_cluster.url), shared_cluster.masters[1]
    bounds = Bounds(UserLimits(streams=5))
    times: dict[str, Any] = {"start_by": 60.0, "log_ttl": 600.0, "lease": 1.0}
    records = Records(store, "me", **times, max_run=lambda: 600, bounds=lambda _: bounds)
    runs = [Runs(subjects.Held(each, new_id(), 1, "default")) for each in (there, here)]
    slot = subject_keys(here).leases, runs[1].held.stream_id

    async def longer_than(before: float) -> float:
        until_when = float(await store.call("ZSCORE", *slot) or 0)
        return until_when if until_when > before else 0.0

    await store.call("PING")  # It knows the servers.
    hangs.run("CLIENT", "PAUSE", 60_000, "WRITE")
    telling = asyncio.create_task(records.limits.run(lambda: runs))
    try:
        last = 0.0
        for _ in range(3):
            last = await until(partial(longer_than, last), "its slot is prolonged", 20)
    finally:
        hangs.run("CLIENT", "UNPAUSE")
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await store.close()


def subject_of(cluster: RedisCluster, shard: int) -> str:
    """Return a subject that no other test has, and that a master keeps."""
    drawn = (f"user {new_id()}" for _ in range(1000))
    return next(each for each in drawn if cluster.shard_of(subject_keys(each).slots) == shard)

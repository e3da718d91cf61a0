"""What Redis has given to a replica has a run there, and ends once, whatever becomes of the two."""

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from gateway.app import Gateway
from gateway.config.presets import Preset
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import HEARTBEATS, log_key, record_key, runs_key
from tests.eventlog.test_writer import LOSE_REQUEST, Proxy, nonsense, proxied
from tests.scripts import LUA, digests_of, texts_of
from tests.support import (
    OK,
    SECRET,
    WHOLE,
    Call,
    Process,
    RedisServer,
    ScriptedUpstream,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    first_event,
    process,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)

# Of who watches an owner that beats three times a second: a slow machine must kill nobody.
LEASE: dict[str, Any] = {"lease": 2}
FIRST = sse(chunk("Hel"))
REST = WHOLE.removeprefix(FIRST)


def script_is(name: str) -> Callable[[bytes], bool]:
    """Return a test of whether a request runs a script."""
    digests = digests_of(name)
    text = (LUA / f"{name}.lua").read_bytes()
    return lambda data: text[:60] in data or any(each in data for each in digests)


async def know_scripts(served: Served) -> None:
    """Let Redis know all scripts, so that a script is one request."""
    for text in texts_of():
        await served.gateway.store.call("SCRIPT", "LOAD", text)


class Slow:
    """An upstream's script: the first event, then the rest when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        await call.send(OK, FIRST)
        going = asyncio.create_task(self.go.wait())
        leaving = asyncio.create_task(call.left.wait())
        await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (going, leaving):
            task.cancel()
        if self.go.is_set():
            await call.send(REST)


@asynccontextmanager
async def slow() -> AsyncIterator[tuple[Slow, ScriptedUpstream]]:
    """Run an upstream that waits after its first event."""
    script = Slow()
    async with scripted(script) as upstream:
        yield script, upstream


@asynccontextmanager
async def behind_a_proxy(
    redis: RedisServer, **more: Any
) -> AsyncIterator[tuple[Slow, ScriptedUpstream, Proxy, Served]]:
    """Run a replica whose way to Redis can be disturbed; each script is one request."""
    async with (
        slow() as (script, upstream),
        proxied(redis) as proxy,
        running(redis_url=proxy.url, upstream_url=upstream.url, **LEASE, **more) as served,
    ):
        await know_scripts(served)
        yield script, upstream, proxy, served


def started(got: Transcript) -> bool:
    """Say whether the first event is there."""
    return len(got.events) >= 1


async def state_of(served: Served, url: str) -> str:
    """Return a stream's state."""
    return str((await served.completion(url)).get("state"))


async def ends(served: Served, url: str, state: str) -> None:
    """Wait until a stream has ended in a state."""

    async def has_ended() -> bool:
        return await state_of(served, url) == state

    await until(has_ended, f"it is {state}")


def cut_replies(proxy: Proxy, script: str, times: int) -> asyncio.Event:
    """Let the first replies to a script be lost on their way; return what is set from then on."""
    is_it, left, lost = script_is(script), iter(range(times)), asyncio.Event()

    def judge(data: bytes) -> int | None:
        if not is_it(data) or next(left, None) is None:
            return None
        lost.set()
        return 0  # Bytes of the reply that come through.

    proxy.judge = judge
    return lost


async def start(served: Served, url: str) -> Transcript:
    """Redeem a ticket, see the first event and leave."""
    return await served.read(url, enough=started)


# Claims


async def test_a_claim_goes_on_when_the_request_that_wanted_it_is_gone(
    shared_redis: RedisServer,
) -> None:
    is_claim, asked = script_is("claim"), asyncio.Event()
    async with behind_a_proxy(shared_redis) as (script, upstream, proxy, served):
        script.go.set()
        url = await served.ticket()

        def judge(data: bytes) -> None:
            if is_claim(data) and not asked.is_set():
                proxy.answering.clear()
                asked.set()

        proxy.judge = judge
        request = asyncio.create_task(served.read(url))
        await asked.wait()
        request.cancel()
        proxy.answering.set()
        await ends(served, url, "done")
        assert len(upstream.calls) == 1


async def test_a_claim_whose_reply_is_lost_is_one_call_and_all_its_viewers_get_everything(
    shared_redis: RedisServer,
) -> None:
    async with behind_a_proxy(shared_redis) as (script, upstream, proxy, served):
        script.go.set()
        url = await served.ticket()
        lost = cut_replies(proxy, "claim", 3)
        first = asyncio.create_task(served.read(url))
        await lost.wait()
        second = asyncio.create_task(served.read(url))
        for viewer in (first, second):
            got = await asyncio.wait_for(viewer, 20)
            if not got.events:  # It was told to come back.
                got = await asyncio.wait_for(served.read(url), 20)
            assert got.end["state"] == "done"
        assert len(upstream.calls) == 1


async def test_a_replica_that_is_full_sends_new_streams_elsewhere_and_starts_nothing(
    redis_url: str,
) -> None:
    async with slow() as (script, upstream):
        limits = {"max_streams": 1, "upstream_url": upstream.url, "redis_url": redis_url}
        async with running(**limits) as served:
            one, other = await served.ticket(ask("one")), await served.ticket(ask("other"))
            await start(served, one)
            full = await served.read(other)
            assert (full.status, full.events) == (200, [])
            assert full.raw.startswith(b"retry: ")
            assert (await served.http.get(other, headers=served.cookie())).status_code == 503
            assert len(upstream.calls) == 1
            script.go.set()
            await ends(served, one, "done")


async def test_claims_that_wait_for_redis_are_bounded_too(own_redis: RedisServer) -> None:
    """A full Redis still tells of tickets, but takes no claim."""
    async with (
        scripted(whole) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url, max_streams=5) as served,
        client(served.url) as http,
    ):
        urls = [await served.ticket() for _ in range(30)]
        headers = {**served.cookie(), "Accept": "text/event-stream"}
        await served.gateway.store.call("CONFIG", "SET", "maxmemory", 1)
        answers = await asyncio.gather(*(http.get(url, headers=headers) for url in urls))
        said = Counter(re.findall(r"^: (\w+)$", each.text, re.MULTILINE)[0] for each in answers)
        assert said == {"overloaded": 25, "store_unavailable": 5}
        await served.gateway.store.call("CONFIG", "SET", "maxmemory", 0)
        for url in urls[:5]:
            assert (await served.read(url)).end["state"] == "done"
        assert len(upstream.calls) == 5


async def test_a_claim_that_could_not_be_sent_is_given_up(own_redis: RedisServer) -> None:
    """Nobody waits for it any more: what it would pay for later might be seen by nobody."""
    async with (
        scripted(whole) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        await served.gateway.store.call("CONFIG", "SET", "maxmemory", 1)
        await served.read(url)
        told_at = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > told_at + 1, "it is given up")
        await served.gateway.store.call("CONFIG", "SET", "maxmemory", 0)
        while asyncio.get_running_loop().time() < told_at + 2:
            assert await state_of(served, url) == "cached"
        assert (await served.read(url)).end["state"] == "done"
        assert len(upstream.calls) == 1


async def test_a_claim_that_was_given_up_leaves_no_name_on_the_list(own_redis: RedisServer) -> None:
    async with behind_a_proxy(own_redis) as (_, upstream, proxy, served):
        url, direct = await served.ticket(), RedisClient(own_redis.url)
        names = runs_key(served.gateway.name)
        proxy.judge = lambda data: 0 if names.encode() in data and b"SADD" in data else None
        await served.read(url)
        await until(lambda: not served.gateway.supervisor._claims, "the claim is given up")
        assert await direct.call("SCARD", names) == 1
        proxy.judge = lambda _: None

        async def is_off() -> bool:
            return bool(await direct.call("SCARD", names) == 0)

        await until(is_off, "it is off the list")
        assert await state_of(served, url) == "cached"
        assert not upstream.calls
        await direct.close()


async def test_a_replica_that_is_full_still_serves_the_streams_it_runs(redis_url: str) -> None:
    async with slow() as (script, upstream):
        limits = {"max_streams": 1, "upstream_url": upstream.url, "redis_url": redis_url}
        async with running(**limits) as served:
            url = await served.ticket()
            got = await start(served, url)
            assert len(got.events) == 1
            script.go.set()
            assert (await served.read(url, last_id=got.last_id)).end["state"] == "done"


# Viewers, here and elsewhere


async def test_a_viewer_on_another_replica_keeps_a_run_alive_until_it_leaves_too(
    shared_redis: RedisServer,
) -> None:
    async with slow() as (_, upstream):
        one = {"redis_url": shared_redis.url, "upstream_url": upstream.url, "grace": 2}
        async with running(**one) as a, running(**one) as b:
            url = await a.ticket()
            here = asyncio.create_task(a.read(url))
            await until(lambda: upstream.calls, "it runs")
            there = asyncio.create_task(b.read(url))
            await until(lambda: b.gateway.fanout.viewers == 1, "it is watched elsewhere")
            here.cancel()
            (call,) = upstream.calls
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call.left.wait(), 4)
            there.cancel()
            await asyncio.wait_for(call.left.wait(), 5)
            await ends(a, url, "cancelled")


async def test_a_run_that_nobody_watches_is_cancelled_after_the_grace_and_not_before(
    redis_url: str,
) -> None:
    async with (
        slow() as (_, upstream),
        running(redis_url=redis_url, upstream_url=upstream.url, grace=1.2) as served,
    ):
        url = await served.ticket()
        seen = list[float]()
        await served.read(url, enough=first_event(seen))
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert time.monotonic() - seen[0] > 1  # From before it left: it is not noticed sooner.
        await ends(served, url, "cancelled")


async def test_a_viewer_who_comes_back_within_the_grace_finds_its_run(redis_url: str) -> None:
    async with (
        slow() as (script, upstream),
        running(redis_url=redis_url, upstream_url=upstream.url, grace=3) as served,
    ):
        url = await served.ticket()
        got = await start(served, url)
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(upstream.calls[0].left.wait(), 0.9)
            await start(served, url)
        script.go.set()
        assert (await served.read(url, last_id=got.last_id)).end["state"] == "done"


async def test_a_redis_that_forgot_who_watches_cancels_nothing(own_redis: RedisServer) -> None:
    """Also where a preset's grace is shorter than that of all others."""
    short = {"default": Preset.model_validate({"grace": 1})}
    async with slow() as (script, upstream):
        one = {"redis_url": own_redis.url, "upstream_url": upstream.url, "grace": 9}
        async with running(**one, presets=short) as owner, running(**one, presets=short) as other:
            url = await owner.ticket()
            await start(owner, url)
            reading = asyncio.create_task(other.read(url))
            await until(lambda: other.gateway.fanout.viewers, "it is watched")
            await owner.gateway.store.call("FLUSHALL")
            ends_at = asyncio.get_running_loop().time() + 3
            while asyncio.get_running_loop().time() < ends_at:  # Three times the grace.
                assert not reading.done()
                await asyncio.sleep(0.1)
            script.go.set()
            assert (await reading).end["state"] == "done"


async def test_a_preset_may_finish_what_nobody_watches(redis_url: str) -> None:
    preset = Preset.model_validate({"on_leave": "finish", "grace": 0.3})
    async with slow() as (script, upstream):
        given = {"redis_url": redis_url, "upstream_url": upstream.url, "grace": 0.6}
        async with running(presets={"keep": preset}, **given) as served:
            answer = await served.http.post("/tickets/keep", json=ask(), headers=served.cookie())
            url = answer.json()["stream_url"]
            await start(served, url)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(upstream.calls[0].left.wait(), 1.5)
            script.go.set()
            await ends(served, url, "done")


async def test_a_page_is_told_to_come_back_within_the_grace_of_its_preset(redis_url: str) -> None:
    preset = Preset.model_validate({"grace": 0.9})
    async with scripted(whole) as upstream:
        given = {"redis_url": redis_url, "upstream_url": upstream.url, "grace": 30}
        async with running(presets={"short": preset}, **given) as served:
            answer = await served.http.post("/tickets/short", json=ask(), headers=served.cookie())
            got = await served.read(answer.json()["stream_url"])
            told = re.match(rb"retry: (\d+)\n", got.raw)
            assert told is not None
            assert int(told[1]) <= 300


async def test_who_reconnects_as_the_stream_ends_gets_the_end(shared_redis: RedisServer) -> None:
    """The record says done while this replica has not read the last entries yet."""
    async with slow() as (script, upstream):
        one = {"redis_url": shared_redis.url, "upstream_url": upstream.url}
        async with running(**one) as a, running(**one) as b:
            url = await a.ticket()
            seen = await start(a, url)
            staying = asyncio.create_task(b.read(url))
            await until(lambda: b.gateway.fanout.viewers == 1)
            await b.gateway.store.call("CLIENT", "KILL", "TYPE", "pubsub")
            script.go.set()
            await ends(a, url, "done")
            again = await b.read(url, last_id=seen.last_id)
            assert again.status == 200
            assert again.end["state"] == "done"
            assert (await staying).end["state"] == "done"


async def test_who_comes_while_the_end_is_being_stored_gets_the_end(
    shared_redis: RedisServer,
) -> None:
    async with behind_a_proxy(shared_redis) as (script, _, proxy, served):
        script.go.set()
        lost = cut_replies(proxy, "seal", 2)
        url = await served.ticket()
        first = asyncio.create_task(served.read(url))
        await lost.wait()
        second = await served.read(url)
        assert (await first).end["state"] == "done"
        assert second.status == 200
        assert second.end["state"] == "done"


# Dead owners


def serve(redis: RedisServer, upstream: ScriptedUpstream, **more: str) -> dict[str, str]:
    """Return the variables of a gateway process."""
    given = {"redis_url": redis.url, "upstream_url": upstream.url, "secrets": SECRET}
    return {**given, "lease": "1", "grace": "9", "heartbeat": "1", "log_level": "warning", **more}


async def via(
    owner: Process, url: str, enough: Callable[[Transcript], bool] = started
) -> Transcript:
    """Read a stream on another process."""
    async with client(owner.url) as http:
        return await read(http, url, headers=cookie(settings()), enough=enough)


async def test_what_a_dead_replica_ran_is_ended_though_nobody_watches(
    own_redis: RedisServer,
) -> None:
    async with (
        slow() as (_, upstream),
        running(redis_url=own_redis.url, upstream_url=upstream.url, **LEASE) as b,
    ):
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            url = await b.ticket()
            await via(a, url)
            a.signal(signal.SIGKILL)
            await ends(b, url, "interrupted")
        assert len(upstream.calls) == 1


async def test_a_replica_that_is_back_loses_no_more_than_was_being_taken(
    own_redis: RedisServer,
) -> None:
    is_takeover, taken = script_is("takeover"), asyncio.Event()
    async with behind_a_proxy(own_redis) as (script, upstream, proxy, successor):

        def judge(data: bytes) -> None:
            if is_takeover(data) and not taken.is_set():
                taken.set()
                proxy.answering.clear()

        with process("serve", "--port", "0", **serve(own_redis, upstream)) as owner:
            urls = [await successor.ticket() for _ in range(100)]
            await asyncio.gather(*(via(owner, url) for url in urls))
            direct = RedisClient(own_redis.url)
            proxy.judge = judge
            owner.signal(signal.SIGSTOP)
            await taken.wait()
            owner.signal(signal.SIGCONT)

            async def beats() -> bool:
                return bool(await direct.call("HVALS", HEARTBEATS) != counters)

            counters = await direct.call("HVALS", HEARTBEATS)
            await until(beats, "it beats again")
            await direct.close()
            proxy.answering.set()
            begun = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > begun + 4, "two leases")
            script.go.set()
            for url in urls:
                await until(partial(ended, successor, url), "it has ended")
            states = [await state_of(successor, url) for url in urls]
        assert set(states) == {"done", "interrupted"}
        assert 1 <= states.count("interrupted") <= 32
        assert len(upstream.calls) == len(urls)


async def ended(served: Served, url: str) -> bool:
    """Say whether a stream has ended."""
    return await state_of(served, url) in {"done", "interrupted"}


async def test_a_run_here_that_another_one_took_away_is_no_reason_to_evict_that_one(
    own_redis: RedisServer,
) -> None:
    """This replica may not have heard yet that it lost the stream; the successor has died since."""
    finish = {"default": Preset.model_validate({"on_leave": "finish"})}
    is_hold = script_is("hold")
    async with behind_a_proxy(own_redis, presets=finish) as (_, _upstream, proxy, zombie):
        url = await zombie.ticket()
        await start(zombie, url)
        (run,) = zombie.gateway.supervisor.active
        stream_id, epoch, successor = run.log.stream_id, run.log.epoch + 5, "successor"
        direct = RedisClient(own_redis.url)
        proxy.judge = lambda data: LOSE_REQUEST if is_hold(data) else None
        run.log.doubt()
        await direct.calls(
            [
                ["HSET", record_key(stream_id), "owner", successor, "epoch", epoch],
                ["XADD", log_key(stream_id), f"{epoch}-0", "0", ""],
                ["SADD", runs_key(successor), stream_id],
                ["HSET", HEARTBEATS, successor, 9],
            ]
        )
        begun = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > begun + 6, "three leases")
        assert await direct.call("HEXISTS", HEARTBEATS, successor)
        proxy.judge = lambda _: None
        await ends(zombie, url, "interrupted")
        await direct.close()


@pytest.mark.parametrize("times", [1, 4, 8])
async def test_a_seal_that_breaks_keeps_no_stream_from_its_end(
    own_redis: RedisServer, times: int
) -> None:
    async with behind_a_proxy(own_redis) as (script, upstream, proxy, served):
        url = await served.ticket()
        viewer = asyncio.create_task(served.read(url))
        await until(lambda: upstream.calls, "it is asked")
        proxy.garble = await nonsense(served.gateway.store, "seal", times)
        script.go.set()
        got = await asyncio.wait_for(viewer, 20)
        assert got.end["state"] == "done"
        await ends(served, url, "done")
        assert len(upstream.calls) == 1


async def test_a_claim_whose_answer_is_not_understood_comes_to_an_end(
    own_redis: RedisServer,
) -> None:
    async with behind_a_proxy(own_redis) as (_, upstream, proxy, served):
        url = await served.ticket()
        claimed = re.compile(rb"(\$7\r\nclaimed\r\n\$13\r\n)\d")
        proxy.misread = lambda data: claimed.sub(rb"\1x", data)
        assert not (await served.read(url)).events
        proxy.misread = lambda data: data
        await ends(served, url, "interrupted")
        assert not upstream.calls


@pytest.mark.parametrize("look", ["completion", "viewer", "DELETE"])
@pytest.mark.parametrize("whose", ["a dead replica's", "ours"])
async def test_a_stream_that_nobody_names_is_ended_by_whoever_looks(
    own_redis: RedisServer, look: str, whose: str
) -> None:
    """Its owner died, and Redis forgot its list."""
    async with running(redis_url=own_redis.url, **LEASE) as served:
        url = await served.ticket()
        gateway = served.gateway
        stream_id = gateway.tickets.verify(url.partition("=")[2]).stream_id
        times: dict[str, Any] = {"start_by": 60, "log_ttl": 600, "max_run": lambda: 600, "lease": 1}
        owner = gateway.name if whose == "ours" else "gone"
        assert (await Records(gateway.store, owner, **times).claim(stream_id, "n")).epoch
        if look == "completion":
            assert await state_of(served, url) == "starting"
        elif look == "DELETE":
            answer = await served.http.delete(url, headers=served.cookie())
            assert answer.json() == {"state": "cancelled"}
        else:
            await served.read(url, enough=lambda got: True)

        async def state() -> bytes:
            return bytes(await gateway.store.call("HGET", record_key(stream_id), "state"))

        async def has_ended() -> bool:
            return await state() == (b"cancelled" if look == "DELETE" else b"interrupted")

        await until(has_ended, "it has ended", 20)


async def test_a_takeover_whose_reply_is_lost_is_carried_through(own_redis: RedisServer) -> None:
    is_takeover = script_is("takeover")
    verdicts = iter([0, 0])
    async with behind_a_proxy(own_redis) as (_, upstream, proxy, b):
        proxy.judge = lambda data: next(verdicts, None) if is_takeover(data) else None
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            url = await b.ticket()
            await via(a, url)
            a.signal(signal.SIGKILL)
            await ends(b, url, "interrupted")


async def test_a_takeover_that_breaks_off_half_way_is_carried_through(
    own_redis: RedisServer,
) -> None:
    """Redis goes away after the takeover and before the seal."""
    is_takeover, taken = script_is("takeover"), asyncio.Event()
    async with behind_a_proxy(own_redis) as (_, upstream, proxy, b):
        cuts = iter([0, 0, 0, 0])

        def judge(data: bytes) -> int | None:
            if is_takeover(data):
                taken.set()
                return None
            return next(cuts, None) if taken.is_set() and b"HMGET" in data else None

        proxy.judge = judge
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            url = await b.ticket()
            await via(a, url)
            a.signal(signal.SIGKILL)
            await ends(b, url, "interrupted")


async def test_two_successors_write_one_end(own_redis: RedisServer) -> None:
    async with slow() as (_, upstream):
        one = {"redis_url": own_redis.url, "upstream_url": upstream.url, **LEASE}
        async with running(**one) as b, running(**one) as c:
            with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
                urls = [await b.ticket() for _ in range(10)]
                await asyncio.gather(*(via(a, url) for url in urls))
                a.signal(signal.SIGKILL)
                for url in urls:
                    on_b, on_c = await asyncio.gather(b.read(url), c.read(url))
                    assert on_b.end["state"] == "interrupted"
                    assert on_b.events == on_c.events


@pytest.mark.parametrize("upstream_says", ["more", "nothing"])
async def test_a_paused_owner_that_was_replaced_notices_and_its_viewers_get_the_one_end(
    own_redis: RedisServer, upstream_says: str
) -> None:
    async with (
        slow() as (script, upstream),
        running(redis_url=own_redis.url, upstream_url=upstream.url, **LEASE) as b,
    ):
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            url = await b.ticket()
            on_a = asyncio.create_task(via(a, url, lambda _: False))
            await until(lambda: upstream.calls)
            on_b = asyncio.create_task(b.read(url))
            await until(lambda: b.gateway.fanout.viewers == 1)
            a.signal(signal.SIGSTOP)
            assert (await on_b).end["state"] == "interrupted"
            if upstream_says == "more":
                script.go.set()
            a.signal(signal.SIGCONT)
            assert (await asyncio.wait_for(on_a, 20)).events == (await on_b).events
            if upstream_says == "nothing":
                await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert len(upstream.calls) == 1


async def test_a_paused_owner_that_nobody_replaced_goes_on(own_redis: RedisServer) -> None:
    async with slow() as (script, upstream):
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            async with client(a.url) as http:
                answer = await http.post("/tickets", json=ask(), headers=cookie(settings()))
            reading = asyncio.create_task(
                via(a, answer.json()["stream_url"], lambda got: "end" in got.names)
            )
            await until(lambda: upstream.calls)
            a.signal(signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(upstream.calls[0].left.wait(), 1.5)
            a.signal(signal.SIGCONT)
            script.go.set()
            assert (await reading).end["state"] == "done"


async def test_a_completion_of_which_one_choice_is_missing_is_not_done(
    own_redis: RedisServer,
) -> None:
    async def half(call: Call) -> None:
        await call.send(OK, sse(chunk("a"), chunk("", finish="stop"), chunk("b", index=1)))
        await call.left.wait()

    async with (
        scripted(half) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url, **LEASE) as b,
    ):
        with process("serve", "--port", "0", **serve(own_redis, upstream)) as a:
            url = await b.ticket(ask(n=2))
            await via(a, url, lambda got: len(got.events) == 3)
            a.signal(signal.SIGKILL)
            assert (await b.read(url)).end["state"] == "interrupted"


# A Redis that forgets


async def test_a_redis_that_comes_back_empty_costs_viewers_nothing(own_redis: RedisServer) -> None:
    async with slow() as (script, upstream):
        one = {"redis_url": own_redis.url, "upstream_url": upstream.url}
        async with running(**one) as a, running(**one) as b:
            url = await a.ticket()
            on_a = asyncio.create_task(a.read(url))
            await until(lambda: upstream.calls)
            await ends(a, url, "streaming")
            on_b = asyncio.create_task(b.read(url))
            await until(lambda: b.gateway.fanout.viewers == 1)
            own_redis.kill()
            own_redis.start()
            script.go.set()
            got = [await asyncio.wait_for(each, 20) for each in (on_a, on_b)]
            assert got[0].events == got[1].events
            assert [got[0].end["state"], len(got[0].events)] == ["done", 5]
            assert len(upstream.calls) == 1


async def test_an_ended_stream_is_kept_through_a_redis_that_comes_back_empty(
    own_redis: RedisServer,
) -> None:
    async with (
        scripted(whole) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url, lease=3) as served,
    ):
        url = await served.ticket()
        before = await served.read(url)
        own_redis.kill()
        own_redis.start()
        await ends(served, url, "done")
        assert (await served.read(url)).events == before.events


async def test_an_ended_stream_is_kept_through_a_redis_that_comes_back_behind(
    own_redis: RedisServer,
) -> None:
    async with (
        slow() as (script, upstream),
        running(redis_url=own_redis.url, upstream_url=upstream.url, lease=3) as served,
    ):
        url = await served.ticket()
        reading = asyncio.create_task(served.read(url))
        await until(lambda: upstream.calls)
        await ends(served, url, "streaming")
        await served.gateway.store.call("SAVE")
        script.go.set()
        assert (await reading).end["state"] == "done"
        own_redis.kill()
        own_redis.start()
        await ends(served, url, "done")


# The end of a replica


async def test_a_completion_that_was_finished_is_done_also_at_the_deadline(
    redis_url: str,
) -> None:
    async def unfinished(call: Call) -> None:
        await call.send(OK, sse(chunk("all"), chunk("", finish="stop")))
        await call.left.wait()

    async with (
        scripted(unfinished) as upstream,
        running(redis_url=redis_url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        await served.read(url, enough=lambda got: len(got.events) == 2)
        await served.gateway.supervisor.drain(0.2)
        assert await state_of(served, url) == "done"


async def test_who_is_left_at_the_deadline_is_ended_by_its_owner(redis_url: str) -> None:
    async with (
        slow() as (_, upstream),
        running(redis_url=redis_url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        await start(served, url)
        await served.gateway.supervisor.drain(0.2)
        got = await served.completion(url)
        assert (got["state"], got["text"]) == ("interrupted", "Hel")


async def test_a_replica_that_ends_leaves_nothing_in_redis_to_wait_for(
    shared_redis: RedisServer,
) -> None:
    async with (
        scripted(whole) as upstream,
        running(redis_url=shared_redis.url, upstream_url=upstream.url) as served,
    ):
        name = served.gateway.name
        await served.read(await served.ticket())
    store = RedisClient(shared_redis.url)
    assert await store.call("HEXISTS", HEARTBEATS, name) == 0
    assert await store.call("EXISTS", runs_key(name)) == 0
    await store.close()


async def test_a_reader_of_text_hears_a_heartbeat_while_nothing_is_text(redis_url: str) -> None:
    """A long tool call is no text: the connection must not look dead to what is between."""

    async def tools(call: Call) -> None:
        await call.send(OK)
        while not call.left.is_set():
            await call.send(sse(b'{"choices":[{"index":0,"delta":{"tool_calls":[]}}]}'))
            await asyncio.sleep(0.1)

    async with (
        scripted(tools) as upstream,
        running(redis_url=redis_url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        reading = served.read(f"{url}&format=text", enough=lambda got: b"\n:\n" in got.raw)
        assert b"\n:\n" in (await asyncio.wait_for(reading, 20)).raw


async def test_a_cancel_that_comes_before_the_upstream_was_asked_asks_nobody(
    redis_url: str,
) -> None:
    async with (
        scripted(whole) as upstream,
        running(redis_url=redis_url, upstream_url=upstream.url) as served,
    ):
        url = await served.ticket()
        answer: httpx.Response = await served.http.delete(url, headers=served.cookie())
        assert answer.json() == {"state": "cancelled"}
        assert (await served.read(url)).end["state"] == "cancelled"
        assert upstream.calls == []


async def test_stopping_ends_also_a_task_that_missed_its_first_cancel() -> None:
    missed = asyncio.Event()

    async def deaf() -> None:  # As asyncio.wait_for of Python 3.11 is, where it ends just then.
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.set()
            await asyncio.Event().wait()

    gateway = Gateway(settings())
    async with gateway.running():
        task = gateway.supervisor._tasks.spawn(deaf())
        await asyncio.sleep(0)
        stopping = asyncio.create_task(gateway.supervisor.stop())
        await asyncio.wait_for(missed.wait(), 20)
        await asyncio.wait_for(stopping, 20)
    assert task.cancelled()

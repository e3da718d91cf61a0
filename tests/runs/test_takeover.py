"""A stream whose replica died goes on as its preset says, is paid for as often as it tells, and
never shows two answers as one."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.auth.tickets import Tickets
from gateway.config.presets import Preset
from gateway.eventlog.entries import EventId
from gateway.eventlog.reader import read_all
from gateway.sse import parse
from gateway.store.client import RedisClient
from gateway.store.keys import log_key, record_key
from tests.eventlog.test_writer import LOSE_REQUEST, proxied
from tests.kept import KEPT, keeps, kind, use_kept_chat
from tests.runs.test_supervisor import ends, know_scripts, script_is
from tests.support import (
    OK,
    SECRET,
    Call,
    Process,
    RedisServer,
    Script,
    ScriptedUpstream,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    process,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)

ALICE = cookie(settings())
LOST = [chunk("lost "), chunk("words ")]
STOP = chunk("", finish="stop")
ANSWER = [chunk("Hel"), chunk("lo"), STOP, b"[DONE]"]
RESTART = {"default": Preset.model_validate({"on_crash": "restart"})}


async def dies(call: Call) -> None:
    """Answer with a few words, then hold on until the one who asked is gone."""
    await call.send(OK, sse(*LOST))
    await call.left.wait()


async def says_nothing(call: Call) -> None:
    """Take the request and be silent."""
    await call.left.wait()


def says(*data: bytes) -> Script:
    """Return the script of an answer that breaks off after this data."""

    async def script(call: Call) -> None:
        await call.send(OK, sse(*data))
        await call.left.wait()

    return script


def in_turn(*scripts: Script) -> Script:
    """Return a script that answers each call after another one; what is left over answers whole."""
    left = iter(scripts)

    async def script(call: Call) -> None:
        await next(left, whole)(call)

    return script


@asynccontextmanager
async def owner(redis_url: str, upstream_url: str, folder: Path) -> AsyncIterator[Process]:
    """Run a replica, that a test may kill, as a process of its own."""
    config = folder / "gateway.toml"
    config.write_text('[presets.default]\non_crash = "restart"\n', "utf-8")
    given = {"redis_url": redis_url, "upstream_url": upstream_url, "secrets": SECRET}
    given |= {"lease": "1", "grace": "9", "heartbeat": "1", "config": str(config)}
    with process("serve", "--port", "0", log_level="error", **given) as started:
        yield started


def successor(
    redis_url: str, upstream_url: str, **more: Any
) -> AbstractAsyncContextManager[Served]:
    """Run a replica in this process that asks again after a death."""
    given = {"presets": RESTART, "redis_url": redis_url, "upstream_url": upstream_url, "grace": 9}
    given["lease"] = 2  # The owner beats three times a second: a slow machine must kill nobody.
    return running(**{**given, **more})


async def via(there: Process, url: str, count: int = 1) -> Transcript:
    """Read the first events of a stream on a process."""
    async with client(there.url) as http:
        return await read(http, url, headers=ALICE, enough=lambda got: len(got.events) >= count)


async def redeemed(there: Process, url: str) -> None:
    """Redeem a ticket on a process, and leave before anything came."""
    async with client(there.url) as http, http.stream("GET", url, headers=ALICE) as response:
        assert response.status_code == 200


@asynccontextmanager
async def crashing(
    redis: RedisServer, folder: Path, *scripts: Script, **more: Any
) -> AsyncIterator[tuple[ScriptedUpstream, Served, Process]]:
    """Run an upstream that answers in turn, a replica here, and a process that a test may kill."""
    async with (
        scripted(in_turn(*scripts)) as upstream,
        successor(redis.url, upstream.url, **more) as b,
        owner(redis.url, upstream.url, folder) as a,
    ):
        yield upstream, b, a


async def left_behind(b: Served, a: Process, count: int = 1) -> str:
    """Return the URL of a stream of which some events came before the process that ran it died."""
    url = await b.ticket()
    await via(a, url, count)
    a.signal(signal.SIGKILL)
    return url


def id_of(url: str) -> str:
    """Return the id of a ticket's stream."""
    return Tickets([SECRET]).verify(url.partition("ticket=")[2]).stream_id


def asked_again(got: Transcript, lost: list[bytes] = LOST) -> None:
    """Check that a transcript is what was lost, a reset, and one whole answer."""
    assert got.names == [*[""] * len(lost), "reset", *[""] * len(ANSWER), "end"]
    assert json.loads(got.events[len(lost)].data) == {"attempt": 2}
    assert got.data == [*lost, *ANSWER]
    assert (got.end["state"], got.end["attempts"], got.end["finish_reason"]) == ("done", 2, "stop")
    positions = [EventId.parse(each) for each in got.ids]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(positions))


# Asked again


async def test_a_killed_replicas_stream_is_asked_again_once_and_every_viewer_sees_the_same(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with scripted(in_turn(dies)) as upstream, AsyncExitStack() as stack:
        sites = [
            await stack.enter_async_context(owner(own_redis.url, upstream.url, tmp_path))
            for _ in range(3)
        ]
        https = [await stack.enter_async_context(client(each.url)) for each in sites]
        answer = await https[1].post("/tickets", json=ask(), headers=ALICE)
        url = str(answer.json()["stream_url"])
        before = await via(sites[0], url, len(LOST))
        staying = [asyncio.create_task(read(http, url, headers=ALICE)) for http in https[1:]]
        sites[0].signal(signal.SIGKILL)
        got = await asyncio.wait_for(asyncio.gather(*staying), 20)
        before.extend(await read(https[1], url, last_id=before.last_id, headers=ALICE))
        late = await read(https[2], url, headers=ALICE)
        for each in (*got, before, late):
            asked_again(each)
            assert each.events == late.events
        for http in https[1:]:
            assert (await read(http, url, last_id=late.last_id, headers=ALICE)).status == 204
            told = await http.get(url.replace("/stream", "/completion"), headers=ALICE)
            assert told.json()["text"] == "Hello"
            assert (told.json()["state"], told.json()["attempts"]) == ("done", 2)
            raw = await http.get(f"{url}&format=raw", headers=ALICE)
            assert raw.text == "Hello"  # What the reset took back is not in it.
    assert len(upstream.calls) == 2
    assert upstream.calls[0].body == upstream.calls[1].body


async def test_two_successors_ask_each_stream_again_once(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    asked: dict[str, int] = {}

    async def script(call: Call) -> None:
        prompt = call.json["messages"][0]["content"]
        asked[prompt] = asked.get(prompt, 0) + 1
        await (dies if asked[prompt] == 1 else whole)(call)

    async with (
        scripted(script) as upstream,
        successor(own_redis.url, upstream.url) as b,
        successor(own_redis.url, upstream.url) as c,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):
        urls = [await b.ticket(ask(f"prompt {number}")) for number in range(40)]
        await asyncio.gather(*(via(a, url, len(LOST)) for url in urls))
        there = [asyncio.create_task(at.read(url)) for at in (b, c) for url in urls]
        await until(lambda: b.gateway.fanout.viewers + c.gateway.fanout.viewers == 80)
        a.signal(signal.SIGKILL)
        got = await asyncio.wait_for(asyncio.gather(*there), 20)
        for on_b, on_c in zip(got[:40], got[40:], strict=True):
            asked_again(on_b)
            assert on_b.events == on_c.events
        assert set(asked.values()) == {2}


async def test_a_further_call_is_counted_and_its_reset_logged_before_it_is_sent(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    store, found = RedisClient(own_redis.url), list[Any]()

    async def looks(call: Call) -> None:
        found.append(await store.call("HGET", record_key(id_of(url)), "attempts"))
        found.append(await store.call("XRANGE", log_key(id_of(url)), "-", "+"))
        await whole(call)

    async with crashing(own_redis, tmp_path, dies, looks) as (_, b, a):
        url = await left_behind(b, a, len(LOST))
        asked_again(await b.read(url))
        attempts, entries = found
        assert attempts == b"2"
        assert b"event: reset" in entries[-1][1][1]
    await store.close()


async def test_a_call_that_was_never_answered_counts_as_paid(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, says_nothing) as (upstream, b, a):
        url = await b.ticket()
        await redeemed(a, url)
        await until(lambda: upstream.calls)
        a.signal(signal.SIGKILL)
        asked_again(await b.read(url), [])
    assert len(upstream.calls) == 2


async def test_sure_refusals_after_a_restart_have_their_own_number(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async def busy(call: Call) -> None:
        await call.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n")

    async with crashing(own_redis, tmp_path, dies, busy, upstream_retries=1) as (upstream, b, a):
        url = await left_behind(b, a)
        got = await b.read(url)
        assert (got.end["state"], got.end["attempts"], len(upstream.calls)) == ("done", 3, 3)
        assert got.names.count("reset") == 1


async def test_a_page_that_wants_the_text_alone_is_told_of_the_reset(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies) as (_, b, a):
        url = await left_behind(b, a)
        got = await b.read(f"{url}&format=text")
        assert got.names == ["", "", "reset", "", "", "end"]
        assert got.data == [b"lost ", b"words ", b"Hel", b"lo"]


async def test_a_request_that_kills_whoever_asks_it_is_not_asked_for_ever(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(in_turn(dies, dies)) as upstream,
        owner(own_redis.url, upstream.url, tmp_path) as a,
        owner(own_redis.url, upstream.url, tmp_path) as b,
    ):
        async with client(b.url) as http:
            answer = await http.post("/tickets", json=ask(), headers=ALICE)
        url = str(answer.json()["stream_url"])
        await via(a, url, len(LOST))
        a.signal(signal.SIGKILL)
        await via(b, url, 2 * len(LOST) + 1)
        async with successor(own_redis.url, upstream.url) as c:
            b.signal(signal.SIGKILL)
            got = await asyncio.wait_for(c.read(url), 20)
            assert got.names == ["", "", "reset", "", "", "failure", "end"]
            assert (got.end["state"], got.end["attempts"]) == ("interrupted", 2)
            assert got.end["usage"] == {"completion_tokens": 2, "estimated": True}
            assert (await c.completion(url))["text"] == "lost words "
    assert len(upstream.calls) == 2


async def test_a_paused_owner_whose_stream_was_asked_again_hangs_up_and_shows_the_new_answer(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(in_turn(dies)) as upstream,
        successor(own_redis.url, upstream.url) as b,
        owner(own_redis.url, upstream.url, tmp_path) as a,
        client(a.url) as http,
    ):
        url = await b.ticket()
        on_a = asyncio.create_task(read(http, url, headers=ALICE))
        await until(lambda: upstream.calls)
        await ends(b, url, "streaming")
        a.signal(signal.SIGSTOP)
        on_b = await b.read(url)
        asked_again(on_b)
        assert not upstream.calls[0].left.is_set()
        a.signal(signal.SIGCONT)
        assert (await asyncio.wait_for(on_a, 20)).events == on_b.events
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
    assert len(upstream.calls) == 2


async def test_an_end_in_a_paused_owner_s_place_outlives_a_redis_that_forgets_it(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Else the owner wakes up, writes on, and one viewer has more than was ended for another."""
    async with (
        scripted(dies) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url, grace=9, lease=3) as b,
        owner(own_redis.url, upstream.url, tmp_path) as a,
        client(a.url) as http,
    ):
        url = await b.ticket()
        on_a = asyncio.create_task(read(http, url, headers=ALICE))
        await until(lambda: upstream.calls)
        await ends(b, url, "streaming")
        a.signal(signal.SIGSTOP)
        on_b = await b.read(url)
        assert (on_b.end["state"], on_b.data[:2]) == ("interrupted", LOST)
        own_redis.kill()
        own_redis.start()
        await ends(b, url, "interrupted")
        a.signal(signal.SIGCONT)
        assert (await asyncio.wait_for(on_a, 20)).events == on_b.events
        assert (await b.read(url)).events == on_b.events
    assert len(upstream.calls) == 1


# Not asked again


@pytest.mark.parametrize(
    ("data", "state"),
    [
        ([chunk("all", finish="stop")], "done"),
        ([chunk("x"), b'{"error":{"message":"no"}}'], "interrupted"),
    ],
)
async def test_what_the_upstream_had_ended_is_not_asked_again(
    own_redis: RedisServer, tmp_path: Path, data: list[bytes], state: str
) -> None:
    async with crashing(own_redis, tmp_path, says(*data)) as (upstream, b, a):
        url = await left_behind(b, a, len(data))
        got = await b.read(url)
        assert (got.end["state"], got.end["attempts"], got.data) == (state, 1, data)
    assert len(upstream.calls) == 1


async def test_a_cancel_that_is_stored_wins_over_a_restart(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies) as (upstream, b, a):
        url = await b.ticket()
        await via(a, url, len(LOST))
        a.signal(signal.SIGSTOP)
        await b.http.delete(url, headers=ALICE)
        got = await b.read(url)
        assert (got.end["state"], got.names) == ("cancelled", ["", "", "end"])
    assert len(upstream.calls) == 1


async def test_a_cancel_between_the_takeover_and_the_new_run_costs_nothing(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """There is no run to be woken yet, and the record was read before."""
    got, calls = await cancelled_meanwhile(own_redis, tmp_path, in_turn(dies), len(LOST))
    assert (got.end["state"], got.names) == ("cancelled", ["", "", "reset", "end"])
    assert len(calls) == 1


@pytest.mark.usefixtures("kept")
async def test_a_kept_answer_that_is_cancelled_before_it_is_gone_on_with_took_its_prompt(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    got, _ = await cancelled_meanwhile(own_redis, tmp_path, keeps, 2)
    assert got.end["state"] == "cancelled"
    assert got.end["tokens"]["prompt"] > 0


async def cancelled_meanwhile(
    own_redis: RedisServer, tmp_path: Path, script: Script, seen: int
) -> tuple[Transcript, list[Call]]:
    """Cancel a stream between the takeover and the new run; return what came of it, and calls."""
    is_takeover, is_read = script_is("takeover"), script_is("read")
    taken, reads = asyncio.Event(), asyncio.Event()
    async with (
        scripted(script) as upstream,
        proxied(own_redis) as proxy,
        successor(proxy.url, upstream.url) as b,
        running(redis_url=own_redis.url, lease=60) as c,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):
        await know_scripts(b)

        def judge(data: bytes) -> None:
            if is_takeover(data):
                taken.set()
            elif taken.is_set() and is_read(data) and not reads.is_set():
                reads.set()
                proxy.answering.clear()

        proxy.judge = judge
        url = await c.ticket(ask(n=2))
        await via(a, url, seen)
        a.signal(signal.SIGKILL)
        await asyncio.wait_for(reads.wait(), 20)
        assert (await c.http.delete(url, headers=ALICE)).json() == {"state": "cancelled"}
        proxy.answering.set()
        return await asyncio.wait_for(b.read(url), 20), upstream.calls


async def test_a_replica_that_is_full_asks_nothing_again(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies, dies, max_streams=1) as (upstream, b, a):
        own, url = await b.ticket(), await b.ticket()
        await via(a, url)
        await b.read(own, enough=lambda got: got.events)
        a.signal(signal.SIGKILL)
        await ends(b, url, "interrupted")
    assert len(upstream.calls) == 2


async def test_a_replica_that_is_leaving_lets_another_one_ask_again(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(in_turn(dies)) as upstream,
        successor(own_redis.url, upstream.url) as leaving,
        successor(own_redis.url, upstream.url, lease=3) as staying,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):
        url = await staying.ticket()
        await via(a, url)
        await leaving.gateway.supervisor.drain(0.1)
        a.signal(signal.SIGKILL)
        asked_again(await staying.read(url))
        record = await staying.gateway.records.read(id_of(url))
        assert record is not None
        assert record.owner == staying.gateway.name


# A run that was taken over is a run like any other


async def test_both_answers_together_are_no_larger_than_a_stream_may_be(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    half = chunk("x" * 3000)
    async with crashing(own_redis, tmp_path, says(half), says(half), max_log=4096) as (_, b, a):
        url = await left_behind(b, a)
        got = await b.read(url)
        assert (got.end["state"], got.failure["code"]) == ("truncated", "log_full")
        assert got.data == [half]


async def test_what_was_asked_again_is_ended_by_its_owner_at_the_deadline_of_a_deploy(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies, dies) as (upstream, b, a):
        url = await left_behind(b, a)
        await b.read(url, enough=lambda got: len(got.events) == 5)
        await b.gateway.supervisor.drain(0.2)
        told = await b.completion(url)
        assert (told["state"], told["attempts"], told["text"]) == ("interrupted", 2, "lost words ")
        await asyncio.wait_for(upstream.calls[1].left.wait(), 20)


@pytest.mark.parametrize("how", ["cancel", "grace"])
async def test_what_was_asked_again_can_be_stopped(
    own_redis: RedisServer, tmp_path: Path, how: str
) -> None:
    grace = 2 if how == "grace" else 9
    async with crashing(own_redis, tmp_path, dies, dies, grace=grace) as (upstream, b, a):
        url = await left_behind(b, a)
        await b.read(url, enough=lambda got: len(got.events) == 5)
        if how == "cancel":
            await b.http.delete(url, headers=ALICE)
        await asyncio.wait_for(upstream.calls[1].left.wait(), 20)
        await ends(b, url, "cancelled")


async def test_a_takeover_that_breaks_off_half_way_asks_again_once(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Redis goes away after the takeover, before its log is read."""
    is_takeover, taken = script_is("takeover"), asyncio.Event()
    async with (
        scripted(in_turn(dies)) as upstream,
        proxied(own_redis) as proxy,
        successor(proxy.url, upstream.url) as b,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):
        await know_scripts(b)
        cuts = iter([0, 0, 0, 0])

        def judge(data: bytes) -> int | None:
            if is_takeover(data):
                taken.set()
            return next(cuts, None) if taken.is_set() and b"XRANGE" in data else None

        proxy.judge = judge
        url = await left_behind(b, a, len(LOST))
        await until(lambda: len(upstream.calls) == 2)
        await ends(b, url, "done")
        asked_again(await b.read(url))
    assert len(upstream.calls) == 2


async def test_an_eviction_that_is_repeated_leaves_the_new_run_alone(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Redis went away after the streams were taken over, before the dead one was forgotten."""
    tries = list[bytes]()
    async with (
        scripted(dies) as upstream,
        proxied(own_redis) as proxy,
        successor(proxy.url, upstream.url) as b,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):

        def judge(data: bytes) -> int | None:
            if b"dead replica's list" not in data:  # Of the script; Redis does not know it yet.
                return None
            tries.append(data)
            return LOSE_REQUEST if len(tries) < 5 else None

        proxy.judge = judge
        url = await left_behind(b, a, len(LOST))
        await until(lambda: len(tries) == 5, "it was evicted at last")
        got = await b.read(url, enough=lambda got: len(got.events) == 5)
        assert got.names == ["", "", "reset", "", ""]
        assert (await b.completion(url))["state"] == "streaming"
    assert len(upstream.calls) == 2


async def test_a_redis_that_comes_back_empty_after_a_restart_costs_viewers_nothing(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.send(OK, sse(ANSWER[0]))
        await go.wait()
        await call.send(sse(*ANSWER[1:]))

    async with (
        scripted(in_turn(dies, waits)) as upstream,
        successor(own_redis.url, upstream.url) as b,
        running(redis_url=own_redis.url, lease=60, grace=9) as c,
    ):
        async with owner(own_redis.url, upstream.url, tmp_path) as a:
            url = await b.ticket()
            await via(a, url, len(LOST))
            a.signal(signal.SIGKILL)
            seen = [asyncio.Event(), asyncio.Event()]
            reading = [
                asyncio.create_task(at.read(url, enough=_marks(event)))
                for at, event in zip((b, c), seen, strict=True)
            ]
            await asyncio.gather(*(asyncio.wait_for(each.wait(), 20) for each in seen))
        own_redis.kill()
        own_redis.start()
        go.set()
        for each in reading:
            asked_again(await asyncio.wait_for(each, 20))
        logged = await read_all(b.gateway.store, id_of(url))
        asked_again(Transcript(events=parse(b"".join(entry.frames for entry in logged))))
    assert len(upstream.calls) == 2


def _marks(event: asyncio.Event) -> Any:
    """Return a condition that never holds, but tells when the new answer has begun."""

    def look(got: Transcript) -> bool:
        if got.data[-1:] == ANSWER[:1]:
            event.set()
        return False

    return look


# Re-attached


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every preset speak a chat that is kept."""
    use_kept_chat(monkeypatch)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("on_crash", ["interrupt", "restart"])
async def test_an_upstream_that_keeps_its_answers_is_gone_on_with_and_nothing_is_lost_or_paid_again(
    own_redis: RedisServer, tmp_path: Path, on_crash: str
) -> None:
    presets = {"default": Preset.model_validate({"on_crash": on_crash})}
    async with (
        scripted(keeps) as upstream,
        successor(own_redis.url, upstream.url, presets=presets) as b,
        owner(own_redis.url, upstream.url, tmp_path) as a,
    ):
        url = await b.ticket(ask(n=2))
        before = await via(a, url, 2)
        a.signal(signal.SIGKILL)
        before.extend(await b.read(url, last_id=before.last_id))
        assert (await b.read(url)).events == before.events
        assert (before.names, before.data) == ([*[""] * 4, "end"], KEPT)
        # Also the choice that had finished before counts: without it this would be truncated.
        assert (before.end["state"], before.end["attempts"]) == ("done", 1)
        assert (await b.completion(url))["text"] == "Hello"
        assert upstream.calls[-1].head.startswith(b"GET ")
        assert [kind(call) for call in upstream.calls] == ["create", "rest"]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("seen", [[], LOST])
async def test_an_answer_that_cannot_be_gone_on_with_is_asked_again(
    own_redis: RedisServer, tmp_path: Path, seen: list[bytes]
) -> None:
    """Nothing is known of it, or what is known cannot be understood, which raises."""
    async with crashing(own_redis, tmp_path, says(*seen)) as (upstream, b, a):
        url = await b.ticket()
        await redeemed(a, url)
        await ends(b, url, "streaming" if seen else "starting")
        await until(lambda: upstream.calls)
        a.signal(signal.SIGKILL)
        asked_again(await b.read(url), seen)
        stops = ["stop"] if seen else []  # Else two would be made, and both be paid for.
        await until(lambda: [k for c in upstream.calls if (k := kind(c)) != "create"] == stops)


@pytest.mark.usefixtures("kept")
async def test_the_rest_of_a_kept_answer_is_no_other_preset_s_to_give(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async def refuses_some(call: Call) -> None:
        if kind(call) == "create" and call.json["n"] == 1:
            await call.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: 60\r\n\r\n")
        else:
            await keeps(call)

    async with scripted(refuses_some) as upstream, scripted(whole) as other:
        tables = {"default": {"fallback": ["other"]}, "other": {"url": other.url}}
        presets = {name: Preset.model_validate(each) for name, each in tables.items()}
        async with (
            successor(own_redis.url, upstream.url, presets=presets) as b,
            owner(own_redis.url, upstream.url, tmp_path) as a,
        ):
            assert (await b.read(await b.ticket(ask(n=1)))).end["preset"] == "other"
            url = await b.ticket(ask(n=2))
            before = await via(a, url, 2)
            a.signal(signal.SIGKILL)
            before.extend(await b.read(url, last_id=before.last_id))
    assert (before.data, before.end["state"], before.end["preset"]) == (KEPT, "done", "default")
    assert len(other.calls) == 1


@pytest.mark.usefixtures("kept")
async def test_a_kept_answer_of_a_dead_replica_that_was_cancelled_is_stopped(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, keeps) as (upstream, b, a):
        url = await b.ticket(ask(n=2))
        await via(a, url, 2)
        a.signal(signal.SIGKILL)
        await b.http.delete(url, headers=ALICE)
        assert (await b.read(url)).end["state"] == "cancelled"
        await until(lambda: [kind(call) for call in upstream.calls] == ["create", "stop"])

"""The HTTP contract: tickets, streams and where they go on, completions, cancels, retries."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis
from starlette.routing import Router

from gateway.app import Gateway
from gateway.eventlog.fanout import POLL
from gateway.store.keys import DATASET_ID, log_key, record_key
from tests.eventlog.test_writer import proxied
from tests.runs.test_supervisor import script_is
from tests.support import (
    OK,
    Call,
    RedisServer,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    gateway,
    running,
    served,
    settings,
    sse,
    until,
)

LISTED = "https://app.example"
STREAM = {"Accept": "text/event-stream"}
LATER = re.compile(rb"retry: \d+\n(: [a-z_]+\n)?")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing here makes the gateway log an error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


class Held:
    """A script that sends some events, then waits to be let go."""

    def __init__(self, *first: bytes) -> None:
        self.go = asyncio.Event()
        self._first = first or (sse(chunk("Hel")),)

    async def __call__(self, call: Call) -> None:
        """Send the first part, wait, send the rest."""
        await call.send(OK, *self._first)
        waits = [asyncio.create_task(each.wait()) for each in (self.go, call.left)]
        _, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))


def stream_id_of(gate: Served, url: str) -> str:
    """Return the id of the stream that a ticket's URL names."""
    return gate.gateway.tickets.verify(url.partition("=")[2]).stream_id


def events(number: int) -> Any:
    """Tell when a transcript has as many events."""
    return lambda got: len(got.events) >= number


# POST /tickets


async def test_a_ticket_is_created_without_asking_anybody(redis_url: str) -> None:
    async with gateway(redis_url=redis_url) as (gate, upstream):
        answer = await gate.post()
        told = answer.json()
    assert (answer.status_code, set(told)) == (201, {"ticket", "stream_url", "expires_in"})
    assert told["stream_url"] == f"/stream?ticket={told['ticket']}" == answer.headers["location"]
    assert told["expires_in"] == 60
    assert answer.headers["cache-control"] == "no-store"
    assert upstream.calls == []


async def test_the_request_goes_upstream_as_it_came_with_stream_and_usage_asked_for() -> None:
    body = ask("“Grüße” \ud800 \x00", temperature=0.1, seed=2**60, tools=[], user=None)
    headers = {"Content-Type": "application/json", **STREAM}
    async with gateway() as (gate, upstream):
        headers |= gate.cookie()
        await gate.http.post("/tickets", content=json.dumps(body), headers=headers)
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    assert upstream.calls[0].json == sent


async def test_stream_options_of_the_request_are_kept() -> None:
    options = {"include_usage": False, "include_obfuscation": False}
    async with gateway() as (gate, upstream):
        await gate.read(await gate.ticket(ask(stream=True, stream_options=options)))
    assert upstream.calls[0].json["stream_options"] == options


async def test_a_preset_has_a_url_of_its_own() -> None:
    presets = {"fast": {"force": {"model": "small"}, "include_usage": False}}
    async with gateway(presets=presets) as (gate, upstream):
        answer = await gate.http.post("/tickets/fast", json=ask(), headers=gate.cookie())
        await gate.read(answer.json()["stream_url"])
    assert upstream.calls[0].json == {**ask(), "model": "small", "stream": True}


async def test_a_public_url_makes_the_stream_url_absolute() -> None:
    async with running(public_url="https://chat.example/") as gate:
        answer = await gate.post()
    assert answer.json()["stream_url"].startswith("https://chat.example/stream?ticket=")
    assert answer.headers["location"] == answer.json()["stream_url"]


async def test_a_stream_url_is_short_whatever_the_names() -> None:
    async with running() as gate:
        url = await gate.ticket(
            ask("x" * 9000), subject="ü" * 128, **{"Idempotency-Key": "k" * 255}
        )
    assert len(url) < 300


# Idempotency-Key

KEY = {"Idempotency-Key": "one"}


async def test_the_same_key_again_is_the_same_ticket(redis_url: str) -> None:
    async with running(redis_url=redis_url) as gate:
        first = await gate.post(subject="bob", **KEY)
        again = await gate.post(subject="bob", **KEY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["ticket"] == again.json()["ticket"]


async def test_a_key_knows_the_same_body_with_its_members_in_another_order() -> None:
    async with running() as gate:
        first = await gate.post(ask(seed=1), **KEY)
        again = await gate.post({"seed": 1, **ask()}, **KEY)
    assert (again.status_code, again.json()["ticket"]) == (200, first.json()["ticket"])


async def test_the_same_key_with_another_body_is_refused() -> None:
    async with running() as gate:
        await gate.post(**KEY)
        other = await gate.post(ask("Something else"), **KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_key_belongs_to_its_subject_and_preset() -> None:
    async with running(presets={"fast": {}}) as gate:
        first = await gate.post(**KEY)
        other = await gate.post(ask("Mine"), subject="bob", **KEY)
        headers = {**gate.cookie(), **KEY}
        fast = await gate.http.post("/tickets/fast", json=ask("Fast"), headers=headers)
    assert [each.status_code for each in (first, other, fast)] == [201, 201, 201]
    assert len({each.json()["ticket"] for each in (first, other, fast)}) == 3


async def test_a_key_whose_ticket_ran_out_unredeemed_gives_a_new_one(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, start_by=1.5) as (gate, upstream):
        old = await gate.ticket(**KEY)
        await until(lambda: expired(gate, old))
        fresh = await gate.post(**KEY)
        assert fresh.status_code == 201
        assert (await gate.read(old)).status == 410
        assert upstream.calls == []
        assert (await gate.read(fresh.json()["stream_url"])).end["state"] == "done"


async def expired(gate: Served, url: str) -> bool:
    """Tell whether a ticket ran out."""
    return bool((await gate.completion(url))["state"] == "expired")


async def test_a_key_of_a_running_or_ended_stream_still_names_it() -> None:
    held = Held()
    async with gateway(held) as (gate, upstream):
        url = await gate.ticket(**KEY)
        await gate.read(url, enough=events(1))
        running_ = await gate.post(**KEY)
        held.go.set()
        await gate.read(url)
        ended = await gate.post(**KEY)
    for again in (running_, ended):
        assert (again.status_code, again.json()["stream_url"]) == (200, url)
        assert again.json()["expires_in"] == 0
    assert len(upstream.calls) == 1


async def test_twenty_posts_at_once_with_one_key_make_one_ticket(redis_url: str) -> None:
    async with running(redis_url=redis_url) as gate:
        posts = (gate.post(subject="carol", **KEY) for _ in range(20))
        answers = await asyncio.gather(*posts)
    assert sorted(each.status_code for each in answers) == [200] * 19 + [201]
    assert len({each.json()["ticket"] for each in answers}) == 1


# The one-request form


async def test_a_post_that_accepts_a_stream_gets_it_at_once(redis_url: str) -> None:
    async with gateway(redis_url=redis_url) as (gate, upstream):
        answer = await gate.post(**STREAM)
        again = await gate.read(answer.headers["content-location"])
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"event: end\n" in answer.content
    assert without_retry(answer.content) == without_retry(again.raw)
    assert len(upstream.calls) == 1


def without_retry(raw: bytes) -> bytes:
    """Return a stream without what differs between two connections."""
    return raw.partition(b"\n")[2].replace(b":\n", b"")


async def test_a_repeated_one_request_form_attaches_and_goes_on_from_the_last_id() -> None:
    async with gateway() as (gate, upstream):
        whole_ = await gate.read((await gate.post(**STREAM, **KEY)).headers["content-location"])
        rest = await gate.post(**STREAM, **KEY, **{"Last-Event-ID": whole_.ids[1]})
        over = await gate.post(**STREAM, **KEY, **{"Last-Event-ID": whole_.last_id})
    assert whole_.raw.endswith(without_retry(rest.content))
    assert rest.content.count(b"id: ") == 3
    assert over.status_code == 204
    assert len(upstream.calls) == 1


async def test_a_post_whose_claim_is_late_is_told_where_the_stream_will_be(
    own_redis: RedisServer,
) -> None:
    """The claim goes on and is paid for: without a URL nobody could find what it brings."""
    is_claim = script_is("claim")
    async with proxied(own_redis) as proxy, gateway(redis_url=proxy.url) as (gate, upstream):

        def hold(request: bytes) -> None:
            if is_claim(request):
                proxy.answering.clear()

        await gate.read(await gate.ticket())  # The scripts are known by now.
        proxy.judge = hold
        answer = await gate.post(**STREAM)
        assert answer.status_code == 503
        assert answer.json()["detail"] == "The claim is not answered yet."
        proxy.judge = lambda _: None
        proxy.answering.set()
        got = await gate.read(answer.headers["content-location"])
        assert got.end["state"] == "done"
        assert len(upstream.calls) == 2


# GET /stream: who may look, and when


async def test_nothing_is_paid_for_a_post_whose_caller_has_gone(own_redis: RedisServer) -> None:
    """It names no stream that anybody could come back to, and SDKs send another POST."""
    async with proxied(own_redis) as proxy, gateway(redis_url=proxy.url) as (gate, upstream):

        def hold(request: bytes) -> None:
            if b"Hello?" in request:
                proxy.answering.clear()

        proxy.judge = hold
        posting = asyncio.create_task(gate.post(**STREAM))
        await until(lambda: not proxy.answering.is_set())
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
        await gate.http.get("/healthz")  # By then it has seen that.
        proxy.judge = lambda _: None
        proxy.answering.set()
        await gate.read(await gate.ticket())
        assert len(upstream.calls) == 1


async def test_twenty_viewers_at_once_see_one_stream_of_one_call(redis_url: str) -> None:
    async with gateway(redis_url=redis_url) as (gate, upstream):
        url = await gate.ticket()
        looks = [asyncio.create_task(gate.read(url)) for _ in range(20)]
        seen = [await asyncio.wait_for(look, 20) for look in looks]
    assert {each.end["state"] for each in seen} == {"done"}
    assert len({tuple(each.events) for each in seen}) == 1
    assert len(upstream.calls) == 1


async def test_rushes_for_fresh_tickets_leave_no_viewer_behind(shared_redis: RedisServer) -> None:
    """A viewer may come between the claim in Redis and its reply."""
    async with gateway(redis_url=shared_redis.url, max_streams=1000) as (gate, upstream):
        urls = [await gate.ticket() for _ in range(15)]
        rush = [asyncio.create_task(gate.read(url)) for url in urls for _ in range(8)]
        _, behind = await asyncio.wait(rush, timeout=15)
        for look in behind:
            look.cancel()
    assert not behind
    assert len(upstream.calls) == 15


async def test_a_viewer_who_comes_before_a_claim_is_answered_sees_the_stream() -> None:
    """The record may name this replica before it knows: the claim's reply was lost."""
    async with gateway() as (gate, _):
        url = await gate.ticket()
        stream_id = stream_id_of(gate, url)
        fanout = gate.gateway.fanout
        early = await fanout.attach(stream_id, gate.gateway.name, None)
        assert (await gate.read(url)).end["state"] == "done"
        await until(lambda: early.tail.ended, "the early viewer hears of it", 20)
        fanout.detach(early)


async def test_whoever_comes_while_a_stream_ends_sees_its_end(redis_url: str) -> None:
    """The record may say that it is over before the owner knows that its end is stored."""
    async with gateway(redis_url=redis_url) as (gate, upstream):
        for _ in range(10):
            url = await gate.ticket()
            rush = [asyncio.create_task(gate.read(url)) for _ in range(3)]
            for _ in range(40):
                rush.append(asyncio.create_task(gate.read(url)))
                await asyncio.sleep(0)
            seen = [await asyncio.wait_for(look, 20) for look in rush]
            assert {(each.status, each.names[-1]) for each in seen} == {(200, "end")}
    assert len(upstream.calls) == 10


async def test_the_start_by_time_of_a_ticket_is_kept(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, start_by=0.3) as (gate, upstream):
        url = await gate.ticket()
        await until(lambda: expired(gate, url))
        answer = await gate.http.get(url, headers={**gate.cookie(), **STREAM})
    assert (answer.status_code, answer.json()["code"]) == (410, "ticket_expired")
    assert upstream.calls == []


async def test_a_redeemed_ticket_outlives_its_start_by_time() -> None:
    async with gateway(start_by=1.5) as (gate, upstream):
        url = await gate.ticket()
        first = await gate.read(url)
        other = await gate.ticket()
        await until(lambda: expired(gate, other))
        assert (await gate.read(url)).events == first.events
    assert len(upstream.calls) == 1


async def test_what_redis_forgot_is_not_said_never_to_have_been_redeemed(
    own_redis: RedisServer,
) -> None:
    """A page that hears so asks anew: it would be paid for again."""
    async with gateway(redis_url=own_redis.url) as (gate, upstream):
        url = await gate.ticket()
        await gate.read(url)
    own_redis.kill()
    own_redis.start()
    async with running(redis_url=own_redis.url, lease=2) as other:
        codes: list[str] = []

        async def gone_for_good() -> bool:
            answer = await other.http.get(url, headers=other.cookie())
            codes.append(answer.json()["code"])
            return bool(answer.status_code == 410)

        await until(gone_for_good)
    assert codes[-1] == "log_expired"
    assert len(upstream.calls) == 1


async def test_a_log_that_ran_out_is_gone_but_a_reconnect_only_stops(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, log_ttl=0.3) as (gate, upstream):
        url = await gate.ticket()
        got = await gate.read(url)
        key = record_key(stream_id_of(gate, url))
        await until(lambda: gone(gate, key))
        answer = await gate.http.get(url, headers={**gate.cookie(), **STREAM})
        reconnect = await gate.read(url, last_id=got.ids[0])
    assert (answer.status_code, answer.json()["code"]) == (410, "log_expired")
    assert (reconnect.status, reconnect.raw) == (204, b"")
    assert len(upstream.calls) == 1


async def gone(gate: Served, key: str) -> bool:
    """Tell whether a key is not in the store."""
    return not await gate.gateway.store.call("EXISTS", key)


async def test_a_reconnect_needs_the_cookie_too_but_an_open_stream_outlives_it() -> None:
    held = Held()
    async with gateway(held, cookie_max_age=1) as (gate, _):
        url, headers = await gate.ticket(), gate.cookie()
        look = asyncio.create_task(gate.read(url))
        await until(lambda: refused_now(gate, url, headers), "the cookie is too old")
        held.go.set()
        assert (await look).end["state"] == "done"


async def refused_now(gate: Served, url: str, headers: dict[str, str]) -> bool:
    """Tell whether these headers do not pass any more."""
    answer = await gate.http.get(url.replace("stream", "completion", 1), headers=headers)
    return answer.status_code == 401


# GET /stream: where it goes on


@asynccontextmanager
async def ended(**changes: Any) -> AsyncIterator[tuple[Served, str, Transcript]]:
    """A stream of five events, ended; its events came in one piece and share log entries."""
    async with gateway(**changes) as (gate, upstream):
        url = await gate.ticket()
        got = await gate.read(url)
        assert got.names == ["", "", "", "", "end"]
        yield gate, url, got
        assert len(upstream.calls) == 1


async def test_a_reconnect_gets_what_follows_its_id_wherever_it_was(redis_url: str) -> None:
    async with ended(redis_url=redis_url) as (gate, url, got):
        for at, last_id in enumerate(got.ids[:-1], 1):
            rest = await gate.read(url, last_id=last_id)
            assert rest.events == got.events[at:], last_id


async def test_another_replica_goes_on_wherever_the_first_was(shared_redis: RedisServer) -> None:
    redis_url = shared_redis.url
    async with ended(redis_url=redis_url) as (_, url, got), running(redis_url=redis_url) as other:
        for at, last_id in enumerate(got.ids[:-1], 1):
            rest = await other.read(url, last_id=last_id)
            assert rest.events == got.events[at:], last_id
        assert (await other.read(url, last_id=got.last_id)).status == 204
        assert (await other.read(url)).events == got.events


@pytest.mark.parametrize("reconnect", [True, False])
async def test_a_record_that_knows_more_than_the_log_does_not_mean_that_the_log_is_gone(
    reconnect: bool, own_redis: RedisServer
) -> None:
    """While one server takes another's place, the two may be read from one each."""
    held = Held()
    async with (
        gateway(held, redis_url=own_redis.url) as (gate, _),
        running(redis_url=own_redis.url) as other,
    ):
        url = await gate.ticket()
        got = await gate.read(url, enough=events(1))
        await gate.gateway.store.call(
            "HSET", record_key(stream_id_of(gate, url)), "state", "interrupted"
        )
        back = await other.read(url, last_id=got.ids[0] if reconnect else "")
        assert (back.status, back.events) == (200, [])
        assert b": not_yet\n" in back.raw


@pytest.mark.parametrize("reconnect", [True, False])
async def test_an_end_lost_between_two_looks_at_redis_is_not_taken_for_an_expired_log(
    reconnect: bool, own_redis: RedisServer
) -> None:
    """A failover may lie between the reading of the record and that of the log."""

    def lose_the_end(request: bytes) -> None:
        if b"XRANGE" in request:
            with Redis(port=own_redis.port) as redis:
                redis.hset(record_key(stream_id), "state", "starting")
                redis.hdel(record_key(stream_id), "end_id")
                redis.delete(log_key(stream_id))

    async with (
        ended(redis_url=own_redis.url) as (gate, url, got),
        proxied(own_redis) as proxy,
        running(redis_url=proxy.url) as other,
    ):
        stream_id = stream_id_of(gate, url)
        proxy.judge = lose_the_end
        back = await other.read(url, last_id=got.ids[0] if reconnect else "")
        assert (back.status, back.events) == (200, [])
        assert LATER.fullmatch(back.raw)


async def test_a_claim_lost_after_its_ticket_ran_out_sends_nobody_away(redis_url: str) -> None:
    """A failover took it, and its owner has not written it again yet."""
    held = Held()
    async with gateway(held, redis_url=redis_url, start_by=1.5, lease=30) as (gate, upstream):
        url = await gate.ticket()
        first = await gate.read(url, enough=events(1))
        stream_id = stream_id_of(gate, url)
        await gate.gateway.store.call("HSET", record_key(stream_id), "state", "cached")
        await until(lambda: expired(gate, url))
        rest = asyncio.create_task(gate.read(url, last_id=first.last_id))
        held.go.set()
        assert (await rest).end["state"] == "done"
    assert len(upstream.calls) == 1


async def test_who_has_seen_the_end_is_told_to_stop(redis_url: str) -> None:
    async with ended(redis_url=redis_url) as (gate, url, got):
        over = await gate.read(url, last_id=got.last_id)
        by_query = await gate.read(f"{url}&last_event_id={got.last_id}")
    assert (over.status, over.raw, by_query.status) == (204, b"", 204)


async def test_an_id_in_the_url_will_do_in_both_spellings_and_a_header_is_newer() -> None:
    async with ended() as (gate, url, got):
        for name in ("last_event_id", "lastEventId"):
            rest = await gate.read(f"{url}&{name}={got.ids[0]}")
            assert rest.events == got.events[1:], name
        newer = await gate.read(f"{url}&lastEventId={got.ids[0]}", last_id=got.ids[2])
        assert newer.events == got.events[3:]
        header = {**gate.cookie(), **STREAM, "Last-Event-ID": ""}
        empty = await gate.http.get(f"{url}&last_event_id=&lastEventId=", headers=header)
        assert empty.content.count(b"id: ") == 5


@pytest.mark.parametrize(
    "last_id",
    ["x", "-", "1", "1-", "-1", "1-1-1", "01-1", "1-+1", " 1-1x", "1_1-1", "9" * 40 + "-1", "é"],
)
async def test_an_id_that_is_not_ours_replays_from_the_start(last_id: str) -> None:
    async with ended() as (gate, url, got):
        whole_ = await gate.read(f"{url}&last_event_id={last_id}")
    assert whole_.events == got.events


@pytest.mark.parametrize("epoch", [0, 1, 2**62, 2**63 - 1])
async def test_an_epoch_that_the_log_does_not_know_is_told_as_a_gap(
    epoch: int, redis_url: str
) -> None:
    async with ended(redis_url=redis_url) as (gate, url, got):
        told = await gate.read(url, last_id=f"{epoch}-7")
    check_gap(told, got, f"{epoch}-7")


def check_gap(told: Transcript, got: Transcript, asked: str) -> None:
    """Assert a gap, then the whole log."""
    before = got.ids[0].partition("-")[0] + "-0"
    assert told.names[0] == "gap"
    assert told.ids[0] == before
    assert told.events[0].data == b'{"from": "%s", "to": "%s"}' % (asked.encode(), before.encode())
    assert told.events[1:] == got.events


async def test_an_id_ahead_of_an_ended_log_is_told_as_a_gap(redis_url: str) -> None:
    async with ended(redis_url=redis_url) as (gate, url, got):
        asked = got.last_id.partition("-")[0] + "-999999"
        check_gap(await gate.read(url, last_id=asked), got, asked)


async def test_who_goes_on_after_a_gap_gets_everything() -> None:
    async with ended() as (gate, url, got):
        gap = await gate.read(url, last_id="5-5", enough=events(1))
        rest = await gate.read(url, last_id=gap.ids[0])
    assert rest.events == got.events


async def test_a_gap_of_a_running_stream_is_followed_by_its_events_live() -> None:
    held = Held()
    async with gateway(held) as (gate, _):
        url = await gate.ticket()
        first = await gate.read(url, enough=events(1))
        look = asyncio.create_task(gate.read(url, last_id="5-5"))
        await until(lambda: gate.gateway.fanout.viewers == 1)
        held.go.set()
        told = await look
    assert told.names == ["gap", "", "", "", "end"]
    assert told.events[1] == first.events[0]


async def test_a_gap_comes_before_the_first_event_of_a_stream_that_has_none_yet() -> None:
    async with gateway(Held(b": wait\n\n")) as (gate, _):
        url = await gate.ticket()
        told = await gate.read(url, last_id="5-5", enough=events(1))
    assert told.names == ["gap"]
    assert told.ids[0].endswith("-0")


async def test_an_id_ahead_of_a_running_stream_waits_there(redis_url: str) -> None:
    held = Held(sse(chunk("one")))
    async with gateway(held, redis_url=redis_url) as (gate, _):
        url = await gate.ticket()
        first = await gate.read(url, enough=events(1))
        ahead = first.ids[0].removesuffix("-1") + "-2"
        look = asyncio.create_task(gate.read(url, last_id=ahead))
        await until(lambda: gate.gateway.fanout.viewers == 1)
        held.go.set()
        rest = await look
    assert (rest.names, rest.ids[0]) == (["", "end"], ahead.removesuffix("2") + "3")


async def test_a_reconnect_while_another_replicas_log_ends_is_neither_refused_nor_stopped(
    shared_redis: RedisServer,
) -> None:
    """The record may say that it is over before this replica has read the last events."""
    held = Held()
    async with gateway(held, redis_url=shared_redis.url) as (gate, _):
        url = await gate.ticket()
        async with late_replica(shared_redis.url) as late:
            first = await gate.read(url, enough=events(1))
            look = asyncio.create_task(late.read(url, enough=events(1)))
            await look
            held.go.set()
            await gate.read(url)
            rest = await late.read(url, last_id=first.last_id)
            fresh = await late.read(url)
    assert (rest.status, rest.names[-1:]) == (200, ["end"])
    assert (fresh.status, fresh.names[-1:]) == (200, ["end"])


@asynccontextmanager
async def late_replica(redis_url: str) -> AsyncIterator[Served]:
    """A replica that hears nothing by itself: its loops do not run."""
    late = Gateway(settings(redis_url=redis_url))
    late.supervisor.started = True
    app = Router(late.routes.all(), default=late.routes.fallback())
    async with served(app) as url, client(url) as http:
        yield Served(late, url, http)
    await late.store.close()
    await late.upstream.close()


async def test_a_viewer_that_waits_for_a_slow_store_is_not_forgotten(
    own_redis: RedisServer,
) -> None:
    """A tail that nobody watches yet may not be dropped while it is loaded."""
    held, redis_url = Held(), own_redis.url
    async with gateway(held, redis_url=redis_url, lease=10) as (gate, _):
        url = await gate.ticket()
        await gate.read(url, enough=events(1))
        stream_id = stream_id_of(gate, url)
        async with running(redis_url=redis_url, lease=10) as other:
            own_redis.pause()
            fanout = other.gateway.fanout
            coming = asyncio.create_task(fanout.attach(stream_id, gate.gateway.name, None))
            await asyncio.sleep(POLL + 0.5)  # Not for a state: the store is slow for that long.
            own_redis.resume()
            viewer = await coming
            held.go.set()
            await until(lambda: viewer.tail.ended, "it hears of the end", 20)
            fanout.detach(viewer)


# Who may read it: CORS


@pytest.mark.parametrize("origin", [LISTED, "https://CHAT.example", "same"])
async def test_a_page_of_ours_may_read_tickets_streams_and_refusals(origin: str) -> None:
    public = "https://chat.example"
    async with gateway(allowed_origins=LISTED, public_url=public) as (gate, _):
        page = {"Origin": gate.url if origin == "same" else origin, "Sec-Fetch-Site": "cross-site"}
        made = await gate.post(**page)
        url = f"/stream?ticket={made.json()['ticket']}"
        stream = await gate.http.get(url, headers={**gate.cookie(), **page})
        nothing = await gate.http.get("/stream?ticket=x", headers={**gate.cookie(), **page})
    assert [each.status_code for each in (made, stream, nothing)] == [201, 200, 404]
    for answer in (made, stream, nothing):
        assert answer.headers["access-control-allow-origin"] == page["Origin"]
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "Origin"


async def test_a_preflight_of_a_page_of_ours_names_methods_and_headers() -> None:
    async with running(allowed_origins=LISTED) as gate:
        sent = {"Origin": LISTED, "Access-Control-Request-Method": "POST"}
        for path, method in (("/tickets", "POST"), ("/stream", "DELETE"), ("/tickets/x", "POST")):
            answer = await gate.http.options(path, headers=sent)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == LISTED
            assert method in answer.headers["access-control-allow-methods"]
            for name in ("content-type", "idempotency-key", "last-event-id"):
                assert name in answer.headers["access-control-allow-headers"].lower()


async def test_a_preflight_lets_a_login_and_the_headers_of_sdks_pass_and_no_others() -> None:
    sdk = [f"x-stainless-{name}" for name in ("lang", "package-version", "retry-count")]
    asked = ", ".join([*sdk, "authorization", "x-other", "x-stainless-", "x-stainless-a b"])
    sent = {
        "Origin": LISTED,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked.replace("x-stainless-lang", "X-Stainless-Lang"),
    }
    async with running(allowed_origins=LISTED) as gate:
        answer = await gate.http.options("/tickets", headers=sent)
        foreign = await gate.http.options("/tickets", headers={**sent, "Origin": "https://x.net"})
        crowd = ",".join(f"x-stainless-{number}" for number in range(1000))
        many = await gate.http.options(
            "/tickets", headers={**sent, "Access-Control-Request-Headers": crowd}
        )
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {*sdk, "authorization"} <= {*allowed}
    assert not {"x-other", "x-stainless-", "x-stainless-a b"} & {*allowed}
    assert {*answer.headers.get_list("vary")} == {"Access-Control-Request-Headers", "Origin"}
    assert foreign.status_code == 403
    assert len(many.headers["access-control-allow-headers"]) < 2000


async def test_a_page_behind_tls_that_ends_at_a_proxy_is_ours() -> None:
    async with running() as gate:
        answer = await gate.post(Origin="https://chat.example", Host="chat.example")
    assert answer.status_code == 201


# GET /completion


async def test_a_completion_of_a_cached_ticket_is_empty_and_starts_nothing() -> None:
    async with gateway() as (gate, upstream):
        url = await gate.ticket()
        told = await gate.completion(url)
        assert await gate.completion(url) == told
    unset = dict.fromkeys(("finish_reason", "usage", "tokens", "last_event_id"))
    assert told == {"state": "cached", "text": "", "preset": "default", "attempts": 0, **unset}
    assert upstream.calls == []


async def test_a_completion_tells_the_answer_so_far_on_every_replica(
    shared_redis: RedisServer,
) -> None:
    held, redis_url = Held(), shared_redis.url
    async with gateway(held, redis_url=redis_url) as (gate, _), running(redis_url=redis_url) as b:
        url = await gate.ticket()
        first = await gate.read(url, enough=events(1))
        told = [await gate.completion(url), await b.completion(url)]
        held.go.set()
    unset = {"finish_reason": None, "usage": None, "tokens": None, "preset": "default"}
    expected = {"state": "streaming", "text": "Hel", "last_event_id": first.last_id, "attempts": 1}
    assert told == [{**expected, **unset}] * 2


async def test_a_completion_before_the_first_event_is_starting() -> None:
    async with gateway(Held(b": wait\n\n")) as (gate, upstream):
        url = await gate.ticket()
        look = asyncio.create_task(gate.read(url))
        await until(lambda: upstream.calls)
        told = await gate.completion(url)
        look.cancel()
    assert (told["state"], told["text"], told["attempts"]) == ("starting", "", 1)


async def test_a_completion_of_an_ended_stream_is_the_whole_answer(redis_url: str) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    last = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'

    async def script(call: Call) -> None:
        other = chunk("other", finish="stop", index=1)
        text = sse(chunk("Hel"), other, chunk("lo"), chunk("", finish="length"), last, b"[DONE]")
        await call.send(OK, text)

    async with gateway(script, redis_url=redis_url) as (gate, _):
        url = await gate.ticket(ask(n=2))
        got = await gate.read(url)
        told = await gate.completion(url)
    expected = {"state": "done", "text": "Hello", "finish_reason": "length", "attempts": 1}
    billed = {"usage": usage, "tokens": got.end["tokens"], "preset": "default"}
    assert told == {**expected, **billed, "last_event_id": got.last_id}
    assert got.end["tokens"] == {"prompt": 3, "completion": 2, "cached": None}
    assert (got.end["usage"], got.end["finish_reason"]) == (usage, "length")


async def test_a_completion_of_a_failed_stream_keeps_what_came() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))

    async with gateway(script) as (gate, _):
        url = await gate.ticket()
        got = await gate.read(url)
        told = await gate.completion(url)
    assert (told["state"], told["text"]) == (got.end["state"], "Hel") == ("truncated", "Hel")
    assert told["last_event_id"] == got.last_id


# DELETE /stream, POST /stream/cancel


async def delete(gate: Served, url: str) -> tuple[int, Any]:
    """DELETE a stream."""
    answer = await gate.http.delete(url, headers=gate.cookie())
    return answer.status_code, answer.json()


async def test_a_ticket_cancelled_before_it_was_redeemed_starts_nothing(redis_url: str) -> None:
    async with gateway(redis_url=redis_url) as (gate, upstream):
        url = await gate.ticket()
        assert await delete(gate, url) == (200, {"state": "cancelled"})
        assert await delete(gate, url) == (200, {"state": "cancelled"})
        got = await gate.read(url)
        assert (await gate.read(url, last_id=got.last_id)).status == 204
        assert (await gate.completion(url))["state"] == "cancelled"
    unset = dict.fromkeys(("finish_reason", "usage", "tokens", "preset"))
    assert (got.names, got.end) == (["end"], {"state": "cancelled", **unset, "attempts": 0})
    assert upstream.calls == []


async def test_a_cancel_after_the_end_returns_the_first_state(redis_url: str) -> None:
    async with ended(redis_url=redis_url) as (gate, url, got):
        assert await delete(gate, url) == (200, {"state": "done"})
        assert (await gate.read(url)).events == got.events


@pytest.mark.parametrize("body", [None, b"bye", b"{}"])
async def test_a_closing_page_cancels_with_send_beacon(body: bytes | None) -> None:
    async with gateway(Held()) as (gate, upstream):
        url = await gate.ticket()
        look = asyncio.create_task(gate.read(url))
        await until(lambda: upstream.calls)
        headers = {**gate.cookie(), "Origin": gate.url, "Sec-Fetch-Site": "same-origin"}
        headers |= {"Content-Type": "text/plain;charset=UTF-8"} if body else {}
        where = url.replace("/stream", "/stream/cancel")
        answer = await gate.http.post(where, content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"state": "cancelled"})
        assert (await look).end["state"] == "cancelled"


async def test_a_cancel_on_another_replica_ends_the_run(shared_redis: RedisServer) -> None:
    redis_url = shared_redis.url
    async with (
        gateway(Held(), redis_url=redis_url) as (gate, upstream),
        running(redis_url=redis_url) as other,
    ):
        url = await gate.ticket()
        look = asyncio.create_task(gate.read(url))
        await until(lambda: upstream.calls)
        assert await delete(other, url) == (200, {"state": "cancelled"})
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert (await look).end["state"] == "cancelled"


# Come back later


async def later(gate: Served, url: str, code: str) -> None:
    """Assert 200-and-retry to an EventSource, 503 to anybody else."""
    page = await gate.http.get(url, headers={**gate.cookie(), **STREAM})
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/event-stream")
    assert page.headers["cache-control"] == "no-store"
    assert LATER.fullmatch(page.content), page.content
    other = await gate.http.get(url, headers=gate.cookie())
    assert (other.status_code, other.json()["code"]) == (503, code)
    assert 1 <= int(other.headers["retry-after"]) <= 3


async def test_while_the_store_is_away_everybody_is_to_come_back(own_redis: RedisServer) -> None:
    async with gateway(redis_url=own_redis.url) as (gate, upstream):
        url = await gate.ticket()
        own_redis.kill()
        await later(gate, url, "store_unavailable")
        posts = [await gate.post(), await gate.post(**STREAM)]
        cancel = await gate.http.delete(url, headers=gate.cookie())
    assert [each.status_code for each in [*posts, cancel]] == [503] * 3
    assert all(int(each.headers["retry-after"]) >= 1 for each in [*posts, cancel])
    assert upstream.calls == []


async def test_a_page_of_ours_can_read_that_it_is_to_come_back(own_redis: RedisServer) -> None:
    async with gateway(redis_url=own_redis.url, allowed_origins=LISTED) as (gate, _):
        url = await gate.ticket()
        own_redis.kill()
        headers = {**gate.cookie(), **STREAM, "Origin": LISTED}
        answer = await gate.http.get(url, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == LISTED


async def test_a_record_of_a_newer_version_is_left_to_newer_replicas(redis_url: str) -> None:
    async with gateway(redis_url=redis_url) as (gate, upstream):
        url = await gate.ticket()
        stream_id = stream_id_of(gate, url)
        await gate.gateway.store.call("HSET", record_key(stream_id), "version", 99)
        await later(gate, url, "newer_record")
    assert upstream.calls == []


async def test_a_ticket_that_a_fresh_store_may_have_forgotten_is_to_come_back() -> None:
    async with running() as gate:
        url = await gate.ticket()
    async with gateway(lease=3) as (other, upstream):
        await later(other, url, "not_yet")
        await until(lambda: is_gone(other, url), "twice the lease later it is gone", 20)
    assert upstream.calls == []


async def test_a_key_used_again_after_redis_forgot_does_not_end_the_stream_it_named() -> None:
    """Its owner may live, and is about to write it again."""
    async with running() as gate:
        url = await gate.ticket(**KEY)
    async with gateway() as (other, upstream):
        await other.gateway.store.call("SET", DATASET_ID, 2**50, "PX", 60_000)
        await other.ticket(**KEY)
        await later(other, url, "not_yet")
        assert (await other.read(url, last_id="1-1")).raw.startswith(b"retry:")
    assert upstream.calls == []


async def is_gone(gate: Served, url: str) -> bool:
    """Tell whether a stream is gone for good."""
    return (await gate.http.get(url, headers=gate.cookie())).status_code == 410


async def test_a_replica_that_drains_starts_no_stream_but_still_gives_tickets() -> None:
    async with gateway() as (gate, upstream):
        url = await gate.ticket()
        gate.gateway.supervisor.draining = True
        await later(gate, url, "draining")
        posts = [await gate.post(), await gate.post(**STREAM)]
        gate.gateway.supervisor.draining = False
    assert [each.status_code for each in posts] == [201, 503]
    assert upstream.calls == []


async def test_a_full_replica_serves_what_it_took_and_starts_nothing_more() -> None:
    held = Held()
    async with gateway(held, max_streams=1) as (gate, upstream):
        look = asyncio.create_task(gate.read(await gate.ticket()))
        await until(lambda: upstream.calls)
        await later(gate, await gate.ticket(), "overloaded")
        held.go.set()
        got = await look
    assert (got.names[-1:], len(upstream.calls)) == (["end"], 1)


async def test_a_full_replica_lets_nobody_redeem_what_it_cannot_show() -> None:
    """Many viewers of one stream leave no room for a viewer of another: it must not be paid."""
    async with gateway(Held(), max_streams=2) as (gate, upstream):
        url = await gate.ticket()
        looks = [asyncio.create_task(gate.read(url)) for _ in range(2)]
        await until(lambda: gate.gateway.fanout.viewers == 2)
        await later(gate, await gate.ticket(), "overloaded")
        assert len(upstream.calls) == 1
        for look in looks:
            look.cancel()


async def test_the_health_urls_answer() -> None:
    async with running() as gate:
        for path in ("/healthz", "/readyz"):
            assert (await gate.http.get(path)).status_code == 200
            assert (await gate.http.head(path)).status_code == 200


async def test_a_replica_without_its_store_is_alive_but_not_ready(own_redis: RedisServer) -> None:
    async with running(redis_url=own_redis.url) as gate:
        own_redis.kill()
        assert (await gate.http.get("/healthz")).status_code == 200
        assert (await gate.http.get("/readyz")).status_code == 503

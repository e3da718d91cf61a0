"""One connection for everything: a channel and several streams, over real sockets."""

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from gateway.store.keys import new_id, record_key
from gateway.web.event_stream import MUCH
from gateway.web.positions import MOST
from tests.composite import Page, whole
from tests.support import (
    OK,
    Call,
    RedisServer,
    ScriptedUpstream,
    Served,
    ask,
    chunk,
    running,
    scripted,
    sse,
    until,
)
from tests.test_promises import held

TOKEN = "a-service-token-of-the-tests"
SERVICE = {"Authorization": f"Bearer {TOKEN}"}
END = sse(chunk("", finish="stop"), b"[DONE]")


async def by_prompt(call: Call) -> None:
    """Answer with so many events as the prompt says, of such sizes, at no regular pace."""
    asked = json.loads(call.json["messages"][-1]["content"])
    chance = random.Random(asked["seed"])
    await call.send(OK)
    for number in range(asked["events"]):
        size = chance.choice(asked.get("sizes", [5]))
        await call.send(sse(chunk(f"{asked['seed']}.{number} " + "x" * size)))
        await asyncio.sleep(chance.choice([0, 0, 0, 0.005, 0.03]))
    await call.send(END)


@asynccontextmanager
async def replicas(
    url: str, upstream: ScriptedUpstream, count: int = 2, **more: Any
) -> AsyncIterator[list[Served]]:
    """Run gateways that share a store, which ends none of their streams by itself."""
    given = {"redis_url": url, "upstream_url": upstream.url, "service_tokens": TOKEN, **more}
    given = {"drain": 0.2, "grace": 30, "lease": 10, **given}
    async with running(**given) as first:
        if count == 1:
            yield [first]
        else:
            async with running(**given) as second:
                yield [first, second]


async def asked(gate: Served, user: str, seed: int, events: int, **more: Any) -> str:
    """POST a request of a user and return its stream_url."""
    prompt = json.dumps({"seed": seed, "events": events, **more})
    return await gate.ticket(ask(prompt), user)


async def push(gate: Served, user: str, data: Any, **more: Any) -> None:
    """Push a message."""
    answer = await gate.http.post(
        f"/users/{user}/events", json={"data": data, **more}, headers=SERVICE
    )
    assert answer.status_code == 202, answer.text


async def test_a_channel_and_twelve_streams_come_exactly_over_one_connection(
    any_redis_url: str,
) -> None:
    user = new_id()
    async with (
        scripted(by_prompt) as upstream,
        replicas(any_redis_url, upstream, 1 if not any_redis_url else 2) as gates,
    ):
        urls = [await asked(gates[0], user, seed, 5) for seed in range(12)]
        page = Page(user, urls)
        async with page.on(gates[-1]):
            for number in range(4):
                await push(gates[0], user, f"m{number}", event="news")
            await until(lambda: page.ended() and len(page.of(0)) == 4)
            # Streams that end do not end it.
            await push(gates[0], user, "after")
            await until(lambda: page.of(0)[-1] == (b"", b"after"))
            await until(lambda: gates[-1].gateway.fanout.viewers == 1, "the others are let go")
        assert page.of(0)[:4] == [(b"news", b"m%d" % number) for number in range(4)]
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gates[0], url, user)
        assert len({each.id for each in page.events}) == len(page.events)
        assert len(upstream.calls) == 12


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_stream_comes_once_in_order_wherever_the_connection_is_cut(
    shared_redis: RedisServer, seed: int
) -> None:
    chance, user = random.Random(seed), new_id()
    async with scripted(by_prompt) as upstream, replicas(shared_redis.url, upstream) as gates:
        sizes = [5, 5, 5, 300, 20_000]
        urls = [
            await asked(chance.choice(gates), user, number, chance.choice([1, 10, 40]), sizes=sizes)
            for number in range(12)
        ]
        page = Page(user, urls)

        async def write() -> None:
            for number in range(30):
                await push(chance.choice(gates), user, f"m{number}", message_id=f"m{number}")
                await asyncio.sleep(0.01)

        await page.look(gates[0], lambda: len(page.events) == 1)
        writing = asyncio.create_task(write())
        await page.follow(gates, lambda: page.ended() and len(page.of(0)) >= 30, chance)
        await writing
        assert page.of(0) == [(b"", b"m%d" % number) for number in range(30)]
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gates[0], url, user), number
        assert len(upstream.calls) == 12


async def test_a_longer_list_goes_on_where_the_shorter_one_was(shared_redis: RedisServer) -> None:
    user = new_id()
    async with scripted(by_prompt) as upstream, replicas(shared_redis.url, upstream) as gates:
        urls = [await asked(gates[0], user, seed, 20) for seed in range(3)]
        page = Page(user, [])
        async with page.on(gates[0]):  # Of no stream, to begin with.
            await push(gates[0], user, "m0")
            await until(lambda: page.events)
        for count in (1, 2, 3):
            page.tickets = Page(user, urls[:count]).tickets
            goal = len(page.events) + 5
            await page.look(gates[count % 2], lambda: len(page.events) >= goal)  # noqa: B023
            await push(gates[0], user, f"m{count}")
        await page.look(gates[0], lambda: page.ended() and len(page.of(0)) == 4)
        assert page.of(0) == [(b"", b"m%d" % number) for number in range(4)]
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gates[0], url, user)


async def test_an_id_of_another_list_is_told_by_a_gap_in_each_stream_and_none_in_the_channel(
    redis_url: str,
) -> None:
    user = new_id()
    async with scripted(by_prompt) as upstream, replicas(redis_url, upstream, 1) as (gate,):
        urls = [await asked(gate, user, seed, 3) for seed in range(2)]
        page, turned, junk = Page(user, urls), Page(user, urls[::-1]), Page(user, urls)
        await push(gate, user, "before")
        async with page.on(gate):
            await push(gate, user, "seen")
            await until(lambda: page.ended() and page.of(0))
        await push(gate, user, "next")
        turned.last_id, junk.last_id = page.last_id, "junk"
        async with turned.on(gate), junk.on(gate):
            await until(lambda: turned.ended() and junk.ended())
            await until(lambda: turned.of(0) and len(junk.of(0)) == 3)
        assert turned.of(0) == [(b"", b"next")]
        assert [data for _, data in junk.of(0)] == [b"before", b"seen", b"next"]
        for number, url in enumerate(urls, 1):
            shown = await whole(gate, url, user)
            assert junk.of(number) == shown
            (name, data), *rest = turned.of(3 - number)
            assert (name, json.loads(data)["from"], rest) == (b"gap", "0-0", shown)
        alone = Page(user, [])  # And who follows only the channel from now on goes on there.
        alone.last_id = page.last_id
        async with alone.on(gate):
            await until(lambda: alone.of(0) == [(b"", b"next")])


async def test_a_ticket_that_cannot_be_opened_says_so_once_and_the_others_go_on(
    redis_url: str,
) -> None:
    user = new_id()
    async with scripted(by_prompt) as upstream, replicas(redis_url, upstream, 1) as (gate,):
        late, url = await asked(gate, user, 1, 3), await asked(gate, user, 3, 3)
        stream_id = gate.gateway.tickets.verify(late.partition("ticket=")[2]).stream_id
        await gate.gateway.store.call("HSET", record_key(stream_id), "start_by", "1")
        page = Page(user, [late, url])
        while not page.ended():  # Cut after each event: so also between the failure and its end.
            goal = len(page.events) + 1
            await page.look(gate, lambda: len(page.events) >= goal)  # noqa: B023
        (failure, told), (end, state) = page.of(1)
        assert (failure, json.loads(told)["code"]) == (b"failure", "ticket_expired")
        assert (end, json.loads(state)["state"]) == (b"end", "expired")
        assert page.of(2) == await whole(gate, url, user)
        assert len(upstream.calls) == 1
        async with page.on(gate):  # What was told is not told again.
            await push(gate, user, "still here")
            await until(lambda: page.of(0))
        assert len(page.of(1)) == 2


async def test_what_is_asked_wrongly_is_refused_before_anything_begins(redis_url: str) -> None:
    user, other = new_id(), new_id()
    async with scripted(by_prompt) as upstream, replicas(redis_url, upstream, 1) as (gate,):
        mine, theirs = await asked(gate, user, 1, 1), await asked(gate, other, 2, 1)
        again = gate.gateway.tickets
        ticket = again.verify(mine.partition("ticket=")[2])
        younger = again.issue(ticket.stream_id, user, ticket.issued + 1)
        forged = mine[:-2] + ("AA" if mine[-2:] != "AA" else "BB")
        wrong = {
            (404, "ticket_not_found"): [[mine, theirs], [mine, forged], [mine, ""], ["x"]],
            (400, "bad_tickets"): [
                [mine, mine],
                [mine, f"/stream?ticket={younger}"],
                [f"/stream?ticket={again.issue(new_id(), user)}" for _ in range(MOST + 1)],
            ],
        }
        for (status, code), lists in wrong.items():
            for urls in lists:
                headers = {**gate.cookie(user), "Accept": "text/event-stream"}
                answer = await gate.http.get(Page(user, urls).url, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (status, code), urls
        for form in ("raw", "other"):
            page = Page(user, [mine], format=form)
            answer = await gate.http.get(page.url, headers=gate.cookie(user))
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert upstream.calls == []
        assert gate.gateway.fanout.viewers == 0


async def test_thirty_two_tickets_fit_and_each_takes_its_turn(redis_url: str) -> None:
    user = new_id()
    async with scripted(by_prompt) as upstream, replicas(redis_url, upstream, 1) as (gate,):
        urls = [await asked(gate, user, seed, 2) for seed in range(MOST)]
        page = Page(user, urls)
        await page.look(gate, page.ended)
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gate, url, user)
        assert max(len(each.id) for each in page.events) < 512


async def test_no_fast_stream_starves_a_slow_one(shared_redis: RedisServer) -> None:
    user, script = new_id(), held()
    script.data = [chunk("x" * 20_000) for _ in range(400)]  # More than sockets take unread.
    given = {"max_log": 64 << 20}
    async with (
        scripted(script) as upstream,
        replicas(shared_redis.url, upstream, 1, **given) as (gate,),
        narrow(gate) as slow,
    ):
        urls = [await gate.ticket(ask(f"{number}"), user) for number in range(2)]
        early = Page(user, urls)
        await early.look(gate, lambda: len(early.of(1)) == len(early.of(2)) == 400)
        await until(lambda: gate.gateway.fanout.viewers == 0)
        page = Page(user, urls)
        both = partial(until, lambda: gate.gateway.fanout.viewers == 3, "both are there", 20)
        await page.look(slow, lambda: len(page.of(1)) == len(page.of(2)) == 400, both)
        # From when both are there until one is through, each has its turn after the other.
        names = [each.name for each in page.events]
        begun = max(map(names.index, (b"1", b"2")))
        through = len(names) - max(map(names[::-1].index, (b"1", b"2")))
        assert through - begun > 100
        for at in range(begun, through - 8):
            assert len(set(names[at : at + 8])) == 2, names[at : at + 8]


async def test_what_was_logged_is_sent_a_little_at_a_time_with_turns_for_others_between() -> None:
    async def tiny(call: Call) -> None:
        await call.send(OK, sse(*[b"x"] * 2000), END)

    sent, turn, ends, user = Counter[int](), 0, 0, new_id()
    async with scripted(tiny) as upstream, replicas("", upstream, 1) as (gate,):
        page = Page(user, [await gate.ticket(ask(f"{number}"), user) for number in range(2)])
        await page.look(gate, lambda: len(page.events) > 4000 and page.ended())

        async def send(message: Message) -> None:
            nonlocal ends
            body = message.get("body", b"")
            sent[turn] += len(body)
            ends += body.count(b".end\n")

        headers = [(b"cookie", gate.cookie(user)["Cookie"].encode())]
        path, _, query = page.url.partition("?")
        scope: Scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path}
        scope.update(query_string=query.encode(), headers=headers)
        watching = asyncio.create_task(gate.gateway.app(scope, asyncio.Queue[Message]().get, send))
        while ends < 2 and not watching.done():
            turn += 1
            await asyncio.sleep(0)
        watching.cancel()
        await asyncio.wait({watching})
    assert sum(sent.values()) > 20 * MUCH
    assert max(sent.values()) < 2 * MUCH + 200, sent.most_common(3)


@asynccontextmanager
async def narrow(gate: Served) -> AsyncIterator[Served]:
    """Yield a gateway whose sockets take little more than is read from them."""
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)]
    transport = httpx.AsyncHTTPTransport(socket_options=options)
    async with httpx.AsyncClient(base_url=gate.url, transport=transport) as http:
        yield replace(gate, http=http)


async def test_a_ticket_that_waits_for_a_slot_holds_up_no_other(shared_redis: RedisServer) -> None:
    user, script = new_id(), held(2)
    given = {"limits": {"streams": 1}}
    async with (
        scripted(script) as upstream,
        replicas(shared_redis.url, upstream, 1, **given) as (gate,),
    ):
        urls = [await gate.ticket(ask(f"{number}"), user) for number in range(2)]
        page = Page(user, urls)
        async with page.on(gate):
            await until(lambda: len(page.events) == 2)
            await push(gate, user, "meanwhile")
            await until(lambda: page.of(0))
            assert len(upstream.calls) == 1
            script.go.set()
            await until(page.ended, "the other has had its slot", 20)
        assert page.connects == 1
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gate, url, user)
        assert len(upstream.calls) == 2


async def test_a_snapshot_stands_for_what_is_logged_and_not_where_there_is_a_position(
    shared_redis: RedisServer,
) -> None:
    user, script = new_id(), held(5)
    async with scripted(script) as upstream, replicas(shared_redis.url, upstream) as gates:
        urls = [await gates[0].ticket(ask(f"{number}"), user) for number in range(2)]
        early = Page(user, urls[:1])
        await early.look(gates[0], lambda: len(early.events) == 5)
        page = Page(user, urls, snapshot="1", format="text")
        async with page.on(gates[1]):
            await until(lambda: page.of(1) and len(page.of(2)) == 5)
        script.go.set()
        await page.look(gates[0], page.ended)
        (name, told), *rest = page.of(1)
        text = "".join(f"word {number} " for number in range(5))
        assert (name, json.loads(told)["text"]) == (b"snapshot", text)
        assert [each for each, _ in rest] == [b"end"]
        assert page.of(2) == await whole(gates[0], urls[1], user, "&format=text")


async def test_a_draining_replica_sends_the_connection_on(shared_redis: RedisServer) -> None:
    user, script = new_id(), held(3)
    async with scripted(script) as upstream, replicas(shared_redis.url, upstream) as gates:
        urls = [await gates[0].ticket(ask(f"{number}"), user) for number in range(3)]
        page = Page(user, urls)
        looking = asyncio.create_task(page.look(gates[1]))
        await until(lambda: len(page.events) == 9)
        gates[1].gateway.supervisor.send_away()
        await asyncio.wait_for(looking, 20)
        await until(lambda: gates[1].gateway.fanout.viewers == 0)
        script.go.set()
        await page.look(gates[0], page.ended)
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gates[0], url, user)


async def test_a_stream_whose_viewers_are_sent_off_comes_back_on_the_same_connection(
    shared_redis: RedisServer,
) -> None:
    user, script = new_id(), held(3)
    async with scripted(script) as upstream, replicas(shared_redis.url, upstream, 1) as (gate,):
        urls = [await gate.ticket(ask(f"{number}"), user) for number in range(2)]
        page = Page(user, urls)
        async with page.on(gate):
            await until(lambda: len(page.events) == 6)
            assert gate.gateway.cut(page.tickets[0]) == 1
            script.go.set()
            await until(page.ended, seconds=20)
        assert page.connects == 1
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gate, url, user)


async def test_a_replica_that_cannot_open_a_ticket_sends_its_viewer_to_one_that_can(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with scripted(by_prompt) as upstream:
        old = {"redis_url": shared_redis.url, "upstream_url": upstream.url, "lease": 10}
        presets: dict[str, Any] = {"default": {}, "another": {}}
        async with running(**old) as before, running(**old, presets=presets) as after:
            prompt = ask(json.dumps({"seed": 1, "events": 5}))
            made = await after.http.post(
                "/tickets/another", json=prompt, headers=after.cookie(user)
            )
            urls = [await asked(before, user, 2, 5), str(made.json()["stream_url"])]
            page = Page(user, urls)
            await page.look(before)  # It ends by itself, after all of the first.
            assert page.ended(1)
            assert page.of(2) == []
            await page.look(after, page.ended)
            for number, url in enumerate(urls, 1):
                assert page.of(number) == await whole(after, url, user)


async def test_while_the_store_is_away_it_is_told_to_come_back_and_an_open_one_stays(
    own_redis: RedisServer,
) -> None:
    user, script = new_id(), held(2)
    async with scripted(script) as upstream, replicas(own_redis.url, upstream, 1) as (gate,):
        urls = [await gate.ticket(ask(f"{number}"), user) for number in range(2)]
        page = Page(user, urls)
        async with page.on(gate):
            await until(lambda: len(page.events) == 4)
            own_redis.pause()
            headers = {**gate.cookie(user), "Accept": "text/event-stream"}
            answer = await gate.http.get(page.url, headers=headers)
            assert (answer.status_code, answer.text.partition(": ")[0]) == (200, "retry")
            assert answer.text.endswith(": store_unavailable\n")
            own_redis.resume()
            script.go.set()
            await until(page.ended, seconds=20)
        assert page.connects == 1
        for number, url in enumerate(urls, 1):
            assert page.of(number) == await whole(gate, url, user)


async def test_who_does_not_read_is_dropped_and_frees_what_it_had(
    shared_redis: RedisServer,
) -> None:
    user, script = new_id(), held()
    script.data = [chunk("x" * 100_000) for _ in range(100)]
    given = {"write_timeout": 1, "max_log": 64 << 20}
    async with (
        scripted(script) as upstream,
        replicas(shared_redis.url, upstream, 1, **given) as (gate,),
        narrow(gate) as slow,
    ):
        urls = [await gate.ticket(ask(f"{number}"), user) for number in range(2)]
        fanout, page = gate.gateway.fanout, Page(user, urls)
        dropped = partial(until, lambda: fanout.viewers == 0, "it is dropped", 20)
        with pytest.raises(httpx.TransportError):
            await page.look(slow, lambda: False, dropped)
        await page.look(gate, lambda: len(page.of(1)) == len(page.of(2)) == 100)

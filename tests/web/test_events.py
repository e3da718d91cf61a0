"""Events: a user's channel, over real sockets and real Redises."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import httpx
import pytest

from gateway.errors import Rejected
from gateway.sse import Event, Parser
from gateway.store.keys import channel_id, channel_key, log_key, new_id
from tests.support import RedisServer, Served, running, until

TOKEN = "a-service-token-of-the-tests"
SERVICE = {"Authorization": f"Bearer {TOKEN}"}
STREAM = {"Accept": "text/event-stream"}


@asynccontextmanager
async def replica(url: str = "", **more: Any) -> AsyncIterator[Served]:
    """Run a gateway that takes a service token."""
    async with running(redis_url=url, service_tokens=TOKEN, **more) as gate:
        yield gate


class Gate(Protocol):
    """A replica, and the cookies that it takes."""

    http: httpx.AsyncClient

    def cookie(self, subject: str) -> dict[str, str]:
        """Return the headers of a subject's request."""


async def push(gate: Gate, subject: str, data: Any, **more: Any) -> str:
    """Push a message and return its id."""
    answer = await gate.http.post(
        f"/users/{subject}/events", json={"data": data, **more}, headers=SERVICE
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


class Watcher:
    """A page that watches a channel as an EventSource does: it keeps the last id it was told."""

    def __init__(self, subject: str, query: str = "") -> None:
        self.events: list[Event] = []
        self.last_id = ""
        self.connects = 0
        self._subject = subject
        self._url = f"/events{query}"
        self._closing: httpx.Response | None = None

    @property
    def data(self) -> list[str]:
        """The data of all messages that came."""
        return [each.data.decode() for each in self.events if each.name != b"gap"]

    @property
    def gaps(self) -> list[dict[str, str]]:
        """The gaps that were told."""
        return [json.loads(each.data) for each in self.events if each.name == b"gap"]

    async def look(self, gate: Gate) -> None:
        """Watch until the connection ends."""
        headers = {**gate.cookie(self._subject), **STREAM}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        parser = Parser(limit=1 << 26)
        async with gate.http.stream("GET", self._url, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for chunk in answer.aiter_raw():
                for block in chunk.split(b"\n\n")[:-1]:
                    position = block.rpartition(b"\n")[2]
                    if position.startswith(b"id: ") and b"data:" not in block:
                        self.last_id = position[4:].decode()
                self.connects += chunk.startswith(b"retry:")
                for event in parser.feed(chunk):
                    self.events.append(event)
                    self.last_id = event.id.decode()

    @asynccontextmanager
    async def on(self, gate: Gate) -> AsyncIterator["Watcher"]:
        """Watch for the length of the block, from when it is open."""
        before = self.connects
        task = asyncio.create_task(self.look(gate))
        try:
            await until(lambda: self.connects > before or task.done(), "it is open")
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_message_reaches_every_page_of_its_user_and_nobody_else(
    any_redis_url: str,
) -> None:
    user = new_id()
    async with replica(any_redis_url) as gate, AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(Watcher(user).on(gate)) for _ in range(3)]
        other = await stack.enter_async_context(Watcher(new_id()).on(gate))
        ids = [await push(gate, user, f"m{number}", event="news") for number in range(3)]
        ids.append(await push(gate, user, {"a": [1, "\n"]}))
        await until(lambda: all(len(page.events) == 4 for page in pages))
        for page in pages:
            assert [each.id.decode() for each in page.events] == ids
            assert [each.name for each in page.events] == [b"news"] * 3 + [b""]
            assert page.data[:3] == ["m0", "m1", "m2"]
            assert json.loads(page.data[3]) == {"a": [1, "\n"]}
        assert other.events == []


@pytest.mark.parametrize("store", ["redis", "cluster"])
async def test_every_message_comes_once_in_order_whoever_writes_and_however_often_a_page_is_cut(
    store: str, request: pytest.FixtureRequest
) -> None:
    url, user = request.getfixturevalue(f"shared_{store}").url, new_id()
    async with replica(url) as a, replica(url) as b:
        page = Watcher(user)
        sent: dict[str, str] = {}

        async def write(name: str) -> None:
            for number in range(100):
                gate = (a, b)[number % 2]
                text = f"{name}{number}"
                for twice in (gate, a):  # As after a reply that was lost.
                    event_id = await push(twice, user, text, message_id=text)
                    assert sent.setdefault(text, event_id) == event_id

        async with page.on(a):
            writers = [asyncio.create_task(write(each)) for each in "xyz"]
            await until(lambda: len(page.events) > 10)
        for turn in range(10):
            before = len(page.events)
            async with page.on((b, a)[turn % 2]):
                await until(lambda: len(page.events) > before + 5 or len(page.events) == 300)  # noqa: B023
        await asyncio.gather(*writers)
        async with page.on(b):
            await until(lambda: len(page.events) >= 300)
        assert page.gaps == []
        assert len(page.events) == 300
        assert {each.data.decode(): each.id.decode() for each in page.events} == sent
        for name in "xyz":
            own = [each for each in page.data if each.startswith(name)]
            assert own == [f"{name}{number}" for number in range(100)]


async def test_a_message_wakes_who_watches_elsewhere_before_anybody_would_look(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with (
        replica(shared_redis.url) as a,
        replica(shared_redis.url) as b,
        Watcher(user).on(a) as page,
    ):
        waits = []
        for number in range(5):
            began = time.monotonic()
            await push(b, user, "now")
            await until(lambda: len(page.events) > number)  # noqa: B023
            waits.append(time.monotonic() - began)
    assert sorted(waits)[2] < 0.25


async def test_messages_wait_while_nobody_listens(redis_url: str) -> None:
    user, old = new_id(), new_id()
    async with replica(redis_url) as gate:
        await push(gate, old, "before")
        page, late = Watcher(user), Watcher(old)
        async with page.on(gate), late.on(gate):
            assert page.last_id == "0-0"  # It has a position before it has any message.
        for subject in (user, old):
            for number in range(50):
                await push(gate, subject, f"m{number}")
        whole = Watcher(old, "?from=start")
        async with page.on(gate), late.on(gate), whole.on(gate):
            await until(lambda: len(page.data) >= 50 and len(late.data) >= 50)
            await until(lambda: len(whole.data) >= 51)
            new = Watcher(user)
            async with new.on(gate):
                await push(gate, user, "next")
                await until(lambda: new.data and len(page.data) > 50)
        expected = [f"m{number}" for number in range(50)]
        assert (page.data, late.data) == ([*expected, "next"], expected)
        assert whole.data == ["before", *expected]
        assert new.data == ["next"]
        assert [*page.gaps, *late.gaps, *whole.gaps, *new.gaps] == []


async def test_messages_of_any_size_come_whole_to_who_reads_slowly_and_who_comes_late(
    redis_url: str,
) -> None:
    user = new_id()
    sizes = [10, 100_000, 10, 16_384, 300_000, 40_000, 1, 1_000_000, 5, 200_000] * 2
    texts = [chr(97 + number) * size for number, size in enumerate(sizes)]
    async with replica(redis_url) as gate:
        headers = {**gate.cookie(user), **STREAM}
        async with gate.http.stream("GET", "/events", headers=headers) as slow:
            came = slow.aiter_raw()
            await anext(came)
            for text in texts:
                await push(gate, user, text)
            parser, events = Parser(limit=1 << 26), list[Event]()
            while len(events) < len(texts):
                events += parser.feed(await anext(came))
        late = Watcher(user, "?from=start")
        async with late.on(gate):
            await until(lambda: len(late.events) >= len(texts))
        for got in (events, late.events):
            assert [each.data.decode() for each in got] == texts


async def test_a_message_that_runs_out_while_it_is_read_is_whole_or_not_there(
    redis_url: str,
) -> None:
    user = new_id()
    async with replica(redis_url, max_event=16 << 20, max_log=64 << 20) as gate:
        headers = {**gate.cookie(user), **STREAM}
        await push(gate, user, "first")
        async with gate.http.stream("GET", "/events", headers=headers) as slow:
            came = slow.aiter_raw()
            await anext(came)
            await push(gate, user, "x" * (15 << 20), ttl=0.1)
            for _ in range(3):  # So much that what it has not read yet is let go of.
                await push(gate, user, "y" * 100_000)
            await asyncio.sleep(0.2)  # Not for a state: it runs out.
            parser, events = Parser(limit=1 << 26), list[Event]()
            async with asyncio.timeout(20):
                async for chunk in came:
                    events += parser.feed(chunk)
                    if len(events) == 4:
                        break
        assert [len(each.data) for each in events] in ([], [15 << 20, *[100_000] * 3])


async def test_a_gap_tells_what_is_not_kept_any_more(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url, events_keep=5) as gate:
        page = Watcher(user)
        async with page.on(gate):
            first = await push(gate, user, "m0")
            await until(lambda: page.data)
        ids = [await push(gate, user, f"m{number}") for number in range(1, 8)]
        late, whole = Watcher(user), Watcher(user, "?from=start")
        late.last_id = ids[1]  # m2: what is kept follows it.
        async with page.on(gate), late.on(gate), whole.on(gate):
            await until(lambda: len(page.data) == 6 and len(late.data) == 5 and whole.data)
            await until(lambda: len(whole.data) == 5)
        kept = [f"m{number}" for number in range(3, 8)]
        assert page.data == ["m0", *kept]
        assert page.gaps == [{"from": first, "to": ids[1]}]
        assert (late.data, late.gaps) == (kept, [])
        assert (whole.data, whole.gaps) == (kept, [])


async def test_a_page_that_is_open_is_told_of_what_went_before_it_could_be_shown(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with replica(shared_redis.url, events_keep=3) as gate:
        page = Watcher(user)
        async with page.on(gate):
            await push(gate, user, "first")
            await until(lambda: page.data)
            await asyncio.gather(*(push(gate, user, f"m{number}") for number in range(200)))
            last = await push(gate, user, "last")
            await until(lambda: page.last_id == last)
        seen = [int(each.id.decode().partition("-")[2]) for each in page.events]
        told = {
            number
            for each in page.gaps
            for number in range(_seq(each["from"]) + 1, _seq(each["to"]) + 1)
        }
        shown = [number for number in seen if number not in told]
        assert shown == sorted(set(shown))
        assert {*seen} | told == {*range(1, 203)}


def _seq(event_id: str) -> int:
    return int(event_id.partition("-")[2])


async def test_ids_grow_and_a_gap_is_told_when_redis_came_back_empty(
    own_redis: RedisServer,
) -> None:
    user = new_id()
    async with replica(own_redis.url) as gate:
        page, gone = Watcher(user), Watcher(user)
        async with gone.on(gate):
            before = await push(gate, user, "before")
            await until(lambda: gone.data)
        async with page.on(gate):
            await push(gate, user, "seen")
            await until(lambda: page.data)
            await gate.gateway.store.call("FLUSHALL")
            after = await push(gate, user, "after")
            await until(lambda: page.data == ["seen", "after"])
        async with gone.on(gate):
            await until(lambda: gone.data == ["before", "after"])
        assert _epoch(after) > _epoch(before)
        assert [len(page.gaps), len(gone.gaps)] == [1, 1]


def _epoch(event_id: str) -> int:
    return int(event_id.partition("-")[0])


async def test_a_log_that_goes_on_below_what_was_seen_hides_nothing_of_it(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with replica(shared_redis.url, grace=0.6) as gate:
        page, gone = Watcher(user), Watcher(user)
        async with page.on(gate), gone.on(gate):
            await push(gate, user, "seen")
            await until(lambda: page.data and gone.data)
        channel, call = channel_id(user), gate.gateway.store.call
        async with page.on(gate):
            # As by a Redis that came back empty, with a clock set back.
            await call("DEL", log_key(channel))
            await call("HSET", channel_key(channel), "id", "5-0")
            assert await push(gate, user, "below") == "5-1"
            await until(lambda: page.data == ["seen", "below"])
            await push(gate, user, "more")
            await until(lambda: page.data == ["seen", "below", "more"])
        async with gone.on(gate):
            await until(lambda: gone.data == ["seen", "below", "more"])
        assert [len(page.gaps), len(gone.gaps)] == [1, 1]


async def test_what_a_failover_lost_gives_no_id_twice(shared_redis: RedisServer) -> None:
    user = new_id()
    async with replica(shared_redis.url) as gate:
        page, early = Watcher(user), Watcher(user)
        async with page.on(gate):
            ids = [await push(gate, user, f"m{number}") for number in range(4)]
            await until(lambda: len(page.data) == 4)
        early.last_id = ids[1]
        channel, call = channel_id(user), gate.gateway.store.call
        await call("XDEL", log_key(channel), *ids[2:])
        await call("HSET", channel_key(channel), "id", ids[1], "server", "another")
        new = await push(gate, user, "new")
        assert _epoch(new) > _epoch(ids[3])
        async with page.on(gate), early.on(gate):
            await until(lambda: page.data[-1] == "new" and early.data)
        assert page.gaps == [{"from": ids[3], "to": ids[0].replace("-1", "-0")}]
        assert (early.data, early.gaps) == (["new"], [])


@pytest.mark.parametrize("position", ["9000000000000000-1", "{epoch}-500", "7-7"])
async def test_a_position_that_never_was_is_told_and_misses_nothing(
    position: str, redis_url: str
) -> None:
    user = new_id()
    async with replica(redis_url) as gate:
        first = await push(gate, user, "first")
        page = Watcher(user)
        page.last_id = position.format(epoch=_epoch(first))
        asked = page.last_id
        async with page.on(gate):
            await push(gate, user, "next")
            await until(lambda: page.data == ["first", "next"])
        assert page.gaps == [{"from": asked, "to": first.replace("-1", "-0")}]


async def test_what_is_no_position_gets_all_that_is_kept(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url) as gate:
        await push(gate, user, "first")
        for position in ("x", "1-", "01-1", "12.34"):
            page = Watcher(user)
            page.last_id = position
            async with page.on(gate):
                await until(lambda: page.data == ["first"])  # noqa: B023
            assert page.gaps == []


async def test_a_message_that_has_run_out_is_not_shown_and_leaves_no_gap(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url) as gate:
        page = Watcher(user)
        async with page.on(gate):
            for number in range(6):
                ttl = {"ttl": 1.5} if number % 2 else {}
                await push(gate, user, f"m{number}", **ttl)
            await until(lambda: len(page.data) == 6)  # Who is there has them all.
            whole = Watcher(user, "?from=start")
            late = Watcher(user)
            late.last_id = page.events[0].id.decode()
            await asyncio.sleep(1.6)  # Not for a state: they run out.
            async with whole.on(gate), late.on(gate):
                await push(gate, user, "end")
                await until(lambda: whole.data[-1:] == late.data[-1:] == ["end"])
        assert whole.data == ["m0", "m2", "m4", "end"]
        assert late.data == ["m2", "m4", "end"]
        assert whole.gaps == late.gaps == []


async def test_a_channel_whose_messages_have_all_run_out_goes_on(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url, events_ttl=1.5) as gate:
        ids = [await push(gate, user, f"m{number}") for number in range(3)]
        log = log_key(channel_id(user))
        await until(lambda: _gone(gate, log), "all has run out")
        seen, missed, whole = Watcher(user), Watcher(user), Watcher(user, "?from=start")
        seen.last_id, missed.last_id = ids[2], ids[0]
        async with seen.on(gate), missed.on(gate), whole.on(gate):
            new = await push(gate, user, "new")
            await until(lambda: [page.data for page in (seen, missed, whole)] == [["new"]] * 3)
        assert (seen.gaps, whole.gaps) == ([], [])
        assert missed.gaps == [{"from": ids[0], "to": ids[2]}]
        assert _epoch(new) == _epoch(ids[0])


async def _gone(gate: Served, key: str) -> bool:
    return not await gate.gateway.store.call("EXISTS", key)


async def test_a_channel_holds_no_more_bytes_than_a_stream_may(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url, max_log=50_000) as gate:
        for _ in range(20):
            await push(gate, user, "x" * 10_000)
        assert await gate.gateway.store.call("XLEN", log_key(channel_id(user))) == 4


async def test_a_message_id_is_stored_once_and_never_for_another_message(redis_url: str) -> None:
    user, other = new_id(), new_id()
    async with replica(redis_url) as gate:
        pushes = (push(gate, user, "once", event="e", message_id="k") for _ in range(5))
        assert len({*await asyncio.gather(*pushes)}) == 1
        await push(gate, other, "once", event="e", message_id="k")
        for changed in ({"data": "twice", "event": "e"}, {"data": "once"}):
            answer = await gate.http.post(
                f"/users/{user}/events", json={**changed, "message_id": "k"}, headers=SERVICE
            )
            assert (answer.status_code, answer.json()["code"]) == (422, "message_id_reused")
        for subject in (user, other):
            assert await gate.gateway.store.call("XLEN", log_key(channel_id(subject))) == 1


async def test_several_users_are_told_at_once_and_each_is_stored_or_named(redis_url: str) -> None:
    users = [new_id() for _ in range(3)]
    async with replica(redis_url) as gate:
        page = Watcher(users[1], "?from=start")
        await push(gate, users[2], "other", message_id="k")
        asked = {"subjects": [*users, users[0], "", "x" * 300], "data": "all", "message_id": "k"}
        answer = await gate.http.post("/events", json=asked, headers=SERVICE)
        assert answer.status_code == 202
        results = answer.json()["results"]
        assert [each["subject"] for each in results] == [*users, "", "x" * 300]
        codes = [each.get("code") for each in results]
        assert codes == [None, None, "message_id_reused", "bad_subject", "bad_subject"]
        async with page.on(gate):
            await until(lambda: page.data == ["all"])
        assert page.last_id == results[1]["id"]
        wrong: list[Any] = [None, "alice", [], [1], ["a"] * 1001, [None], {}]
        for subjects in wrong:
            body = {"subjects": subjects, "data": "x"}
            answer = await gate.http.post("/events", json=body, headers=SERVICE)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_subjects")


async def test_only_a_service_token_writes_and_only_a_login_watches() -> None:
    async with replica() as gate:
        for headers in ({}, {"Authorization": "Bearer a-token-of-somebody-else"}, gate.cookie()):
            for url in ("/events", "/users/alice/events"):
                answer = await gate.http.post(url, json={"data": "x"}, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
        for headers in ({}, SERVICE):
            answer = await gate.http.get("/events", headers={**headers, **STREAM})
            assert answer.status_code == 401
        foreign = {**gate.cookie(), **STREAM, "Origin": "https://else.example"}
        assert (await gate.http.get("/events", headers=foreign)).status_code == 403
        plain = {**gate.cookie(), "Accept": "text/html"}
        assert (await gate.http.get("/events", headers=plain)).status_code == 406
        answer = await gate.http.get("/events?from=end", headers={**gate.cookie(), **STREAM})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert (await gate.http.delete("/events")).headers["allow"] == "GET, POST"
        assert (await gate.http.get("/users/alice/events")).headers["allow"] == "POST"


async def test_what_will_pass_is_told_as_on_a_stream(own_redis: RedisServer) -> None:
    async with replica(own_redis.url, subject_viewers=1) as gate:
        async with Watcher("alice").on(gate):
            answer = await gate.http.get("/events", headers={**gate.cookie(), **STREAM})
            assert answer.status_code == 200
            assert answer.text.endswith(": too_many_viewers\n")
            assert answer.text.startswith("retry: ")
        await until(lambda: not gate.gateway.fanout.viewers)
        own_redis.kill()
        answer = await gate.http.get("/events", headers={**gate.cookie(), **STREAM})
        assert (answer.status_code, answer.text.endswith(": store_unavailable\n")) == (200, True)
        answer = await gate.http.post("/users/a/events", json={"data": "x"}, headers=SERVICE)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        body = {"data": "x", "subjects": ["a", "b"]}
        answer = await gate.http.post("/events", json=body, headers=SERVICE)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        own_redis.start()


async def test_a_page_is_sent_on_by_a_replica_that_drains_and_misses_nothing(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with replica(shared_redis.url) as b:
        page = Watcher(user)
        async with replica(shared_redis.url) as a:
            look = asyncio.create_task(page.look(a))
            await until(lambda: page.connects)
            a.gateway.supervisor.send_away()
            await asyncio.wait_for(look, 20)
            again = await a.http.get("/events", headers={**a.cookie(user), **STREAM})
            assert again.text.endswith(": draining\n")
        await push(b, user, "meanwhile")
        async with page.on(b):
            await until(lambda: page.data == ["meanwhile"])


async def test_a_log_out_sends_away_who_watches_on_every_replica(
    shared_redis: RedisServer,
) -> None:
    user = new_id()
    async with replica(shared_redis.url) as a, replica(shared_redis.url) as b:
        pages = [Watcher(user), Watcher(user)]
        looks = [
            asyncio.create_task(page.look(gate)) for page, gate in zip(pages, (a, b), strict=True)
        ]
        await until(lambda: all(page.connects for page in pages))
        async with Watcher(new_id()).on(a) as stranger:
            answer = await a.http.delete(f"/users/{user}/streams", headers=SERVICE)
            assert answer.status_code == 200
            await asyncio.wait_for(asyncio.gather(*looks), 20)
            assert stranger.connects == 1
            await until(lambda: a.gateway.fanout.viewers == 1)


async def test_a_silent_channel_has_a_heartbeat(redis_url: str) -> None:
    async with replica(redis_url, heartbeat=0.2) as gate:
        headers = {**gate.cookie(new_id()), **STREAM}
        async with gate.http.stream("GET", "/events", headers=headers) as answer:
            came = b""
            async for chunk in answer.aiter_raw():
                came += chunk
                if came.endswith(b":\n:\n"):
                    break
        assert came.startswith(b"retry: ")


async def test_an_application_pushes_as_its_server_does(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url) as gate:
        async with Watcher(user).on(gate) as page:
            given: dict[str, Any] = {"event": "news", "data": {"n": 1}, "message_id": "k"}
            first = await gate.gateway.push(user, **given)
            assert await gate.gateway.push(user, **given) == first
            await gate.gateway.push(user, None, "text", ttl=5)
            await until(lambda: page.data == ['{"n":1}', "text"])
        for event, data in (("end", ""), (None, object())):
            with pytest.raises(Rejected):
                await gate.gateway.push(user, event, data)

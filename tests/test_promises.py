"""The ten promises of the design, each by its name, on real processes with a real Redis."""

import asyncio
import json
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.auth.tickets import Tickets
from gateway.eventlog.reader import read_all
from gateway.sse import Parser, encode
from gateway.store.client import RedisClient
from tests.support import (
    OK,
    SECRET,
    WHOLE,
    Call,
    Process,
    RedisServer,
    ScriptedUpstream,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    follow,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)

ALICE = cookie(settings())
MALLORY = cookie(settings(), "mallory")


class Site:
    """Two replicas behind one Redis, and a page of alice."""

    def __init__(self, processes: list[Process], clients: list[httpx.AsyncClient]) -> None:
        self.processes = processes
        self.http = clients

    async def ticket(self, body: dict[str, Any] | None = None, **headers: str) -> str:
        """POST to the second replica; return the stream_url. Comes back where it is told to."""

        async def taken() -> httpx.Response | None:
            answer = await self.http[1].post(
                "/tickets", json=body or ask(), headers={**ALICE, **headers}
            )
            return None if answer.status_code == 503 else answer

        answer = await until(taken, "a ticket is to be had")
        assert answer.status_code in {200, 201}, answer.text
        return str(answer.json()["stream_url"])

    async def read(self, at: int, url: str, **options: Any) -> Transcript:
        """Read a stream on one replica."""
        return await read(self.http[at], url, headers=ALICE, **options)

    async def state(self, url: str, at: int = 1) -> str:
        """Return a stream's state."""
        answer = await self.http[at].get(url.replace("/stream", "/completion"), headers=ALICE)
        return str(answer.json().get("state"))

    async def ends(self, url: str, state: str, seconds: float = 20) -> None:
        """Wait until a stream has ended in a state."""

        async def has_ended() -> bool:
            return await self.state(url) == state

        await until(has_ended, f"it is {state}", seconds)

    async def cancel(self, at: int, url: str) -> str:
        """DELETE a stream; return the state."""
        answer = await self.http[at].delete(url, headers=ALICE)
        return str(answer.json()["state"])


@contextmanager
def replicas(count: int, redis: RedisServer, upstream: str, **more: str) -> Iterator[list[Process]]:
    """Run gateways of one site."""
    given = {"redis_url": redis.url, "upstream_url": upstream, "secrets": SECRET}
    given |= {"log_level": "warning", "lease": "10", "heartbeat": "1", "drain": "10"}
    begun = [Process("serve", "--port", "0", **{**given, **more}) for _ in range(count)]
    try:
        yield [each.ready() for each in begun]
    finally:
        for each in begun:
            each.stop()


@asynccontextmanager
async def site(redis: RedisServer, upstream: ScriptedUpstream, **more: str) -> AsyncIterator[Site]:
    """Run two replicas and a page for the length of the block."""
    with replicas(2, redis, upstream.url, **more) as processes:
        async with client(processes[0].url) as one, client(processes[1].url) as two:
            yield Site(processes, [one, two])


class Paced:
    """An upstream's script: events one by one, then what is left when it is let go."""

    def __init__(
        self, count: int, pause: float = 0.02, *, held: bool = False, uneven: bool = False
    ) -> None:
        self.data = [chunk(f"word {number} ") for number in range(count)]
        self.go = asyncio.Event()
        self._pause = pause
        self._held = held
        self._factors = (0.0, 2.0) if uneven else (1.0, 1.0)

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        await call.send(OK)
        for data in self.data:
            await call.send(sse(data))
            await asyncio.sleep(self._pause * random.uniform(*self._factors))
        waits = [asyncio.create_task(each.wait()) for each in (self.go, call.left)]
        if self._held:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not call.left.is_set():
            await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


def held(count: int = 1) -> Paced:
    """Return an upstream that does not end by itself."""
    return Paced(count, 0, held=True)


def at_least(count: int) -> Callable[[Transcript], bool]:
    """Return a test of whether there are events enough."""
    return lambda got: len(got.events) >= count


# 1. One paid call


async def test_one_paid_call_for_thirty_viewers_who_race_on_two_replicas(
    shared_redis: RedisServer,
) -> None:
    async with scripted(Paced(20)) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        viewers = [at.read(number % 2, url) for number in range(30)]
        got = await asyncio.wait_for(asyncio.gather(*viewers), 20)
        assert len(upstream.calls) == 1
        assert {each.status for each in got} == {200}
        assert [each.events for each in got] == [got[0].events] * 30
        assert got[0].end["state"] == "done"
        assert len(got[0].events) == 23


async def test_one_paid_call_however_often_the_request_is_repeated(
    shared_redis: RedisServer,
) -> None:
    async with scripted(whole) as upstream, site(shared_redis, upstream) as at:
        urls = {await at.ticket(ask("same"), **{"Idempotency-Key": SECRET}) for _ in range(3)}
        (url,) = urls
        got = [await at.read(number % 2, url) for number in range(6)]
        assert len({each.raw.partition(b"\n")[2] for each in got}) == 1
        assert len(upstream.calls) == 1


async def test_one_paid_call_where_the_upstream_may_have_taken_the_request() -> None:
    async def cut(call: Call) -> None:
        call.cut()

    async with (
        scripted(cut) as upstream,
        running(upstream_url=upstream.url, upstream_retries=3) as served,
    ):
        end = (await served.read(await served.ticket())).end
        assert (end["state"], end["attempts"], len(upstream.calls)) == ("truncated", 1, 1)


async def test_one_paid_call_may_follow_sure_refusals_and_they_are_counted() -> None:
    async def busy_at_first(call: Call) -> None:
        if len(upstream.calls) < 3:
            await call.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n")
        else:
            await call.send(OK, WHOLE)

    async with (
        scripted(busy_at_first) as upstream,
        running(upstream_url=upstream.url, upstream_retries=3) as served,
    ):
        end = (await served.read(await served.ticket())).end
        assert (end["state"], end["attempts"], len(upstream.calls)) == ("done", 3, 3)


# 2. Logged, then shown


async def test_logged_then_shown_so_a_redis_that_hangs_shows_nothing_new(
    own_redis: RedisServer,
) -> None:
    script = held()
    async with (
        scripted(script) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url) as served,
    ):
        got: list[int] = []
        url = await served.ticket()
        reading = asyncio.create_task(
            served.read(url, enough=lambda each: bool(got.append(len(each.events))))  # type: ignore[func-returns-value]
        )
        await until(lambda: got and got[-1] == 1)
        own_redis.pause()
        script.go.set()
        await asyncio.sleep(0.5)  # Long enough to be shown; two seconds, and the lines give up.
        assert got[-1] == 1
        own_redis.resume()
        assert (await reading).end["state"] == "done"


async def test_logged_then_shown_so_the_log_holds_all_that_any_viewer_has(
    shared_redis: RedisServer,
) -> None:
    async with scripted(Paced(30, 0)) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        store = RedisClient(shared_redis.url)
        stream_id = stream_id_of(url)
        for count in (1, 5, 20, 30):
            got = await at.read(count % 2, url, enough=at_least(count))
            logged = b"".join(entry.frames for entry in await read_all(store, stream_id))
            for event in got.events:
                assert encode(event.data, event.id, event.name) in logged
        await store.close()


def stream_id_of(url: str) -> str:
    """Return the id of the stream that a stream_url names."""
    tickets = Tickets([each.get_secret_value() for each in settings().secrets])
    return tickets.verify(url.partition("ticket=")[2]).stream_id


# 3. One order


def _answer(prompt: str) -> list[bytes]:
    """Return the data of an answer, the same for the same prompt."""
    chance = random.Random(prompt)
    nasty = ["\nid: 5-1", "\u2028", "é" * 9, "🏳️‍🌈", "data: x", ": comment", " lead", "x" * 3000]
    return [
        json.dumps({"n": number, "x": chance.choice(nasty)}, ensure_ascii=False).encode()
        + (b"\nsecond line" if chance.random() < 0.1 else b"")
        for number in range(chance.randint(25, 50))
    ]


async def _answering(call: Call) -> None:
    """Send that answer, cut into pieces that do not care for events."""
    prompt = call.json["messages"][0]["content"]
    chance = random.Random(prompt)
    events = [b"data: " + each.replace(b"\n", b"\ndata: ") + b"\n\n" for each in _answer(prompt)]
    body = b"".join(events) + sse(chunk("", finish="stop"), b"[DONE]")
    await call.send(OK)
    while body:
        size = chance.randint(1, 600)
        await call.send(body[:size])
        body = body[size:]
        await asyncio.sleep(chance.random() * 0.04)


async def _cut_and_resumed(at: Site, number: int, cuts: int) -> Transcript:
    """Read one stream, cut at random and resumed on either replica, to its end and beyond."""
    chance = random.Random(number)
    url, got = await at.ticket(ask(f"prompt {number}")), Transcript()
    for cut in range(cuts + 1):
        size = chance.randint(1, 2500) if cut < cuts else 1 << 40
        got.extend(
            await at.read(
                chance.randrange(2),
                url,
                last_id=got.last_id,
                enough=lambda each, size=size: len(each.raw) > size,
            )
        )
    if got.status == 200:
        got.extend(await at.read(chance.randrange(2), url, last_id=got.last_id))
    return got


async def test_one_order_for_a_hundred_streams_each_cut_eight_times(
    shared_redis: RedisServer,
) -> None:
    async with scripted(_answering) as upstream, site(shared_redis, upstream) as at:
        streams = (_cut_and_resumed(at, number, 8) for number in range(100))
        for number, got in enumerate(await asyncio.wait_for(asyncio.gather(*streams), 150)):
            sent = [*_answer(f"prompt {number}"), chunk("", finish="stop"), b"[DONE]"]
            assert got.data == sent
            assert got.end["state"] == "done"
            epochs, seqs = zip(*(each.split("-") for each in got.ids), strict=True)
            assert len(set(epochs)) == 1
            assert [int(seq) for seq in seqs] == list(range(1, len(sent) + 2))
            assert got.status == 204
        assert len(upstream.calls) == 100


async def test_one_order_also_for_who_comes_back_after_everything(
    shared_redis: RedisServer,
) -> None:
    async with scripted(Paced(20, 0)) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        all_ = await at.read(0, url)
        for number, last_id in enumerate(all_.ids[:-1]):
            rest = await at.read(number % 2, url, last_id=last_id)
            assert rest.events == all_.events[number + 1 :]
        gap = await at.read(1, url, last_id="7-7")
        assert gap.names[0] == "gap"
        assert gap.events[1:] == all_.events
        assert (await at.read(0, url, last_id="no id of ours")).events == all_.events


# 4. True ends


def _http(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (OK + WHOLE, "done"),
        (OK + sse(chunk("x"), b"[DONE]"), "done"),
        (OK + sse(chunk("x"), chunk("", finish="length")), "done"),
        (OK + sse(chunk("x")), "truncated"),
        (OK + sse(chunk("x")) + b"data: [DO", "truncated"),
        (OK + sse(chunk("x")) + b"data: [DONE]", "truncated"),
        (OK, "truncated"),
        (OK + sse(chunk("x"), b'{"error":{"message":"no"}}'), "failed"),
        (_http("400 Bad", "application/json", b"{}"), "failed"),
        (_http("200 OK", "text/html", b"<p>"), "failed"),
        (b"garbage\r\n\r\n", "truncated"),
    ],
)
async def test_true_ends_are_what_the_upstream_said(answer: bytes, state: str) -> None:
    async def script(call: Call) -> None:
        await call.send(answer)

    async with scripted(script) as upstream, running(upstream_url=upstream.url) as served:
        got = await served.read(await served.ticket())
        assert got.end["state"] == state
        assert ("failure" in got.names) == (state != "done")


async def test_true_ends_tell_a_silent_upstream_from_a_finished_one() -> None:
    async with (
        scripted(held()) as upstream,
        running(upstream_url=upstream.url, upstream_stall=0.5) as served,
    ):
        got = await served.read(await served.ticket())
        assert (got.end["state"], got.failure["code"]) == ("stalled", "upstream_stalled")


# 5. A bare EventSource behaves


async def test_a_bare_event_source_behaves_it_stops_by_itself_after_one_call(
    shared_redis: RedisServer,
) -> None:
    async with scripted(Paced(10)) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        urls = cycle(process.url + url for process in at.processes)
        got = await follow(at.http[0], lambda: next(urls), ALICE)
        assert (got.status, got.end["state"], len(upstream.calls)) == (204, "done", 1)
        assert got.names.count("end") == 1


@pytest.mark.parametrize("fault", ["refused", "cancelled", "cut"])
async def test_a_bare_event_source_behaves_also_where_it_ends_badly(fault: str) -> None:
    async def script(call: Call) -> None:
        if fault == "refused":
            await call.send(_http("401 No", "application/json", b"{}"))
        else:
            await call.send(OK, sse(chunk("x")))
            call.cut()

    async with scripted(script) as upstream, running(upstream_url=upstream.url) as served:
        url = await served.ticket()
        if fault == "cancelled":
            await served.http.delete(url, headers=ALICE)
        got = await follow(served.http, lambda: url, ALICE)
        assert (got.status, got.names.count("end")) == (204, 1)
        assert len(upstream.calls) == (fault != "cancelled")


async def test_a_bare_event_source_behaves_when_the_log_is_no_longer_kept() -> None:
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, log_ttl=0.5) as served,
    ):
        url = await served.ticket()
        got = await served.read(url)

        async def gone() -> bool:
            return (await served.read(url)).status == 410

        await until(gone)
        assert (await served.read(url, last_id=got.ids[0])).status == 204
        assert len(upstream.calls) == 1


async def test_a_bare_event_source_behaves_when_it_comes_too_late() -> None:
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, start_by=0.1) as served,
    ):
        url = await served.ticket()
        await until(lambda: _expired(served.http, url))
        assert (await follow(served.http, lambda: url, ALICE)).status == 410
        assert upstream.calls == []


async def _expired(http: httpx.AsyncClient, url: str) -> bool:
    answer = await http.get(url.replace("/stream", "/completion"), headers=ALICE)
    return bool(answer.json()["state"] == "expired")


# 6. Owner only


async def test_owner_only_a_stolen_url_is_404_and_starts_nothing(
    shared_redis: RedisServer,
) -> None:
    async with scripted(whole) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        forged = url[:-4] + ("AAAA" if url[-4:] != "AAAA" else "BBBB")
        tries = [(url, MALLORY), (forged, ALICE), ("/stream?ticket=", ALICE), ("/stream", ALICE)]
        for number, (stolen, who) in enumerate(tries):
            got = await read(at.http[number % 2], stolen, headers=who)
            assert got.status == 404
            assert json.loads(got.raw)["code"] == "ticket_not_found"
        assert (await read(at.http[0], url)).status == 401
        assert upstream.calls == []
        assert (await at.read(0, url)).end["state"] == "done"


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/stream"), ("POST", "/stream/cancel"), ("GET", "/completion")],
)
async def test_owner_only_nobody_else_ends_or_reads_a_stream(method: str, path: str) -> None:
    script = held()
    async with scripted(script) as upstream, running(upstream_url=upstream.url) as served:
        url = await served.ticket()
        await served.read(url, enough=at_least(1))
        answer = await served.http.request(
            method, url.replace("/stream", path), headers=served.cookie("mallory")
        )
        assert answer.status_code == 404
        script.go.set()
        assert (await served.read(url)).end["state"] == "done"


# 7. Everything expires


async def test_everything_expires_every_key_has_a_ttl_at_every_stage(
    own_redis: RedisServer,
) -> None:
    script = held()
    store = RedisClient(own_redis.url)

    async def all_expire() -> bool:
        _, keys = await store.call("SCAN", 0, "COUNT", 100_000)
        ttls = await store.calls(["PTTL", key] for key in keys)
        return bool(keys) and -1 not in ttls

    async with scripted(script) as upstream, site(own_redis, upstream) as at:
        await until(all_expire, "started", 20)
        one, other = await at.ticket(ask("one")), await at.ticket(ask("other"))
        await until(all_expire, "tickets", 20)
        for url in (one, other):
            await at.read(0, url, enough=at_least(1))
        watching = asyncio.create_task(at.read(1, one))
        await until(all_expire, "watched on both", 20)
        await at.cancel(1, other)
        await until(all_expire, "cancelled", 20)
        script.go.set()
        await watching
        await at.ends(one, "done")
        await until(all_expire, "ended", 20)
        at.processes[0].signal(signal.SIGKILL)
        await until(all_expire, "killed", 20)
    await store.close()


async def test_everything_expires_a_run_has_a_longest_time() -> None:
    async with (
        scripted(Paced(1000)) as upstream,
        running(upstream_url=upstream.url, max_run=0.6) as served,
    ):
        got = await served.read(await served.ticket())
        assert (got.end["state"], got.failure["code"]) == ("truncated", "run_too_long")
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)


# 8. Bounded


async def test_bounded_three_hundred_viewers_need_no_further_connections_to_redis(
    own_redis: RedisServer,
) -> None:
    store, script = RedisClient(own_redis.url), held()

    async def connections() -> int:
        return bytes(await store.call("CLIENT", "LIST")).count(b"laddr=")

    async with scripted(script) as upstream, site(own_redis, upstream) as at:
        url = await at.ticket()
        await asyncio.gather(
            at.read(0, url, enough=at_least(1)), at.read(1, url, enough=at_least(1))
        )
        before = await connections()
        got: set[int] = set()

        def seen(number: int) -> Callable[[Transcript], bool]:
            return lambda each: bool(each.events and got.add(number))  # type: ignore[func-returns-value]

        viewers = [
            asyncio.create_task(at.read(number % 2, url, enough=seen(number)))
            for number in range(300)
        ]
        await until(lambda: len(got) == 300, seconds=20)
        assert await connections() <= before + 4
        script.go.set()
        ends = await asyncio.gather(*viewers)
        assert {each.end["state"] for each in ends} == {"done"}
    await store.close()


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def reader_of_nothing(url: str, path: str) -> socket.socket:
    """Open a stream and never read it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(_address(url))
    head = f"GET {path} HTTP/1.1\r\nHost: {url[7:]}\r\nAccept: text/event-stream\r\n"
    sock.sendall(f"{head}Cookie: {ALICE['Cookie']}\r\n\r\n".encode())
    return sock


async def all_of(sock: socket.socket) -> bytes:
    """Return what reached a reader at last, up to where its connection was cut."""
    loop, data = asyncio.get_running_loop(), b""
    sock.setblocking(False)
    with suppress(ConnectionError):
        while more := await asyncio.wait_for(loop.sock_recv(sock, 1 << 16), 20):
            data += more
    return data


def _memory(process: Process) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]) * 4096


async def test_bounded_a_slow_reader_is_dropped_and_goes_on_at_its_id(
    shared_redis: RedisServer,
) -> None:
    big = [b"%d " % number + b"x" * 100_000 for number in range(100)]

    async def script(call: Call) -> None:
        await call.send(OK, *(sse(each) for each in big), sse(b"[DONE]"))

    async with scripted(script) as upstream, site(shared_redis, upstream, write_timeout="3") as at:
        url = await at.ticket()
        whole_ = await at.read(0, url)
        before = _memory(at.processes[0])
        with ExitStack() as closing:
            slow = [
                closing.enter_context(reader_of_nothing(at.processes[0].url, url))
                for _ in range(15)
            ]
            await until(lambda: all(cut_off(each) for each in slow), "they are cut off", 20)
            assert _memory(at.processes[0]) - before < 60 << 20  # Of 150 that they left unread.
            seen = Parser(1 << 26).feed(body_of(await all_of(slow[0])))
        assert len(seen) < len(whole_.events)
        last_id = seen[-1].id.decode() if seen else ""
        rest = await at.read(1, url, last_id=last_id)
        assert rest.events == whole_.events[len(seen) :]


def cut_off(sock: socket.socket) -> bool:
    """Say whether the other side has closed a connection: a reader would see that at its end."""
    mine, theirs = (b":%04X" % address[1] for address in (sock.getsockname(), sock.getpeername()))
    for line in Path("/proc/net/tcp").read_bytes().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if local.endswith(theirs) and remote.endswith(mine):
            return state != b"01"
    return True


def body_of(data: bytes) -> bytes:
    """Return the decoded body of a chunked answer that was cut somewhere."""
    _, _, rest = data.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


# 9. The run outlives the request


async def test_the_run_outlives_the_request_of_every_viewer(shared_redis: RedisServer) -> None:
    async with scripted(Paced(20, 0.05)) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        await at.read(0, url, enough=at_least(1))
        await at.ends(url, "done")
        assert len((await at.read(1, url)).events) == 23
        assert len(upstream.calls) == 1


async def test_the_run_outlives_the_request_but_not_the_grace_after_the_last_viewer_anywhere(
    shared_redis: RedisServer,
) -> None:
    async with scripted(held()) as upstream, site(shared_redis, upstream, grace="1") as at:
        url = await at.ticket()
        staying = asyncio.create_task(at.read(1, url))
        await until(lambda: upstream.calls)
        await at.read(0, url, enough=at_least(1))
        (call,) = upstream.calls
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.left.wait(), 3)
        staying.cancel()
        await asyncio.wait_for(call.left.wait(), 4)
        await at.ends(url, "cancelled")


async def test_a_cancel_on_one_replica_closes_the_call_of_the_other_within_a_second(
    shared_redis: RedisServer,
) -> None:
    async with scripted(held()) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        staying = asyncio.create_task(at.read(0, url))
        await until(lambda: upstream.calls)
        await at.ends(url, "streaming")
        assert await at.cancel(1, url) == "cancelled"
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert (await staying).end["state"] == "cancelled"
        assert await at.cancel(0, url) == "cancelled"


# 10. Deploys are invisible


async def test_deploys_are_invisible_the_run_finishes_and_its_viewers_go_elsewhere(
    shared_redis: RedisServer,
) -> None:
    script = held(5)
    async with scripted(script) as upstream, site(shared_redis, upstream) as at:
        url = await at.ticket()
        leaving = asyncio.create_task(at.read(0, url))
        await until(lambda: upstream.calls)
        await at.ends(url, "streaming")
        at.processes[0].signal(signal.SIGTERM)
        before = await asyncio.wait_for(leaving, 20)
        assert before.raw.endswith(b"\n\n")
        with pytest.raises(ConnectionError):  # The listener was closed first.
            socket.create_connection(_address(at.processes[0].url), 1).close()
        assert not upstream.calls[0].left.is_set()
        there = asyncio.create_task(at.read(1, url, last_id=before.last_id))
        script.go.set()
        after = await there
        assert [*before.data, *after.data] == [*script.data, chunk("", finish="stop"), b"[DONE]"]
        assert after.end["state"] == "done"
        assert at.processes[0].wait() == 0
        assert len(upstream.calls) == 1


async def test_deploys_are_invisible_what_is_left_at_the_deadline_its_owner_ends(
    shared_redis: RedisServer,
) -> None:
    more = {"drain": "1", "lease": "30", "grace": "30"}
    async with scripted(held()) as upstream, site(shared_redis, upstream, **more) as at:
        url = await at.ticket()
        await at.read(0, url, enough=at_least(1))
        there = asyncio.create_task(at.read(1, url))
        at.processes[0].signal(signal.SIGTERM)
        got = await asyncio.wait_for(there, 20)
        assert (got.end["state"], got.failure["code"]) == ("interrupted", "interrupted")
        assert at.processes[0].wait() == 0
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)


async def test_deploys_are_invisible_to_a_ticket_that_was_not_redeemed_yet(
    shared_redis: RedisServer,
) -> None:
    async with scripted(whole) as upstream, site(shared_redis, upstream, lease="30") as at:
        answer = await at.http[0].post("/tickets", json=ask(), headers=ALICE)
        at.processes[0].signal(signal.SIGTERM)
        assert at.processes[0].wait() == 0
        reading = at.read(1, answer.json()["stream_url"])
        assert (await asyncio.wait_for(reading, 20)).end["state"] == "done"  # Less than a lease.


# After kill -9


@pytest.mark.parametrize("lease", ["2", "10"])
async def test_a_killed_replica_is_noticed_within_fifteen_seconds_and_never_paid_twice(
    shared_redis: RedisServer, lease: str
) -> None:
    async with scripted(held(3)) as upstream, site(shared_redis, upstream, lease=lease) as at:
        url = await at.ticket()
        before = await at.read(0, url, enough=at_least(3))
        there = asyncio.create_task(at.read(1, url, last_id=before.last_id))
        at.processes[0].signal(signal.SIGKILL)
        got = await asyncio.wait_for(there, 20)
        assert (got.end["state"], got.failure["retryable"]) == ("interrupted", True)
        assert got.end["usage"] == {"completion_tokens": 3, "estimated": True}
        assert [*before.data, *got.data] == Paced(3).data
        assert (await at.read(1, url, last_id=got.last_id)).status == 204
        told = await at.http[1].get(url.replace("/stream", "/completion"), headers=ALICE)
        assert told.json()["text"] == "word 0 word 1 word 2 "
        assert told.json()["usage"] == got.end["usage"]
        assert len(upstream.calls) == 1


async def test_a_killed_replica_whose_stream_was_cancelled_leaves_it_cancelled(
    shared_redis: RedisServer,
) -> None:
    async with scripted(held()) as upstream, site(shared_redis, upstream, lease="2") as at:
        url = await at.ticket()
        await at.read(0, url, enough=at_least(1))
        at.processes[0].signal(signal.SIGSTOP)
        assert await at.cancel(1, url) == "cancelled"
        at.processes[0].signal(signal.SIGKILL)
        assert (await at.read(1, url)).end["state"] == "cancelled"


async def test_a_killed_replica_that_had_logged_the_finish_leaves_it_done(
    shared_redis: RedisServer,
) -> None:
    async def finished(call: Call) -> None:
        await call.send(OK, sse(chunk("all"), chunk("", finish="stop")))
        await call.left.wait()

    async with scripted(finished) as upstream, site(shared_redis, upstream, lease="2") as at:
        url = await at.ticket()
        await at.read(0, url, enough=at_least(2))
        at.processes[0].signal(signal.SIGKILL)
        end = (await at.read(1, url)).end
        assert (end["state"], end["finish_reason"]) == ("done", "stop")
        assert len(upstream.calls) == 1

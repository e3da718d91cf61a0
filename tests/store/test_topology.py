"""A Redis Cluster keeps the same promises, also while its slots and its servers come and go."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.crc import key_slot

from gateway.errors import SettingsError, Unavailable
from gateway.sse import HEARTBEAT, Event
from gateway.store.client import RedisClient
from gateway.store.keys import log_key, new_id, record_key
from gateway.store.routing import slot_of, split
from tests.clusters import ClusterServer, RedisCluster, redis_cluster
from tests.eventlog.test_writer import owner
from tests.support import (
    OK,
    SECRET,
    Call,
    ScriptedUpstream,
    Served,
    Transcript,
    ask,
    chunk,
    client,
    cookie,
    follow,
    process,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)


class Ticking:
    """An upstream that sends a numbered event every few milliseconds, until it is told to end."""

    def __init__(self, pause: float = 0.02) -> None:
        self.ended = asyncio.Event()
        self.sent: dict[str, list[bytes]] = {}
        self.silent: set[str] = set()  # Prompts that get nothing more for now.
        self._pause = pause

    async def __call__(self, call: Call) -> None:
        """Answer one request; its prompt names it."""
        prompt = call.json["messages"][0]["content"]
        sent = self.sent.setdefault(prompt, [])
        await call.send(OK)
        while not self.ended.is_set():
            if prompt not in self.silent:
                await self._send(call, sent, chunk(f"{len(sent)} "))
            await asyncio.sleep(self._pause)
        await self._send(call, sent, chunk("", finish="stop"))
        await self._send(call, sent, b"[DONE]")

    async def _send(self, call: Call, sent: list[bytes], data: bytes) -> None:
        sent.append(data)
        await call.send(sse(data))


class OnShard(NamedTuple):
    """A ticket: its stream_url, its stream id, and the prompt that names it to the upstream."""

    url: str
    stream_id: str
    prompt: str


class Watched:
    """A stream, and somebody who follows it as a browser does."""

    def __init__(self, ticket: "OnShard", shard: int, task: Any, seen: Transcript) -> None:
        self.url, self.stream_id, self.prompt = ticket
        self.shard = shard
        self.seen = seen
        self._task = task

    async def more(self, count: int = 5, seconds: float = 15) -> None:
        """Wait until so many further events have come."""
        have = len(self.seen.events)
        await until(lambda: len(self.seen.events) >= have + count, f"more of {self.shard}", seconds)

    async def end(self) -> Transcript:
        """Wait for its end."""
        await asyncio.wait_for(self._task, 30)
        return self.seen


class Scene:
    """Two replicas on a cluster, a ticking upstream, and streams on chosen masters."""

    def __init__(
        self, cluster: RedisCluster, upstream: ScriptedUpstream, owner: Served, other: Served
    ) -> None:
        self.cluster = cluster
        self.upstream = upstream
        self.owner = owner
        self.other = other
        self._tasks: list[asyncio.Task[None]] = []

    async def ticket(self, shard: int) -> OnShard:
        """Return a new ticket on a shard."""
        while True:
            prompt = new_id()
            url = await self.owner.ticket({"messages": [{"role": "user", "content": prompt}]})
            ticket = url.partition("ticket=")[2]
            stream_id = self.owner.gateway.tickets.verify(ticket).stream_id
            if self.cluster.shard_of(record_key(stream_id)) == shard:
                return OnShard(url, stream_id, prompt)

    async def watched(self, shard: int) -> Watched:
        """Begin a stream on a shard, run by the owner; it is followed on the other replica."""
        ticket, seen = await self.ticket(shard), Transcript()
        await self.owner.read(ticket.url, enough=lambda got: len(got.events) > 0)
        task = asyncio.create_task(_browse(self.other, ticket.url, seen))
        self._tasks.append(task)
        watched = Watched(ticket, shard, task, seen)
        await watched.more(3)
        return watched

    async def close(self) -> None:
        """End who still follows."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _browse(served: Served, url: str, seen: Transcript) -> None:
    """Follow a stream with one transcript that grows while it goes on."""
    while True:
        last = seen.last_id

        def grow(got: Transcript, known: int = len(seen.events)) -> bool:
            del seen.events[known:]
            seen.events += got.events
            seen.received = got.received
            return False

        got = await served.read(url, last_id=last, enough=grow)
        seen.status = got.status
        assert got.status in {200, 204}, got.raw
        if got.status == 204:
            return
        await asyncio.sleep(0.02)


@asynccontextmanager
async def scene(cluster: RedisCluster, script: Any, **changes: Any) -> AsyncIterator[Scene]:
    """Run two replicas and an upstream for the length of the block."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted(script))
        given = {"redis_url": cluster.url, "upstream_url": upstream.url, "grace": 20, **changes}
        replicas = [await stack.enter_async_context(running(**given)) for _ in range(2)]
        on = Scene(cluster, upstream, *replicas)
        try:
            yield on
        finally:
            await on.close()


def is_whole(watched: Watched, ticking: Ticking) -> None:
    """Check that everything sent was seen once, in order, and that the end is true."""
    seen = watched.seen
    assert seen.end["state"] == "done"
    assert "gap" not in seen.names
    assert seen.data == ticking.sent[watched.prompt]
    epochs = {each.partition("-")[0] for each in seen.ids}
    assert len(epochs) == 1
    assert [int(each.partition("-")[2]) for each in seen.ids] == list(range(1, len(seen.ids) + 1))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three masters, which a test may break."""
    with redis_cluster(tmp_path / "cluster") as started:
        yield started


# Addresses, slots, units


@pytest.mark.parametrize(
    "url",
    [
        *("redis+cluster://", "redis+cluster://host", "redis+cluster://host:1,host"),
        *("redis+cluster://host:port", "redis+cluster://host:1/3", "unix+cluster://host:1"),
    ],
)
def test_an_address_that_can_be_no_clusters_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REDIS_URL"):
        RedisClient(url)


def test_commands_on_a_slot_travel_together_with_those_that_have_no_key() -> None:
    units = split(
        [
            ["TIME"],
            ["HMGET", "{a}:record", "state"],
            [b"XADD", b"{a}:log", b"1-1"],
            ["EVALSHA", "digest", 2, "{b}:record", "{b}:log", "argument"],
            ["PUBLISH", "channel", "word"],
        ]
    )
    assert [[each[0] for each in unit.commands] for unit in units] == [
        ["TIME", "HMGET", b"XADD"],
        ["EVALSHA", "PUBLISH"],
    ]
    assert [unit.slot for unit in units] == [key_slot(b"a"), key_slot(b"b")]
    assert [unit.slot for unit in split([["PUBLISH", "channel", "word"]])] == [None]
    assert split([]) == []
    assert slot_of(["SET", "key", 1]) == key_slot(b"key")


async def test_each_command_runs_once_where_its_key_is_while_their_slot_moves(
    shared_cluster: RedisCluster,
) -> None:
    """One that ran at both ends would leave a key that cannot be moved, or find one missing."""
    here, moved, new = (f"{{both ends}}{name}" for name in ("here", "moved", "new"))
    slot = key_slot(here.encode())
    source = shared_cluster.master_of(here)
    target = next(each for each in shared_cluster.masters if each is not source)
    store = RedisClient(shared_cluster.url)
    await store.calls([["SET", here, 1], ["SET", moved, 10]])
    shared_cluster.begin_to_move(slot, source, target)
    try:
        shared_cluster.move_keys(source, target, moved)
        commands = [["INCR", here], ["TIME"], ["INCR", new], ["INCR", moved], ["INCR", here]]
        replies = await store.calls(commands)
        assert replies[:1] + replies[2:] == [2, 1, 11, 3]
        assert len(replies[1]) == 2
        assert source.run("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        shared_cluster.move_all_keys(slot, source, target)
    finally:
        shared_cluster.end_move(slot, target)
    assert await store.calls([["GET", each] for each in (here, moved, new)]) == [b"3", b"11", b"1"]
    await store.calls([["DEL", each] for each in (here, moved, new)])
    shared_cluster.begin_to_move(slot, target, source)
    shared_cluster.end_move(slot, source)
    await store.close()


# The promises


async def test_streams_on_all_masters_are_run_followed_and_cancelled_from_any_replica(
    shared_cluster: RedisCluster,
) -> None:
    ticking = Ticking()
    async with scene(shared_cluster, ticking) as on:
        streams = [await on.watched(shard) for shard in (0, 1, 2) for _ in range(2)]
        stopped, _, _ = await on.ticket(1)
        first = await on.owner.read(stopped, enough=lambda got: len(got.events) > 2)
        answer = await on.other.http.delete(stopped, headers=on.other.cookie())
        assert answer.json() == {"state": "cancelled"}
        rest = await on.other.read(stopped, last_id=first.last_id)
        assert rest.end["state"] == "cancelled"
        ticking.ended.set()
        for each in streams:
            await each.end()
            is_whole(each, ticking)
        assert len(on.upstream.calls) == 7


async def test_two_processes_share_a_cluster_and_one_outlives_the_other(
    shared_cluster: RedisCluster,
) -> None:
    ticking = Ticking()
    async with scripted(ticking) as upstream:
        given = {"redis_url": shared_cluster.url, "upstream_url": upstream.url, "secrets": SECRET}
        given |= {"lease": "1", "heartbeat": "1"}
        with (
            process("serve", "--port", "0", **given) as one,
            process("serve", "--port", "0", **given) as two,
        ):
            async with client(one.url) as first, client(two.url) as second:
                headers = cookie(settings())
                urls = []
                for _ in range(6):
                    answer = await first.post("/tickets", json=ask(), headers=headers)
                    urls.append(answer.json()["stream_url"])
                for url in urls:
                    await read(first, url, headers=headers, enough=_begun)
                    await read(second, url, headers=headers, enough=_begun)
                one.process.kill()
                for url in urls:
                    seen = await follow(second, partial(str, url), headers)
                    assert seen.end["state"] == "interrupted"
                assert len(upstream.calls) == 6


async def test_a_slot_that_moves_in_mid_stream_breaks_no_stream(
    shared_cluster: RedisCluster,
) -> None:
    ticking = Ticking()
    async with scene(shared_cluster, ticking) as on:
        moving, staying = await on.watched(0), await on.watched(0)
        record, log = record_key(moving.stream_id), log_key(moving.stream_id)
        slot, (source, target, _) = key_slot(record.encode()), shared_cluster.masters
        shared_cluster.begin_to_move(slot, source, target)
        try:
            await moving.more()
            shared_cluster.move_keys(source, target, record)
            await moving.more()
            shared_cluster.move_keys(source, target, log)
            await moving.more(10)
            shared_cluster.move_all_keys(slot, source, target)
            await moving.more(10)
        finally:
            shared_cluster.end_move(slot, target)
        await moving.more(10)
        assert target.run("EXISTS", record, log) == 2
        ticking.ended.set()
        for each in (moving, staying):
            await each.end()
            is_whole(each, ticking)
        assert len(on.upstream.calls) == 2
        # And back, while nobody looks.
        shared_cluster.begin_to_move(slot, target, source)
        shared_cluster.move_all_keys(slot, target, source)
        shared_cluster.end_move(slot, source)
        assert (await on.owner.read(moving.url)).ids == moving.seen.ids


async def test_a_ticket_whose_slot_is_moving_is_redeemed_once_it_has_moved(
    shared_cluster: RedisCluster,
) -> None:
    async with scene(shared_cluster, whole) as on:
        url, stream_id, _ = await on.ticket(2)
        slot, (target, _, source) = key_slot(record_key(stream_id).encode()), shared_cluster.masters
        shared_cluster.begin_to_move(slot, source, target)
        shared_cluster.move_all_keys(slot, source, target)
        reading = asyncio.create_task(
            follow(on.owner.http, lambda: url, on.owner.cookie(), seconds=20)
        )
        await asyncio.sleep(0.3)  # It is asked for, and cannot be had: one of its keys is missing.
        shared_cluster.end_move(slot, target)
        assert (await reading).end["state"] == "done"
        assert len(on.upstream.calls) == 1
        shared_cluster.begin_to_move(slot, target, source)
        shared_cluster.move_all_keys(slot, target, source)
        shared_cluster.end_move(slot, source)


async def test_a_master_whose_replica_takes_over_in_mid_stream_loses_nothing(
    tmp_path: Path,
) -> None:
    """The replica knows less: it is told what it missed, of silent streams too."""
    ticking = Ticking()
    with redis_cluster(tmp_path / "cluster", replicas=1) as cluster:
        async with scene(cluster, ticking, lease=2) as on:
            streams = [await on.watched(shard) for shard in (0, 1, 1, 2)]
            silent, successor, idle = streams[2], cluster.replicas[1], RedisClient(cluster.url)
            await idle.call("PING")  # It knows who has what, and will not look again.
            cluster.masters[1].run("CONFIG", "SET", "requirepass", "so that no replica comes back")
            cluster.masters[1].run("CLIENT", "KILL", "TYPE", "replica")
            await streams[1].more(10)
            ticking.silent.add(silent.prompt)
            cluster.masters[1].kill()
            for each in streams[:2]:
                await each.more(10, 30)
            assert successor.info("replication")["role"] == "master"
            assert await idle.call("EXISTS", record_key(silent.stream_id)) == 1
            await idle.close()
            await until(lambda: _last(successor, silent) == silent.seen.last_id)
            ticking.silent.clear()
            late = await on.watched(1)
            ticking.ended.set()
            for each in [*streams, late]:
                await each.end()
                is_whole(each, ticking)
            assert len(on.upstream.calls) == 5


def _last(server: ClusterServer, watched: Watched) -> str:
    """Return the id of a log's last entry on a server."""
    found = server.run("XREVRANGE", log_key(watched.stream_id), "+", "-", "COUNT", 1)
    return str(found[0][0].decode()) if found else ""


async def test_a_master_that_is_relieved_by_its_replica_in_mid_stream_breaks_no_stream(
    tmp_path: Path,
) -> None:
    ticking = Ticking()
    with redis_cluster(tmp_path / "cluster", replicas=1) as cluster:
        async with scene(cluster, ticking) as on:
            streams = [await on.watched(shard) for shard in (0, 1, 2)]
            node = on.owner.gateway.store.node_for(streams[2].stream_id)
            before = node.generation
            for shift in ((cluster.replicas, cluster.masters), (cluster.masters, cluster.replicas)):
                new, old = shift[0][2], shift[1][2]
                begun = asyncio.get_running_loop().time()
                new.run("CLUSTER", "FAILOVER")
                await until(partial(_has_role, old, "slave"))
                await until(partial(_has_role, new, "master"))
                for each in streams:
                    await each.more(10)
                # What it may lack is no reason to send anybody away yet.
                assert on.owner.gateway.store.node_for(streams[2].stream_id).replaced >= begun
            # What it knew before is not what it knows now: it is another connection.
            await until(lambda: on.owner.gateway.store.node_for(streams[2].stream_id) is node)
            assert node.generation > before
            ticking.ended.set()
            for each in streams:
                await each.end()
                is_whole(each, ticking)
            assert len(on.upstream.calls) == 3


async def test_a_master_that_was_relieved_is_not_believed_before_a_deploy(tmp_path: Path) -> None:
    """It keeps its connections, and what it was told last may be lost with it."""
    with redis_cluster(tmp_path / "cluster", replicas=1) as cluster:
        async with owner(cluster.url) as writing:
            log = await writing.log()
            log.append([Event(b"1")])
            await log.flushed()
            await writing.writer.ask()
            assert not log.in_doubt
            shard = cluster.shard_of(log_key(log.stream_id))
            cluster.replicas[shard].run("CLUSTER", "FAILOVER")
            await until(partial(_has_role, cluster.masters[shard], "slave"))
            await writing.writer.ask()
            assert log.in_doubt
            await log.flushed()


def _has_role(server: ClusterServer, role: str) -> bool:
    return server.info("replication")["role"] == role


async def test_the_inbox_is_heard_again_from_another_server_when_its_own_is_away(
    cluster: RedisCluster,
) -> None:
    store, channel = RedisClient(cluster.url), new_id()
    assert store.cluster is not None
    await store.call("PING")
    messages = store.messages(channel)
    assert await anext(messages) == b""
    for how in ("frozen", "killed"):
        (here,) = [
            s for s in cluster.masters if store.cluster.default_node().name.endswith(f":{s.port}")
        ]
        here.pause() if how == "frozen" else here.kill()
        with pytest.raises(Unavailable):
            await store.calls(["GET", key] for key in map(str, range(30)))
        assert await asyncio.wait_for(anext(messages), 20) == b""
        await store.call("PUBLISH", channel, how)
        assert await asyncio.wait_for(anext(messages), 20) == how.encode()
        here.resume() if how == "frozen" else here.start()
    await messages.aclose()
    await store.close()


async def test_a_cluster_may_ask_for_a_password(shared_cluster: RedisCluster) -> None:
    url = shared_cluster.url
    known, stranger = RedisClient(url.replace("://", "://:a%3Ab%2Fc%40d@")), RedisClient(url)
    try:
        for server in shared_cluster.masters:
            server.run("CONFIG", "SET", "requirepass", "a:b/c@d")
        assert await known.calls(["EXISTS", new_id()] for _ in range(30)) == [0] * 30
        with pytest.raises(Unavailable):
            await stranger.call("EXISTS", "key")
    finally:
        for server in shared_cluster.masters:
            server.run("CONFIG", "SET", "requirepass", "")
        for each in (known, stranger):
            await each.close()


async def test_the_streams_of_a_dead_replica_end_also_while_a_master_is_away(
    cluster: RedisCluster,
) -> None:
    async with scripted(Ticking()) as upstream:
        given = {"redis_url": cluster.url, "upstream_url": upstream.url}
        with process("serve", "--port", "0", secrets=SECRET, lease="1", **given) as dying:
            async with running(**given) as successor, client(dying.url) as http:
                streams: dict[str, int] = {}
                while len(set(streams.values())) < 3 or len(streams) < 9:
                    answer = await http.post("/tickets", json=ask(), headers=successor.cookie())
                    url, ticket = answer.json()["stream_url"], answer.json()["ticket"]
                    stream_id = successor.gateway.tickets.verify(ticket).stream_id
                    streams[url] = cluster.shard_of(record_key(stream_id))
                    await read(http, url, headers=successor.cookie(), enough=_begun)
                cluster.masters[0].kill()
                dying.process.kill()
                for url in (each for each, shard in streams.items() if shard):
                    seen = await follow(
                        successor.http, partial(str, url), successor.cookie(), seconds=15
                    )
                    assert seen.end["state"] == "interrupted"
        assert len(upstream.calls) == len(streams)


def _begun(got: Transcript) -> bool:
    return len(got.events) > 3


async def test_connections_to_a_cluster_do_not_grow_with_callers(
    shared_cluster: RedisCluster,
) -> None:
    def connected() -> list[int]:
        return [server.run("CLIENT", "LIST").count(b"laddr=") for server in shared_cluster.masters]

    before, store = connected(), RedisClient(shared_cluster.url)
    await asyncio.gather(*(store.call("GET", new_id()) for _ in range(1000)))
    await asyncio.gather(*(store.read([["GET", new_id()]]) for _ in range(300)))
    assert [now - then for now, then in zip(connected(), before, strict=True)] == [2, 2, 2]
    await store.close()
    await until(lambda: connected() == before)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_master_that_is_away_holds_up_the_streams_of_no_other(
    cluster: RedisCluster, how: str
) -> None:
    ticking = Ticking()
    async with scene(cluster, ticking, lease=2) as on:
        streams = [await on.watched(shard) for shard in (0, 1, 2)]
        away = cluster.masters[0]
        away.kill() if how == "killed" else away.pause()
        begun = time.monotonic()
        while time.monotonic() - begun < 3.5:  # Several leases and time-outs long.
            for each in streams[1:]:
                await each.more(1)
        assert streams[0].seen.raw.endswith(HEARTBEAT)
        new = [await on.watched(shard) for shard in (1, 2)]
        away.start() if how == "killed" else away.resume()
        await streams[0].more(10, 20)
        ticking.ended.set()
        for each in [*streams, *new]:
            await each.end()
            is_whole(each, ticking)
        assert len(on.upstream.calls) == 5


async def test_a_shard_that_comes_back_empty_is_told_its_streams_and_nobody_gets_410(
    cluster: RedisCluster,
) -> None:
    ticking = Ticking()
    async with scene(cluster, ticking, lease=3) as on:
        streams = [await on.watched(shard) for shard in (0, 1, 2)]
        waiting, _, _ = await on.ticket(1)
        kept, _, _ = await on.ticket(2)
        cluster.masters[1].kill()
        cluster.masters[1].start()
        cluster.wait_until_ok()
        lost = await on.other.read(waiting)
        assert (lost.status, lost.events) == (200, [])
        assert lost.raw.startswith(b"retry:")
        for each in streams:
            await each.more(10, 20)
        ticking.ended.set()
        for each in streams:
            await each.end()
            is_whole(each, ticking)
        assert (await on.other.read(kept)).end["state"] == "done"
        assert len(on.upstream.calls) == 4
        # Once its memory is no longer young, what it does not know was not redeemed in time.
        await until(lambda: _status(on, waiting, 410))


async def _status(on: Scene, url: str, status: int) -> bool:
    return (await on.other.read(url)).status == status

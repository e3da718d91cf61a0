"""What runs on all replicas is seen from outside, and cancelled, without anybody's help."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gateway.eventlog.fanout import Fanout
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.inquiry import Sight, ask
from gateway.runs.listing import Found, Listing, Owner, Stream
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import HEARTBEATS, control_channel, new_id, record_key, runs_key
from tests.runs.test_takeover import LOST, crashing, dies, id_of, via
from tests.support import OK, Call, RedisServer, Served, chunk, gateway, settings, sse, until

LEASE = 1.0


@pytest.fixture
async def store(store: RedisClient) -> RedisClient:
    """Every kind of store, one after the other, without the replicas of earlier tests."""
    await store.calls(["DEL", HEARTBEATS + tag] for tag in store.quorum_tags)
    return store


def listing(store: RedisClient) -> Listing:
    """Return what an operator's command sees."""
    return Listing(store, settings(lease=LEASE))


async def only(store: RedisClient, subject: str | None = None) -> Stream:
    """Return the only stream that runs."""
    (found,) = (await listing(store).running(subject)).streams
    return found


class Mute:
    """A replica that runs a stream and answers nobody, as one of before this question was."""

    def __init__(self, store: RedisClient, subject: str = "alice") -> None:
        self.name = new_id()
        self.stream = new_id()
        self._subject = subject
        self._heartbeat = Heartbeat(store, self.name, LEASE)
        self.records = Records(
            store, self.name, start_by=60, log_ttl=60, max_run=lambda: 60, lease=LEASE
        )

    async def begin(self) -> None:
        """Run one stream, named as each is before it is claimed."""
        await self.records.create(self.stream, self._subject, "default", b"{}", "digest")
        await self._heartbeat.register(self.stream)
        await self.records.claim(self.stream, "nonce")
        await self.beat()

    async def beat(self) -> None:
        """Renew its lease."""
        await self._heartbeat.renew([self.stream])


@asynccontextmanager
async def beating(replica: Mute) -> AsyncIterator[None]:
    """Let a replica live for the length of the block."""

    async def live() -> None:
        while True:
            await replica.beat()
            await asyncio.sleep(LEASE / 4)

    task = asyncio.create_task(live())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def two_words(call: Call) -> None:
    """Answer with two events, then hold on."""
    await call.send(OK, sse(*LOST))
    await call.left.wait()


async def test_a_stream_that_runs_is_told_with_its_events_and_its_viewers(
    any_redis_url: str, store: RedisClient
) -> None:
    async with gateway(two_words, redis_url=any_redis_url) as (gate, _):
        seen = gate.gateway.store  # Of an embedded store nobody else is in reach.
        url, waiting = await gate.ticket(), await gate.ticket()
        looks = [asyncio.create_task(gate.read(url)) for _ in range(2)]

        async def both() -> Found | None:
            found = await listing(seen).running()
            told = [(each.events, each.viewers) for each in found.streams]
            return found if told == [(2, 2)] else None

        found: Found = await until(both, "both watch two events")
        assert (found.silent, found.unread) == ([], 0)
        (stream,) = found.streams
        assert stream.id == id_of(url) != id_of(waiting)
        assert (stream.subject, stream.preset, stream.cancelled) == ("alice", "default", False)
        assert (stream.owner, stream.owner_state) == (gate.gateway.name, Owner.ANSWERS)
        assert 0 <= stream.age < 20
        assert (await listing(seen).running("alice")).streams
        assert (await listing(seen).running("bob")).streams == []
        for look in looks:
            look.cancel()


async def test_a_cancel_from_outside_ends_the_run_wherever_it_is(
    any_redis_url: str, store: RedisClient
) -> None:
    async with gateway(two_words, redis_url=any_redis_url) as (gate, upstream):
        outside = listing(gate.gateway.store)
        url = await gate.ticket()
        look = asyncio.create_task(gate.read(url))
        await until(lambda: upstream.calls)
        assert await outside.cancel(id_of(url)) == (True, "cancelled")
        assert (await asyncio.wait_for(look, 20)).end["state"] == "cancelled"
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert (await outside.running()).streams == []
        assert await outside.cancel(id_of(url)) == (True, "it had ended before: cancelled")


async def test_a_cancel_says_what_came_of_it_where_nothing_runs(redis_url: str) -> None:
    async def whole_soon(call: Call) -> None:
        await call.send(OK, sse(chunk("Hi", finish="stop"), b"[DONE]"))

    async with gateway(whole_soon, redis_url=redis_url) as (gate, upstream):
        outside = listing(gate.gateway.store)
        waiting, ended = await gate.ticket(), await gate.ticket()
        await gate.read(ended)
        said = (True, "cancelled, before anybody redeemed it")
        assert await outside.cancel(id_of(waiting)) == said
        assert await outside.cancel(id_of(ended)) == (False, "it had ended before: done")
        assert len(upstream.calls) == 1
        for nobody in (new_id(), "", "a b", "\x1b[2J", "{x}", "\udcff", "x" * 100_000):
            gone = (False, "there is no such stream, or it is not kept any more")
            assert await outside.cancel(nobody) == gone


async def test_a_cancel_of_a_run_whose_owner_hears_nothing_is_stored(
    own_redis: RedisServer,
) -> None:
    store = RedisClient(own_redis.url)
    mute = Mute(store)
    await mute.begin()
    stored, words = await listing(store).cancel(mute.stream)
    assert stored
    assert words == f"its cancel is stored; {mute.name} runs it, and has not ended it yet"
    assert (await only(store)).cancelled
    assert await Heartbeat(store, mute.name, LEASE).cancels() == [mute.stream]
    await store.close()


async def test_a_replica_that_beats_and_does_not_answer_leaves_open_what_only_it_knows(
    store: RedisClient,
) -> None:
    mute = Mute(store)
    await mute.begin()
    async with beating(mute):
        found = await listing(store).running()
    (stream,) = found.streams
    assert (stream.id, stream.owner, stream.owner_state) == (mute.stream, mute.name, Owner.SILENT)
    assert (stream.events, stream.viewers) == (None, None)
    assert found.silent == [mute.name]


async def test_a_replica_that_stands_still_for_a_lease_is_gone(store: RedisClient) -> None:
    mute = Mute(store)
    await mute.begin()

    async def gone() -> Found | None:
        found = await listing(store).running()
        (stream,) = found.streams
        return found if stream.owner_state is Owner.GONE else None

    found: Found = await until(gone, "it stood still while it was looked at, and not too slowly")
    (stream,) = found.streams
    assert stream.id == mute.stream
    assert (stream.events, stream.viewers, found.silent) == (None, 0, [])


async def test_a_stream_that_two_replicas_name_is_told_once_and_one_that_ended_never(
    store: RedisClient,
) -> None:
    mute, other = Mute(store), Mute(store)
    await mute.begin()
    await other.begin()
    other_copies = [runs_key(other.name, tag) for tag in store.quorum_tags]
    await store.calls(["SADD", key, mute.stream, new_id()] for key in other_copies)
    await other.records.store.call("HSET", record_key(other.stream), "state", "cancelled")
    assert (await only(store)).id == mute.stream


async def test_a_record_that_redis_does_not_give_hides_no_other(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    mute, other = Mute(store), Mute(store)
    await mute.begin()
    await other.begin()
    await store.call("SET", record_key(other.stream), "no hash")
    found = await listing(store).running()
    await store.close()
    assert [each.id for each in found.streams] == [mute.stream]
    assert found.unread == 1


async def test_a_dead_replicas_stream_is_its_successors_with_all_its_events(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies, two_words) as (_, b, a):
        outside, url = listing(b.gateway.store), await b.ticket()
        await via(a, url, len(LOST))  # It is the one that runs it.
        looks = [asyncio.create_task(b.read(url)), asyncio.create_task(via(a, url, 99))]

        async def watched_twice() -> Stream | None:
            found = next(iter((await outside.running()).streams), None)
            return found if found and (found.events, found.viewers) == (2, 2) else None

        before: Stream = await until(watched_twice, "a viewer each")
        a.signal(signal.SIGKILL)

        async def taken_over() -> Stream | None:
            found = next(iter((await outside.running()).streams), None)
            return found if found and found.owner != before.owner and found.events == 5 else None

        after: Stream = await until(taken_over, "its successor has two events more, and a reset")
        assert (after.id, after.owner) == (before.id, b.gateway.name)
        assert (after.owner_state, after.viewers) == (Owner.ANSWERS, 1)
        for look in looks:
            look.cancel()


# What replicas answer


async def watched(fanout: Fanout, count: int, stack: AsyncExitStack) -> dict[str, Sight]:
    """Watch so many streams that nobody runs; return what is to be seen."""
    ids = [new_id() for _ in range(count)]
    for some in (ids[at : at + 100] for at in range(0, count, 100)):  # Else it is overloaded.
        for viewer in await asyncio.gather(*(fanout.attach(each, "", None) for each in some)):
            stack.callback(fanout.detach, viewer)
    return dict.fromkeys(ids, Sight(1, None))


async def served_by(gate: Served) -> dict[str, dict[str, Sight]]:
    """Ask one replica."""
    return await ask(gate.gateway.store, [gate.gateway.name], 5)


async def test_a_long_answer_comes_in_messages_of_bounded_size(redis_url: str) -> None:
    async with gateway(two_words, redis_url=redis_url) as (gate, _), AsyncExitStack() as stack:
        assert await served_by(gate) == {gate.gateway.name: {}}
        seen = await watched(gate.gateway.fanout, 1201, stack)
        sizes: list[int] = []
        channel = new_id()

        async def listen() -> None:
            async for message in gate.gateway.store.messages(control_channel(channel)):
                sizes.append(len(message))
                if not message:
                    words = (control_channel(gate.gateway.name), f"streams {channel}")
                    await gate.gateway.store.publish([words])

        task = asyncio.create_task(listen())
        assert await served_by(gate) == {gate.gateway.name: seen}
        await until(lambda: len(sizes) == 4, "three messages")
        task.cancel()
    assert max(sizes) < 16_384


@contextmanager
def answering(store: RedisClient, name: str, *answers: bytes) -> Iterator[None]:
    """Let a replica of that name answer in these words."""

    async def live() -> None:
        async for message in store.messages(control_channel(name)):
            if message:
                asker = message.decode().split()[1]
                for each in answers:
                    await store.call("PUBLISH", control_channel(asker), each)

    task = asyncio.create_task(live())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"odd", id="a name"),
        pytest.param(b"odd 0 2 a:1:", id="a half"),
        pytest.param(b"odd 0 0 a:1:", id="a part of none"),
        pytest.param(b"odd 0 1 a", id="no numbers"),
        pytest.param(b"odd 0 1 a:x:1", id="a word for a number"),
        pytest.param(b"odd 0 1 a:1:2:3", id="a number more"),
        pytest.param(b"odd 0 1 a:%s:" % (b"9" * 5000), id="a number too long"),
        pytest.param(b"other 0 1 a:1:", id="of who was not asked"),
    ],
)
async def test_an_answer_that_cannot_be_read_is_none(
    shared_redis: RedisServer, words: bytes
) -> None:
    store = RedisClient(shared_redis.url)
    with answering(store, "odd", words), answering(store, "good", b"good 0 1 a:1:2"):
        await store.hears(control_channel("any"))  # Listens as those do, only later.

        async def answered() -> dict[str, dict[str, Sight]]:
            return await ask(store, ["odd", "good"], 0.3)

        assert await until(answered) == {"good": {"a": Sight(1, 2)}}
    await store.close()


async def test_nobody_is_waited_for_where_nobody_is(store: RedisClient) -> None:
    begun = asyncio.get_running_loop().time()
    assert await ask(store, [], 60) == {}
    assert await listing(store).running() == ([], [], 0)
    assert asyncio.get_running_loop().time() - begun < 30

"""A replica that stands still for a lease is dead, and only then."""

import asyncio
from collections.abc import Collection
from functools import partial

import pytest

from gateway.errors import Unavailable
from gateway.membership.heartbeat import Heartbeat
from gateway.store.client import RedisClient
from gateway.store.data_loss import DataLossDetector
from gateway.store.keys import HEARTBEATS, cancels_key, control_channel, new_id, runs_key
from tests.eventlog.test_writer import proxied
from tests.support import RedisServer, until

LEASE = 0.4


@pytest.fixture
async def store(store: RedisClient) -> RedisClient:
    """Every kind of store, one after the other; what earlier tests left there is evicted."""
    await store.calls(["DEL", HEARTBEATS + tag] for tag in store.quorum_tags)
    return store


def heartbeat(store: RedisClient, lease: float = LEASE) -> Heartbeat:
    """Return the heartbeat of a new replica."""
    return Heartbeat(store, new_id(), lease)


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


async def renewed(
    who: Heartbeat, running: Collection[str] = (), owners: Collection[str] = ()
) -> list[str]:
    """Renew as the supervisor does, which looks for lost data meanwhile; return who is dead."""
    await who.renew(running)
    data_loss = DataLossDetector(who._store, who.lease)
    await data_loss.renew()
    await data_loss.stop()
    return who.deaths(owners)


async def seen_dead(watcher: Heartbeat, name: str, owners: Collection[str] = ()) -> float:
    """Renew until a replica is declared dead; return how long that took."""
    begun = now()
    while name not in await renewed(watcher, [], owners):
        assert now() - begun < 30
        await asyncio.sleep(0.01)
    return now() - begun


async def test_a_replica_that_stands_still_for_a_lease_is_dead_and_not_before(
    store: RedisClient,
) -> None:
    still, watcher = heartbeat(store), heartbeat(store)
    await renewed(still)
    assert await seen_dead(watcher, still.replica) >= LEASE


async def test_a_replica_that_beats_lives_however_long_it_is_watched(store: RedisClient) -> None:
    alive, watcher = heartbeat(store), heartbeat(store)
    end = now() + 3 * LEASE
    while now() < end:
        await renewed(alive)
        assert await renewed(watcher) == []
        await asyncio.sleep(0.01)


async def test_one_beat_starts_the_count_anew(store: RedisClient) -> None:
    slow, watcher = heartbeat(store, 1.2), heartbeat(store, 1.2)
    await renewed(slow)
    begun = now()
    while now() - begun < 0.4:
        assert await renewed(watcher) == []
        await asyncio.sleep(0.01)
    await renewed(slow)
    assert await seen_dead(watcher, slow.replica) >= 1.2


async def test_nobody_declares_itself_dead(store: RedisClient) -> None:
    alone = heartbeat(store, 0.01)
    end = now() + 0.1
    while now() < end:
        assert alone.replica not in await renewed(alone, [], [alone.replica])


async def test_two_looks_a_lease_apart_prove_nothing(store: RedisClient) -> None:
    """Who was paused itself, maybe with its whole host, did not see the others stand still."""
    other, watcher = heartbeat(store, 0.2), heartbeat(store, 0.2)
    await renewed(other)
    await renewed(watcher)
    await until(lambda: not watcher.lease_valid)
    paused_until = now() + 0.3
    await until(lambda: now() > paused_until)
    assert await renewed(watcher) == []


async def test_a_failed_call_starts_the_count_anew(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    still, watcher = heartbeat(store, 2.5), heartbeat(store, 2.5)
    await renewed(still)
    await renewed(watcher)
    own_redis.pause()
    with pytest.raises(Unavailable):
        await renewed(watcher)
    own_redis.resume()
    assert await seen_dead(watcher, still.replica) >= 2.5
    await store.close()


async def test_a_look_whose_answer_is_late_proves_nothing_about_the_time_before_it(
    own_redis: RedisServer,
) -> None:
    """A slow Redis must not make a replica look dead that beats in time."""
    direct = RedisClient(own_redis.url)
    async with proxied(own_redis) as proxy:
        store = RedisClient(proxy.url)
        alive, watcher = heartbeat(direct, 1), heartbeat(store, 1)
        await renewed(watcher)
        proxy.answering.clear()
        look = asyncio.create_task(renewed(watcher))
        asked_at = now()
        await until(lambda: now() > asked_at + 0.5)
        await renewed(alive)
        beaten_at = now()
        proxy.answering.set()
        await look
        await seen_dead(watcher, alive.replica)
        assert now() - beaten_at >= 1
        await store.close()
    await direct.close()


async def test_an_owner_that_redis_forgot_is_found_by_those_who_watch_its_streams(
    store: RedisClient,
) -> None:
    watcher, ghost = heartbeat(store), new_id()
    assert ghost not in await renewed(watcher)
    assert await seen_dead(watcher, ghost, [ghost]) >= LEASE


async def test_an_owner_that_comes_back_after_redis_forgot_lives(store: RedisClient) -> None:
    owner, watcher = heartbeat(store), heartbeat(store)
    await renewed(owner)
    await renewed(watcher, [], [owner.replica])
    await store.calls(["DEL", HEARTBEATS + tag] for tag in store.quorum_tags)
    end = now() + 2 * LEASE
    while now() < end:
        assert await renewed(watcher, [], [owner.replica]) == []
        await renewed(owner)
        await asyncio.sleep(0.01)


async def test_an_end_in_good_order_leaves_nothing_to_wait_for(store: RedisClient) -> None:
    leaving, watcher = heartbeat(store), heartbeat(store)
    await renewed(leaving, ["stream"])
    await leaving.ask_to_cancel("stream", leaving.replica)
    await renewed(watcher)
    await leaving.stop()

    async def left(*asked: str) -> bool:
        return not await store.call(*asked)

    for tag in store.quorum_tags:  # The last quorum copy is asked behind.
        for key in (runs_key(leaving.replica, tag), cancels_key(leaving.replica, tag)):
            await until(partial(left, "EXISTS", key))
        await until(partial(left, "HEXISTS", HEARTBEATS + tag, leaving.replica))
    end = now() + 2 * LEASE
    while now() < end:
        assert await renewed(watcher) == []
        await asyncio.sleep(0.01)


async def test_a_dead_replica_that_was_evicted_is_dead_no_more(store: RedisClient) -> None:
    still, watcher = heartbeat(store), heartbeat(store)
    await renewed(still, ["stream"])
    await seen_dead(watcher, still.replica)
    assert await watcher.left_by(still.replica) == ["stream"]
    await watcher.taken_over(still.replica, ["stream"])
    await evicted(watcher, still.replica)
    assert await renewed(watcher) == []
    assert await watcher.streams_of(still.replica) == []


async def evicted(watcher: Heartbeat, name: str, but: Collection[str] = ()) -> None:
    """Evict a replica until no quorum copy names more: one of three may have heard it late."""

    async def is_evicted() -> bool:
        return await watcher.evict(name) == [*but]

    await until(is_evicted, "it is evicted")


async def test_who_beats_again_after_it_was_seen_to_be_dead_left_nothing(
    store: RedisClient,
) -> None:
    """Its successor may have stood still itself since; what it runs now is not for it."""
    paused, successor = heartbeat(store), heartbeat(store)
    await renewed(paused, ["stream"])
    await seen_dead(successor, paused.replica)
    await renewed(paused, ["stream", "new"])
    with pytest.raises(Unavailable):
        await successor.left_by(paused.replica)


async def test_who_beats_again_keeps_the_name_of_what_it_runs(store: RedisClient) -> None:
    """Else nobody would find a stream that it goes on with, should it die again."""
    paused, successor = heartbeat(store), heartbeat(store)
    await renewed(paused, ["stream"])
    await seen_dead(successor, paused.replica)
    await successor.left_by(paused.replica)
    await renewed(paused, ["stream"])
    with pytest.raises(Unavailable):
        await successor.taken_over(paused.replica, ["stream"])
    with pytest.raises(Unavailable):
        await successor.evict(paused.replica)
    assert await successor.streams_of(paused.replica) == ["stream"]
    assert await seen_dead(successor, paused.replica) >= LEASE


async def test_an_eviction_is_not_over_while_a_stream_is_named(store: RedisClient) -> None:
    """It may be named in a quorum copy that was not heard at first."""
    paused, successor = heartbeat(store), heartbeat(store)
    await renewed(paused, ["stream"])
    await seen_dead(successor, paused.replica)
    await successor.left_by(paused.replica)
    for tag in store.quorum_tags:
        await store.call("SADD", runs_key(paused.replica, tag), "new")
    await successor.taken_over(paused.replica, ["stream"])
    await evicted(successor, paused.replica, but=["new"])
    await seen_dead(successor, paused.replica)
    await successor.taken_over(paused.replica, ["new"])
    await evicted(successor, paused.replica)


async def test_thousands_of_streams_are_taken_off_a_list(store: RedisClient) -> None:
    still, successor = heartbeat(store), heartbeat(store)
    names = [f"stream {number}" for number in range(20_000)]
    await renewed(still, names)
    await seen_dead(successor, still.replica)
    await successor.taken_over(still.replica, names)
    await evicted(successor, still.replica)


async def test_the_dead_are_named_until_somebody_evicts_them(store: RedisClient) -> None:
    still, watcher = heartbeat(store), heartbeat(store)
    await renewed(still)
    for _ in range(3):
        await seen_dead(watcher, still.replica)


async def test_a_replica_names_what_it_runs(store: RedisClient) -> None:
    owner = heartbeat(store)
    await owner.register("early")
    await renewed(owner, ["early", "late"])
    await owner.unregister("early")

    async def only_late() -> bool:
        return await owner.streams_of(owner.replica) == ["late"]

    await until(only_late, "the last quorum copy has heard it")


async def test_what_redis_forgot_of_the_running_streams_is_named_again(store: RedisClient) -> None:
    owner = heartbeat(store)
    await owner.register("stream")
    await store.calls(["DEL", runs_key(owner.replica, tag)] for tag in store.quorum_tags)
    await renewed(owner, ["stream"])
    assert await owner.streams_of(owner.replica) == ["stream"]


async def test_a_cancel_is_told_until_it_is_carried_out(store: RedisClient) -> None:
    owner, other = heartbeat(store), heartbeat(store)
    await other.ask_to_cancel("stream", owner.replica)
    assert await owner.cancels() == ["stream"]
    for _ in range(2):
        assert await owner.renew([]) == ["stream"]
    await owner.cancelled("stream")

    async def is_done() -> bool:
        return await owner.renew([]) == []

    await until(is_done, "the last quorum copy has heard it")


async def test_a_cancel_wakes_the_owner(store: RedisClient) -> None:
    owner, other = heartbeat(store), heartbeat(store)
    messages = store.messages(control_channel(owner.replica))
    assert await anext(messages) == b""
    await other.ask_to_cancel("stream", owner.replica)
    assert await anext(messages) == b"cancel stream"
    await messages.aclose()


async def test_who_cannot_renew_may_not_ask_long_before_others_think_it_dead(
    store: RedisClient,
) -> None:
    mine = heartbeat(store, 2)
    assert not mine.lease_valid
    begun = now()
    await renewed(mine)
    assert mine.lease_valid
    await until(lambda: not mine.lease_valid)
    assert now() - begun < 2


async def test_who_was_late_since_a_claim_is_well_again_but_has_no_right_by_it(
    store: RedisClient,
) -> None:
    mine = heartbeat(store, 2)
    claimed = now()
    await renewed(mine)
    assert not mine.lease_held_since(claimed)
    claimed = now()
    await renewed(mine)
    assert mine.lease_held_since(claimed)
    await until(lambda: not mine.lease_valid)
    await renewed(mine)
    assert mine.lease_valid
    assert not mine.lease_held_since(claimed)
    assert mine.lease_held_since(now())


async def test_every_key_of_a_heartbeat_has_a_ttl(store: RedisClient) -> None:
    mine, other = heartbeat(store), heartbeat(store)
    await mine.register("stream")
    await renewed(mine, ["stream"])
    await other.ask_to_cancel("stream", mine.replica)
    keys: list[str] = []
    for tag in store.quorum_tags:
        keys += [HEARTBEATS + tag, runs_key(mine.replica, tag), cancels_key(mine.replica, tag)]
    for key in keys:
        assert await store.call("PTTL", key) > 0, key


async def test_a_key_whose_batch_broke_before_its_ttl_gets_it_at_the_next_beat(
    store: RedisClient,
) -> None:
    alive, other = heartbeat(store), heartbeat(store)
    await alive.register("a stream")
    await other.ask_to_cancel("a stream", alive.replica)
    keys = [
        key
        for tag in store.quorum_tags
        for key in (HEARTBEATS + tag, runs_key(alive.replica, tag), cancels_key(alive.replica, tag))
    ]

    async def reached(key: str) -> bool:  # The last quorum copy is asked behind.
        return bool(await store.call("EXISTS", key))

    async def dated(key: str) -> bool:
        return int(await store.call("PTTL", key)) > 0

    for key in keys:
        await until(partial(reached, key))
        await store.call("PERSIST", key)
    await renewed(alive)
    for key in keys:
        await until(partial(dated, key))


async def test_what_is_named_during_an_eviction_stays_on_the_list(store: RedisClient) -> None:
    watcher, woken = heartbeat(store), heartbeat(store)
    await woken.register("s1")
    await renewed(woken)
    await seen_dead(watcher, woken.replica)
    assert await watcher.left_by(woken.replica) == ["s1"]
    await woken.register("s1")
    with pytest.raises(Unavailable):
        await watcher.taken_over(woken.replica, ["s1"])
    assert await watcher.streams_of(woken.replica) == ["s1"]


async def test_a_replica_that_names_a_stream_is_seen_before_its_first_beat(
    store: RedisClient,
) -> None:
    """Redis may have forgotten the heartbeat, and the replica may die before the next one."""
    young, watcher = heartbeat(store), heartbeat(store)
    await young.register("a stream")
    assert await seen_dead(watcher, young.replica) >= LEASE

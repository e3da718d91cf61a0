"""What each script of the record promises, on the embedded store and on a real server."""

import asyncio
from typing import Any

import pytest

from gateway.errors import EarlierNeeded, Fenced, InDoubt, Sealed, Unavailable
from gateway.eventlog.entries import End, Seal
from gateway.eventlog.reader import read_all
from gateway.runs.presence import Presence
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import DAY, HEARTBEATS, log_key, new_id, record_key, runs_key
from tests.eventlog.test_writer import proxied
from tests.support import RedisServer, until

REQUEST = b'{"model":"pretend"}'


def replica(store: RedisClient, name: str = "") -> Records:
    """Return the records as one replica sees them."""
    name = name or new_id()
    return Records(store, name, start_by=60, log_ttl=600, max_run=lambda: 600, lease=1)


async def cached(records: Records, stream_id: str = "") -> str:
    """Store a request; return its stream id."""
    stream_id = stream_id or new_id()
    await records.create(stream_id, "alice", "default", REQUEST, "digest")
    return stream_id


async def claimed(records: Records) -> tuple[str, int]:
    """Store a request and claim it; return the stream id and the epoch."""
    stream_id = await cached(records)
    claim = await records.claim(stream_id, new_id())
    assert claim.verdict == "claimed"
    return stream_id, claim.epoch


async def ran_out(records: Records) -> str:
    """Store a request whose time to be redeemed is over."""
    stream_id = await cached(records)
    await records.store.call("HSET", record_key(stream_id), "start_by", 1)
    return stream_id


async def log_ids(store: RedisClient, stream_id: str) -> list[str]:
    """Return the ids of a log's entries."""
    return [entry[0].decode() for entry in await store.call("XRANGE", log_key(stream_id), "-", "+")]


async def append(store: RedisClient, stream_id: str, entry_id: str) -> None:
    """Append as an owner does."""
    await store.call("XADD", log_key(stream_id), "NOMKSTREAM", entry_id, "1", "frame")


async def found(records: Records, stream_id: str) -> Record:
    """Return a record that must be there."""
    record = await records.read(stream_id)
    assert record is not None
    return record


def ending(epoch: int, last: int = 0, state: str = "done") -> Seal:
    """Return a seal after `last` events: two events, or one if a cancel came first."""
    return Seal(
        last_id=f"{epoch}-{last}",
        end=End(state, f"{epoch}-{last + 2}", 2, b"failure and end"),
        if_cancelled=End("cancelled", f"{epoch}-{last + 1}", 1, b"cancelled"),
        result=b"{}",
    )


def restored(**more: Any) -> dict[str, Any]:
    """Return the fields that an owner writes again."""
    return {"version": 1, "subject": "alice", "issued": 1, "start_by": 2, **more}


# create


async def test_a_request_is_stored_once_and_the_second_call_tells_what_is_there(
    store: RedisClient,
) -> None:
    records, stream_id = replica(store), new_id()
    first = await records.create(stream_id, "alice", "default", REQUEST, "one")
    second = await records.create(stream_id, "alice", "default", b"other", "two")
    assert (first.made, second.made) == (True, False)
    assert (second.digest, second.issued, second.start_by) == ("one", first.issued, first.start_by)
    assert (await records.claim(stream_id, "n")).request == REQUEST


async def test_a_new_ticket_has_the_whole_time_to_be_redeemed(store: RedisClient) -> None:
    created = await replica(store).create(new_id(), "alice", "default", REQUEST, "digest")
    assert created.start_by - created.issued == 60_000
    assert created.seconds_left == 60


async def test_what_ran_out_unredeemed_is_replaced(store: RedisClient) -> None:
    records = replica(store)
    stream_id = await ran_out(records)
    created = await records.create(stream_id, "alice", "default", b"new", "other")
    assert (created.made, created.digest, created.state) == (True, "other", "cached")
    assert (await records.claim(stream_id, "n")).request == b"new"


async def test_what_was_redeemed_is_never_replaced(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await store.call("HSET", record_key(stream_id), "start_by", 1)
    assert not (await records.create(stream_id, "alice", "default", b"", "x")).made
    await records.seal(stream_id, epoch, ending(epoch))
    again = await records.create(stream_id, "alice", "default", b"", "x")
    assert (again.made, again.state, again.seconds_left) == (False, "done", 0)


async def test_a_full_redis_takes_no_new_request(own_redis: RedisServer) -> None:
    """It would take it from a script whose first command needs no room, and grow on."""
    store = RedisClient(own_redis.url)
    await store.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Unavailable):
        await cached(replica(store))
    assert await store.call("DBSIZE") == 0
    await store.close()


# claim


async def test_one_of_many_racers_becomes_the_owner(store: RedisClient) -> None:
    stream_id = await cached(replica(store))
    racers = [replica(store) for _ in range(20)]
    claims = await asyncio.gather(*(each.claim(stream_id, new_id()) for each in racers))
    winners = [racer for racer, claim in zip(racers, claims, strict=True) if claim.epoch]
    assert sorted(claim.verdict for claim in claims) == ["attach"] * 19 + ["claimed"]
    assert (await found(racers[0], stream_id)).owner == winners[0].replica


async def test_the_same_nonce_again_is_the_same_claim(store: RedisClient) -> None:
    records = replica(store)
    stream_id = await cached(records)
    first = await records.claim(stream_id, "nonce")
    assert await records.claim(stream_id, "nonce") == first
    assert first.request == REQUEST
    assert await log_ids(store, stream_id) == [f"{first.epoch}-0"]


@pytest.mark.parametrize("other", ["nonce", "owner"])
async def test_a_claim_is_repeated_only_by_its_own_attempt(store: RedisClient, other: str) -> None:
    records = replica(store)
    stream_id = await cached(records)
    await records.claim(stream_id, "nonce")
    again = records if other == "nonce" else replica(store)
    assert (await again.claim(stream_id, "other" if other == "nonce" else "nonce")).epoch == 0


async def test_a_claim_by_a_name_that_was_evicted_since_is_not_valid(store: RedisClient) -> None:
    """What it named is off all lists: should it die now, nobody would find the stream."""
    late, successor = replica(store), replica(store)
    stream_id = await cached(late)
    before = await found(late, stream_id)
    assert await successor.takeover(stream_id, late.replica, new_id()) is None
    assert (await late.claim(stream_id, "nonce", before.buried)).verdict == "unnamed"
    after = await found(late, stream_id)
    assert after.state == "cached"
    assert (await late.claim(stream_id, "nonce", after.buried)).verdict == "claimed"


async def test_a_ticket_that_ran_out_is_not_claimed(store: RedisClient) -> None:
    records = replica(store)
    stream_id = await ran_out(records)
    assert (await records.claim(stream_id, "n")).verdict == "expired"
    assert (await found(records, stream_id)).expired
    assert await log_ids(store, stream_id) == []


async def test_what_is_not_there_is_not_claimed(store: RedisClient) -> None:
    stream_id = new_id()
    assert (await replica(store).claim(stream_id, "n")).verdict == "missing"
    assert await store.call("EXISTS", record_key(stream_id), log_key(stream_id)) == 0


async def test_what_redis_forgot_lends_its_epoch_to_nobody(store: RedisClient) -> None:
    """Else what was seen of the one log would be a place in the other one, without a gap."""
    records, stream_id, after = replica(store), new_id(), 2**50
    await records.create(stream_id, "alice", "default", REQUEST, "digest", {"ahead": after})
    epochs: list[list[int]] = [[], []]

    async def next_one(claims: bool) -> bool:
        """Claim it, or take it over, as if that had not been done before."""
        fields = {"state": "cached" if claims else "starting", "owner": "dead", "nonce": "old"}
        flat = [part for field in fields.items() for part in field]
        await store.call("DEL", log_key(stream_id))
        await store.call("HSET", record_key(stream_id), *flat)
        if claims:
            await store.call("HDEL", record_key(stream_id), "epoch")
            epochs[0].append((await records.claim(stream_id, new_id())).epoch)
        else:
            await store.call("HSET", record_key(stream_id), "epoch", after + 1)
            epochs[1].append(await records.takeover(stream_id, "dead", new_id()) or 0)
        return len(epochs[not claims]) == 5

    await until(lambda: next_one(True))
    await until(lambda: next_one(False))
    for each in epochs:
        assert len(set(each)) == 5
        assert min(each) > after


async def test_epochs_grow_also_when_clock_and_record_have_gone_back(store: RedisClient) -> None:
    records = replica(store)
    stream_id, far = await cached(records), 2**50
    await store.call("XADD", log_key(stream_id), f"{far}-7", "1", "old")
    claim = await records.claim(stream_id, "n")
    assert claim.epoch > far
    epochs, owner = [claim.epoch], records
    for _ in range(3):
        successor = replica(store)
        taken = await successor.takeover(stream_id, owner.replica, "n")
        epochs.append(taken or 0)
        owner = successor
    assert epochs == sorted(set(epochs))


# takeover


async def test_a_stream_is_taken_from_the_owner_that_was_seen_and_from_no_other(
    store: RedisClient,
) -> None:
    owner, successor = replica(store), replica(store)
    stream_id, epoch = await claimed(owner)
    assert await successor.takeover(stream_id, "another", "n") is None
    taken = await successor.takeover(stream_id, owner.replica, "n")
    assert taken is not None
    assert taken > epoch
    assert (await found(owner, stream_id)).owner == successor.replica
    assert await replica(store).takeover(stream_id, owner.replica, "n") is None


async def test_a_takeover_fences_the_late_writes_of_the_old_owner(store: RedisClient) -> None:
    owner, successor = replica(store), replica(store)
    stream_id, epoch = await claimed(owner)
    await append(store, stream_id, f"{epoch}-1")
    taken = await successor.takeover(stream_id, owner.replica, "n")
    with pytest.raises(Unavailable):
        await append(store, stream_id, f"{epoch}-2")
    assert await log_ids(store, stream_id) == [f"{epoch}-0", f"{epoch}-1", f"{taken}-0"]
    with pytest.raises(Fenced):
        await owner.seal(stream_id, epoch, ending(epoch, 1))
    with pytest.raises(Fenced):
        await owner.hold(stream_id, epoch, restored())


async def test_a_takeover_repeated_by_its_own_attempt_is_one(store: RedisClient) -> None:
    owner, successor = replica(store), replica(store)
    stream_id, _ = await claimed(owner)
    first = await successor.takeover(stream_id, owner.replica, "nonce")
    assert first is not None
    assert await successor.takeover(stream_id, owner.replica, "nonce") == first
    assert len(await log_ids(store, stream_id)) == 2


@pytest.mark.parametrize("state", ["missing", "cached", "sealed"])
async def test_only_what_runs_is_taken_over(store: RedisClient, state: str) -> None:
    owner = replica(store)
    stream_id = new_id()
    if state == "cached":
        await cached(owner, stream_id)
    if state == "sealed":
        stream_id, epoch = await claimed(owner)
        await owner.seal(stream_id, epoch, ending(epoch))
    before = await log_ids(store, stream_id)
    assert await replica(store).takeover(stream_id, owner.replica, "n") is None
    assert await log_ids(store, stream_id) == before


# seal


async def test_a_seal_stores_end_state_and_lifetime_in_one_step(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    assert await records.seal(stream_id, epoch, ending(epoch)) == "done"
    record = await found(records, stream_id)
    assert (record.state, record.end_id, record.result) == ("done", f"{epoch}-2", b"{}")
    assert await log_ids(store, stream_id) == [f"{epoch}-0", f"{epoch}-2"]
    for key in (record_key(stream_id), log_key(stream_id)):
        assert 590_000 < await store.call("PTTL", key) <= 600_000
    assert await store.call("HEXISTS", record_key(stream_id), "request") == 0


async def test_a_seal_repeated_is_one(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    for _ in range(2):
        assert await records.seal(stream_id, epoch, ending(epoch)) == "done"
    assert len(await log_ids(store, stream_id)) == 2


async def test_a_cancel_that_came_first_wins_over_the_end(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    assert await records.cancel(stream_id, b"", b"") == ("cancelled", records.replica)
    for _ in range(2):
        assert await records.seal(stream_id, epoch, ending(epoch)) == "cancelled"
    assert (await found(records, stream_id)).end_id == f"{epoch}-1"
    assert await log_ids(store, stream_id) == [f"{epoch}-0", f"{epoch}-1"]


@pytest.mark.parametrize("last", [0, 2])
async def test_a_log_that_is_not_as_the_owner_thinks_is_not_sealed(
    store: RedisClient, last: int
) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await append(store, stream_id, f"{epoch}-1")
    with pytest.raises(InDoubt, match="behind"):
        await records.seal(stream_id, epoch, ending(epoch, last))
    assert (await found(records, stream_id)).running


async def test_nobody_but_the_owner_seals(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    with pytest.raises(Fenced):
        await replica(store).seal(stream_id, epoch, ending(epoch))
    with pytest.raises(Fenced):
        await records.seal(stream_id, epoch - 1, ending(epoch - 1))
    with pytest.raises(InDoubt, match="missing"):
        await records.seal(new_id(), epoch, ending(epoch))
    assert (await found(records, stream_id)).running


# cancel


async def test_a_cancel_of_a_cached_stream_ends_it_and_nobody_claims_it(store: RedisClient) -> None:
    records = replica(store)
    stream_id = await cached(records)
    assert await records.cancel(stream_id, b"event: end\n", b"{}") == ("cancelled", "")
    record = await found(records, stream_id)
    (entry,) = await read_all(store, stream_id)
    assert (record.end_id, entry.state) == (str(entry.last), "cancelled")
    assert entry.frames == f"event: end\nid: {entry.last}\n\n".encode()
    assert (await records.claim(stream_id, "n")).verdict == "attach"


async def test_a_cancel_of_a_running_stream_is_stored_and_names_its_owner(
    store: RedisClient,
) -> None:
    records = replica(store)
    stream_id, _ = await claimed(records)
    for _ in range(2):
        assert await replica(store).cancel(stream_id, b"", b"") == ("cancelled", records.replica)
    assert (await found(records, stream_id)).running


@pytest.mark.parametrize("state", ["done", "failed", "interrupted"])
async def test_a_cancel_of_an_ended_stream_tells_its_end(store: RedisClient, state: str) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await records.seal(stream_id, epoch, ending(epoch, state=state))
    assert await records.cancel(stream_id, b"", b"") == (state, "")


async def test_a_cancel_repeated_on_a_cached_stream_writes_one_end(store: RedisClient) -> None:
    records = replica(store)
    stream_id = await cached(records)
    for _ in range(2):
        assert await records.cancel(stream_id, b"", b"") == ("cancelled", "")
    assert len(await log_ids(store, stream_id)) == 1


async def test_a_cancel_of_what_ran_out_or_is_missing_changes_nothing(store: RedisClient) -> None:
    records = replica(store)
    late, never = await ran_out(records), new_id()
    assert await records.cancel(late, b"", b"") == ("expired", "")
    assert await records.cancel(never, b"", b"") == ("missing", "")
    for key in (record_key(never), log_key(never), log_key(late)):
        assert await store.call("EXISTS", key) == 0


# hold


async def test_a_hold_writes_again_what_redis_forgot(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await store.call("DEL", record_key(stream_id), log_key(stream_id))
    last = await records.hold(stream_id, epoch, restored(request=REQUEST))
    assert last == f"{epoch}-0"
    record = await found(records, stream_id)
    assert (record.state, record.owner, record.epoch) == ("starting", records.replica, epoch)
    assert await log_ids(store, stream_id) == [f"{epoch}-0"]


async def test_a_hold_tells_the_last_entry_and_appends_nothing_to_a_log_that_is_there(
    store: RedisClient,
) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await append(store, stream_id, f"{epoch}-3")
    for _ in range(2):
        assert await records.hold(stream_id, epoch, restored()) == f"{epoch}-3"
    assert len(await log_ids(store, stream_id)) == 2


async def test_a_hold_never_takes_back_what_another_owns(store: RedisClient) -> None:
    owner, successor = replica(store), replica(store)
    stream_id, epoch = await claimed(owner)
    taken = await successor.takeover(stream_id, owner.replica, "n")
    await store.call("DEL", record_key(stream_id))  # The fence in the log still tells.
    with pytest.raises(Fenced):
        await owner.hold(stream_id, epoch, restored())
    await successor.hold(stream_id, taken or 0, restored())
    await store.call("DEL", log_key(stream_id))  # And so does the record.
    with pytest.raises(Fenced):
        await owner.hold(stream_id, epoch, restored())


async def test_a_hold_puts_what_a_younger_claim_of_an_older_epoch_left_out_of_the_log(
    store: RedisClient,
) -> None:
    """Redis forgot the claim, its clock was set back, and somebody claimed the stream again."""
    owner, other = replica(store), replica(store)
    stream_id, epoch = await claimed(other)
    await append(store, stream_id, f"{epoch}-1")
    await other.seal(stream_id, epoch, ending(epoch, 1))
    mine = epoch + 1000
    assert await owner.hold(stream_id, mine, restored()) == f"{mine}-0"
    assert await log_ids(store, stream_id) == [f"{mine}-0"]
    record = await found(owner, stream_id)
    assert (record.state, record.end_id, record.result) == ("starting", "", b"")


async def test_a_hold_writes_what_was_inherited_again_in_one_step(store: RedisClient) -> None:
    """Redis forgot a takeover, and the dead owner, who came back, wrote on."""
    old, successor = replica(store), replica(store)
    stream_id, epoch = await claimed(old)
    await append(store, stream_id, f"{epoch}-1")
    earlier = await read_all(store, stream_id)
    await append(store, stream_id, f"{epoch}-2")
    mine = epoch + 1000
    with pytest.raises(EarlierNeeded, match=rf"^{epoch}-2$"):
        await successor.hold(stream_id, mine, restored(), None)
    assert (await found(successor, stream_id)).owner == old.replica
    assert await successor.hold(stream_id, mine, restored(), earlier) == f"{mine}-0"
    assert await log_ids(store, stream_id) == [f"{epoch}-0", f"{epoch}-1", f"{mine}-0"]
    assert (await read_all(store, stream_id))[:2] == earlier
    assert await successor.hold(stream_id, mine, restored(), None) == f"{mine}-0"


async def test_a_hold_of_what_was_inherited_yields_to_an_end_of_the_old_owner(
    store: RedisClient,
) -> None:
    old, successor = replica(store), replica(store)
    stream_id, epoch = await claimed(old)
    earlier = await read_all(store, stream_id)
    await old.seal(stream_id, epoch, ending(epoch))
    for before in (None, earlier):
        with pytest.raises(Fenced):
            await successor.hold(stream_id, epoch + 1000, restored(), before)
    assert (await found(successor, stream_id)).state == "done"


async def test_a_hold_names_the_stream_in_a_majority_of_the_books(store: RedisClient) -> None:
    """Its owner may die before its next heartbeat: what it wrote again must be found."""
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await records.hold(stream_id, epoch, restored())
    named = 0
    for tag in store.quorum_tags:
        runs = await store.call("SMEMBERS", runs_key(records.replica, tag))
        beats = await store.call("HEXISTS", HEARTBEATS + tag, records.replica)
        named += runs == [stream_id.encode()] and beats
    assert named > len(store.quorum_tags) / 2


async def test_a_hold_keeps_a_stored_cancel(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await records.cancel(stream_id, b"", b"")
    await records.hold(stream_id, epoch, restored())
    assert await records.seal(stream_id, epoch, ending(epoch)) == "cancelled"


async def test_a_hold_of_a_sealed_stream_leaves_it_sealed(store: RedisClient) -> None:
    records = replica(store)
    stream_id, epoch = await claimed(records)
    await records.seal(stream_id, epoch, ending(epoch))
    with pytest.raises(Sealed, match=rf"^{epoch}-2$"):
        await records.hold(stream_id, epoch, restored())
    assert (await found(records, stream_id)).state == "done"


# What a missing record means


async def test_a_missing_record_may_be_forgotten_while_the_memory_is_young(
    store: RedisClient,
) -> None:
    records = replica(store)
    stream_id = await cached(records)
    now = (await found(records, stream_id)).now
    dataset = store.dataset_key_of(stream_id)
    await store.call("DEL", dataset)
    assert await records.may_be_forgotten(stream_id, now)
    await store.call("SET", dataset, now - 500, "PX", DAY)  # Two leases are two seconds.
    assert await records.may_be_forgotten(stream_id, now - 9000)
    await store.call("SET", dataset, now - 5000, "PX", DAY)
    assert not await records.may_be_forgotten(stream_id, now - 9000)


async def test_a_missing_record_may_be_forgotten_while_the_connection_is_a_new_one(
    own_redis: RedisServer,
) -> None:
    """However long a failover took, an owner needs time after it to write again what it lost."""
    async with proxied(own_redis) as proxy:
        store = RedisClient(proxy.url)
        records = replica(store)
        now = int((await store.call("TIME"))[0]) * 1000
        await store.call("SET", store.dataset_key_of("stream"), 1, "PX", 60_000)
        assert not await records.may_be_forgotten("stream", now - 9000)
        proxy.cut()
        assert await records.may_be_forgotten("stream", now - 9000)

        async def known_again() -> bool:
            return not await records.may_be_forgotten("stream", now - 9000)

        await until(known_again)
        await store.close()


async def test_a_missing_record_may_be_forgotten_while_the_ticket_is_young(
    store: RedisClient,
) -> None:
    """A failover loses the last writes, and keeps the dataset id."""
    records = replica(store)
    stream_id = await cached(records)
    now = (await found(records, stream_id)).now
    await store.call("SET", store.dataset_key_of(stream_id), now - 9000, "PX", DAY)
    assert await records.may_be_forgotten(stream_id, now)
    # Two leases are two seconds.
    assert not await records.may_be_forgotten(stream_id, now - 3000)


async def test_presence_is_seen_by_others_until_it_runs_out(store: RedisClient) -> None:
    presence = Presence(store, new_id())
    here, nobody = new_id(), new_id()
    await presence.show({here: ""}, 5)
    assert await presence.watched([here, nobody]) == [True, False]
    await presence.show({here: ""}, 0.001)

    async def gone() -> bool:
        return not (await presence.watched([here]))[0]

    await until(gone)


# Everything expires


@pytest.mark.parametrize(
    "step", ["cached", "claimed", "cancelled", "taken", "held", "sealed", "cancelled at once"]
)
async def test_every_key_has_a_ttl_after_every_script(store: RedisClient, step: str) -> None:
    records, successor = replica(store), replica(store)
    stream_id = await cached(records)
    if step == "cancelled at once":
        await records.cancel(stream_id, b"", b"")
    elif step != "cached":
        epoch = (await records.claim(stream_id, "n")).epoch
        if step == "cancelled":
            await records.cancel(stream_id, b"", b"")
        if step == "taken":
            await successor.takeover(stream_id, records.replica, "n")
        if step == "held":
            await store.call("DEL", record_key(stream_id), log_key(stream_id))
            await records.hold(stream_id, epoch, restored())
        if step == "sealed":
            await records.seal(stream_id, epoch, ending(epoch))
    # On its own server.
    scan = ["SCAN", 0, "MATCH", f"gw:{{{stream_id}}}:*", "COUNT", 100_000]
    _, keys = await store.node_for(stream_id).call(*scan)
    assert record_key(stream_id).encode() in keys
    for key in keys:
        assert 0 < await store.call("PTTL", key) <= DAY, key

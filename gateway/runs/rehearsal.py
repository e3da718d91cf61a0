"""Rehearsal: all that a replica does to Redis, done once to a stream that nobody asked for.

A user of Redis may lack the right to a command, a key or a script, and a server may be one that
takes no writes. To know it before the first ticket each thing is tried, by the code that does it.
`can_store` is the short form, for whoever asks each second.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from gateway.config.user_limits import UNBOUNDED, Bounds, UserLimits
from gateway.errors import Unavailable
from gateway.eventlog.entries import End, EntryBatch, EventId, Seal
from gateway.eventlog.reader import read, read_all, read_page, read_rest
from gateway.limits.ledger import KEPT, Spent
from gateway.limits.permits import Taken
from gateway.limits.subjects import Held, Most
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.compaction import rewrite
from gateway.runs.presence import Presence
from gateway.runs.records import Records
from gateway.runs.repeats import Repeats
from gateway.sse import encode
from gateway.store.client import RedisClient
from gateway.store.data_loss import DataLossDetector
from gateway.store.keys import (
    asked_key,
    control_channel,
    log_key,
    new_id,
    packed_key,
    presence_key,
    record_key,
    subject_keys,
    webhook_key,
)
from gateway.webhooks.outbox import Outbox

_SECONDS = 30.0  # Within which all that it stores expires, should it be cut short.
_TIMES: dict[str, Any] = {"start_by": _SECONDS, "log_ttl": _SECONDS, "max_run": lambda: _SECONDS}
_MUCH = 1 << 40
_KEYS = (record_key, log_key, packed_key, presence_key, asked_key, webhook_key)
_LIMITS = UserLimits(posts_per_minute=9, streams=9, tokens_per_day=_MUCH, cost_per_day=9.0)


async def can_store(records: Records) -> None:
    """Store what a ticket would, and take it back; raises Unavailable where that cannot be.

    A full Redis passes: open streams wait, pages that come are told to come back, and to take this
    replica out of service would turn them away for good. So does one that is full for tickets only,
    and nobody's bytes are counted: who asks has no login, and may ask as often as he likes.
    """
    probe = records.new_stream()
    log, store = log_key(probe), records.store
    try:
        await _records(store, records.replica).create(probe, "", "", b"", "")
        await store.calls([["XADD", log, "NOMKSTREAM", "1-1", 1, ""], ["EXISTS", log]])
    except Unavailable as error:
        if not str(error).startswith("OOM "):
            raise
    await store.call("DEL", record_key(probe))


class Rehearsal:
    """One stream from its ticket to its end; `run` leaves nothing behind."""

    def __init__(self, store: RedisClient, stream_id: str) -> None:
        me = f"check-{new_id()}"
        self._store = store
        self._id = stream_id
        self._me = me
        self._records = _records(store, me, _MUCH, Bounds(_LIMITS, _LIMITS))
        self._repeats = Repeats(self._records)
        self._presence = Presence(store, me)
        self._heartbeat = Heartbeat(store, me, 1)
        self._data_loss = DataLossDetector(store, 1)
        self._outbox = Outbox(store)
        self._epoch = 0

    async def run(self) -> str:
        """Return what cannot be done and why, "" if all can; Unavailable if Redis goes away."""
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "show that this replica lives": self._live,
            "store a ticket": self._ask,
            "count what a user has": self._count,
            "start a stream": self._begin,
            "write its log": self._write,
            "read its log": self._read,
            "end it": self._end,
            "tell of its end": self._tell,
        }
        try:
            for name, act in acts.items():
                try:
                    await act()
                except Unavailable as error:
                    if error.__cause__ is not None:  # It did not answer, so nothing is refused.
                        raise
                    return f"cannot {name}: {error} (all keys begin with gw:)"
        finally:
            await self._leave()
        return ""

    async def hears(self) -> str:
        """Return why no wake-ups arrive, "" if they do."""
        try:
            await self._store.hears(control_channel(self._me))
        except Unavailable as error:
            return str(error)
        return ""

    async def _live(self) -> None:
        await self._heartbeat.renew([self._id])
        await self._data_loss.renew()
        await self._heartbeat.ask_to_cancel(self._id, self._me)
        await self._heartbeat.cancelled(*await self._heartbeat.cancels())
        await self._heartbeat.replicas()

    async def _ask(self) -> None:
        await self._records.create(self._id, self._me, "default", b"{}", "digest")
        await self._records.read(self._id)
        await self._records.states([self._id])
        # Not only by the digest: a Redis that is started again has to be told the scripts anew.
        await self._store.call("EVAL", "return 1", 1, record_key(self._id))

    async def _count(self) -> None:
        try:
            await _records(self._store, self._me, 1).create(new_id(), self._me, "", b"", "")
        except Unavailable as error:
            if error.code != "too_many_bytes":
                raise
        await self._records.limits.streams_of(self._me)
        free = [int(_SECONDS * 1000), self._id, 0, 0]
        await self._store.script("settle", subject_keys(self._me)[:2], free)

    async def _begin(self) -> None:
        await self._heartbeat.register(self._id)
        await self._repeats.remember(self._id, self._id)
        held, limits = Held(self._me, self._id, 0, "default"), self._records.limits
        permit = limits.permit(held, Taken())
        await self._records.claim(self._id, "nonce", 0, permit)
        self._epoch = await self._records.takeover(self._id, self._me, "another") or 0
        await self._repeats.find(self._id, EventId(self._epoch, 0))

    async def _write(self) -> None:
        ids = first, second, third = [str(EventId(self._epoch, number)) for number in (1, 2, 3)]
        frames = [encode(b"", each.encode()) for each in ids]
        key = log_key(self._id)
        await self._store.urgent([["XADD", key, "NOMKSTREAM", first, 1, frames[0]]])
        await self._records.hold(self._id, self._epoch, {"version": 1}, torn="none")
        await self._store.urgent([["XLEN", key]])
        entry = EntryBatch(EventId(self._epoch, 2), 1, frames[1])
        await self._records.append(self._id, first, [entry])
        end = End("done", third, 1, frames[2])
        spent = Spent(self._me, 0, "default", prompt=1, cost=1)
        self._seal = Seal(second, end, end, b"{}", spent, webhook=True)

    async def _read(self) -> None:
        await read(self._store, [self._id], [None], [1])
        await read_page(self._store, self._id, None)
        await self._presence.show({self._id: ""}, _SECONDS)
        await self._presence.withdraw([self._id])
        await self._records.outlives_log(self._id)

    async def _end(self) -> None:
        await self._store.call("HSET", record_key(self._id), "webhook", "default http://none")
        await self._records.seal(self._id, self._epoch, self._seal)
        await rewrite(self._store, self._id, await read_all(self._store, self._id))
        await read_rest(self._store, self._id, None, 1)
        await self._records.cancel(self._id, b"", b"{}")
        await self._heartbeat.unregister(self._id)

    async def _tell(self) -> None:
        await self._outbox.receiver(self._id)
        await self._outbox.begin(self._id, known=False)
        await self._outbox.put_off(self._id, 0, 1, {b"body": b"{}"})
        await self._outbox.told(self._id)

    async def _leave(self) -> None:
        keys = [each(self._id) for each in _KEYS]
        mine = subject_keys(self._me)
        keys += [*mine, mine.posts_of("default"), *map(mine.usage, range(KEPT))]
        with suppress(Unavailable):
            await self._store.calls(["DEL", key] for key in keys)
        await self._data_loss.stop()
        with suppress(Unavailable):
            await self._heartbeat.stop()


def _records(
    store: RedisClient, replica: str, size: int = 0, bounds: Bounds = UNBOUNDED
) -> Records:
    most = Most(size=size)
    return Records(store, replica, **_TIMES, lease=1, most=most, bounds=lambda _: bounds)

"""Records: one Redis hash per stream, and the scripts that are its only way to change.

The record says what was asked, by whom, and who runs it. Each script is fenced (only the owner and
epoch it names may act) and idempotent (the same command twice is the command once), because
connections break after Redis has acted and before it has answered.

A Redis may come back empty. Its dataset id dates what it has (see `data_loss`): a ticket older than
that may have a record that is only forgotten, not expired.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gateway import clock
from gateway.config.user_limits import UNBOUNDED, Bounds
from gateway.errors import EarlierNeeded, Fenced, InDoubt, Sealed, Unavailable
from gateway.eventlog.entries import EntryBatch, Seal
from gateway.limits.ledger import as_bill, check
from gateway.limits.permits import refused
from gateway.limits.subjects import Held, Limits, Most
from gateway.runs.endings import FINAL
from gateway.runs.record import FIELDS, FIRST, Claim, ClaimVerdict, Created, Record, record_of
from gateway.store.client import RedisClient, Script
from gateway.store.keys import log_key, log_keys, naming, new_id, record_key
from gateway.store.quorum import Quorum
from gateway.webhooks.outbox import owing

_DRAWS = 64
_ENDS = ("state", "webhook")
_AT_ONCE = 500  # Streams that are asked for in one go.
_MINUTE = 60_000  # Milliseconds, for which a POST counts.
_AWAY = 0.2  # Seconds until Redis is asked once more.
_REFUSED = {b"fenced": Fenced, b"sealed": Sealed, b"behind": EarlierNeeded}


class Records:
    """The records as one replica sees and changes them; every method may raise Unavailable.

    One idea: a record changes by these scripts alone, and what its subject holds with it.
    """

    def __init__(
        self,
        store: RedisClient,
        replica: str,
        *,
        start_by: float,
        log_ttl: float,
        max_run: Callable[[], float],
        lease: float,
        most: Most = Most(),  # noqa: B008 (it is a tuple)
        bounds: Callable[[str], Bounds] = lambda _: UNBOUNDED,
    ) -> None:
        self.replica = replica
        self.store = store
        self._quorum = Quorum(len(store.quorum_tags))
        self.patience = lease * 2  # Seconds that an owner has to write again what Redis lost.
        times = {"start_by": start_by, "patience": self.patience, "log_ttl": log_ttl}
        self.limits = Limits(store, most, bounds, **times)
        self._start_by = int(start_by * 1000)
        self._ended_ttl = int(log_ttl * 1000)
        self._max_run = max_run

    @property
    def longest(self) -> int:
        """The longest that a stream is known after it was asked for, in milliseconds."""
        return self._running_ttl

    @property
    def _running_ttl(self) -> int:
        # A run may be drained, retried and taken over: twice the longest run outlives all of it.
        return int(self._max_run() * 2000) + self._ended_ttl + 60_000

    def new_stream(self) -> str:
        """Return an id for a new stream, at home on a server that answers, as far as is known."""
        drawn = new_id()
        for _ in range(_DRAWS):
            if self.store.node_for(drawn).answers:
                break
            drawn = new_id()
        return drawn

    async def create(
        self,
        stream_id: str,
        subject: str,
        preset: str,
        request: bytes,
        digest: str,
        more: Mapping[str, Any] | None = None,
    ) -> Created:
        """Store a request, unless its id is taken; tell what is stored there then.

        Unredeemed it is kept no longer than a failover's loss may last. `more` is of its repeats
        and its dialect.
        """
        fields: dict[str, Any] = {
            "version": FIRST,
            "subject": subject.encode(),
            "preset": preset,
            "request": request,
            **(more or {}),
        }
        ttl = self._start_by + int(self.patience * 1000)
        args = [self._start_by, ttl, digest, *_flat(fields)]
        create = Script("create", _keys(stream_id), args)
        held = Held(subject, stream_id, len(request) + len(fields.get("body", b"")), preset)
        reply, left = await self.limits.create(held, create)
        issued, start_by, now = (int(part) for part in reply[:3])
        facts = (reply[3].decode(), reply[4].decode(), bool(reply[5]))
        made = Created(issued, start_by, now, *facts, left)
        if not made.made and now - issued > _MINUTE:
            await self.limits.repeated(held)
        if made.state in FINAL:
            self.limits.cancelled(subject, stream_id)  # Or ended otherwise: no more is kept.
        return made

    async def created(self, stream_id: str) -> Created | None:
        """Return what `create` would find to be stored already, None if that would store it."""
        record = await self.read(stream_id)
        if record is None or record.expired:
            return None
        facts = (record.issued, record.start_by, record.now, record.digest, record.state)
        return Created(*facts, made=False)

    async def read(self, stream_id: str) -> Record | None:
        """Return a record, None if there is none."""
        time, values = await self.store.calls([["TIME"], ["HMGET", record_key(stream_id), *FIELDS]])
        return record_of(stream_id, time, values)

    async def read_many(self, stream_ids: Sequence[str]) -> list[Record | Unavailable | None]:
        """Return each record, None where there is none, or why its server does not tell."""
        reads = (
            read for each in stream_ids for read in (["TIME"], ["HMGET", record_key(each), *FIELDS])
        )
        replies = await self.store.attempt(reads)
        told = zip(stream_ids, replies[::2], replies[1::2], strict=True)
        return [
            next((part for part in (time, values) if isinstance(part, Unavailable)), None)
            or record_of(each, time, values)
            for each, time, values in told
        ]

    async def outlives_log(self, stream_id: str) -> bool:
        """Whether a stream has ended and its log is gone.

        Asked of one server: while another takes its place, one may have the end and one not.
        """
        state, log = await self.store.calls(
            [["HGET", record_key(stream_id), "state"], ["EXISTS", *log_keys(stream_id)]]
        )
        return (state or b"").decode() in FINAL and not log

    async def request(self, stream_id: str) -> bytes:
        """Return the request of a stream that has not ended, b"" if there is none."""
        return await self.store.call("HGET", record_key(stream_id), "request") or b""

    async def waited_for_body(self, stream_id: str) -> bytes:
        """Return what a page asked for, where it is kept for fallbacks; waits for Redis."""
        while True:
            with suppress(Unavailable):
                return await self.store.call("HGET", record_key(stream_id), "body") or b""
            await asyncio.sleep(_AWAY)

    async def claim(
        self, stream_id: str, nonce: str, buried: int = 0, permit: Script | None = None
    ) -> Claim:
        """Become the owner of a cached stream; the same nonce again gives the same answer.

        `buried` is the record's, as it was read before the stream was named as run here. `permit`
        goes first: without its yes nothing is claimed.
        """
        args = [self.replica, nonce, self._running_ttl, buried]
        claim = Script("claim", _keys(stream_id), args)
        if permit is not None:
            replies = await self.limits.permits.before(permit, claim)
            if refusal := refused(replies[0], UNBOUNDED):
                over = replies[0][1] == b"quota_exhausted"
                verdict = ClaimVerdict.EXHAUSTED if over else ClaimVerdict.NO_SLOT
                refusal.status = 503  # Its ticket is good: it is to come back with it.
                return Claim(verdict, refusal=refusal)
            verdict, *more = replies[1]
        else:
            verdict, *more = await self.store.script(*claim)
        if verdict == b"claimed":
            return Claim(ClaimVerdict.CLAIMED, int(more[0]), more[1] or b"")
        return Claim(ClaimVerdict(verdict.decode()))

    async def takeover(self, stream_id: str, dead: str, nonce: str) -> int | None:
        """Become the owner in place of a dead one; return the new epoch, None if it was not."""
        args = [dead, self.replica, nonce, self._running_ttl]
        verdict, *more = await self.store.script("takeover", _keys(stream_id), args)
        return int(more[0]) if verdict == b"taken" else None

    async def hold(
        self,
        stream_id: str,
        epoch: int,
        fields: dict[str, Any],
        before: Sequence[EntryBatch] | None = (),
        torn: str = "",
    ) -> str:
        """Assert an ownership; see `eventlog.base.Ownership`, also of what follows."""
        count = -1 if before is None else len(before)
        parts = [part for each in before or () for part in (str(each.last), *each[1:3])]
        args = [self.replica, epoch, self._running_ttl, count, torn, *parts, *_flat(fields)]
        keys = _keys(stream_id)
        # First, as before a claim: if this replica dies now, others must find the stream.
        await self._quorum.of(
            [
                self.store.urgent(naming(self.replica, stream_id, tag))
                for tag in self.store.quorum_tags
            ]
        )
        # On the appends' own connection: what another server says is no answer.
        verdict, last = await self.store.script("hold", keys, args, of_log=True)
        if error := _REFUSED.get(verdict):
            raise error(last.decode() or stream_id)
        return str(last.decode())

    async def append(self, stream_id: str, last: str, entries: Sequence[EntryBatch]) -> None:
        """Append all of these to a log that ends with `last`; raises InDoubt if it does not."""
        args = [last, *(each for entry in entries for each in _told(entry))]
        if not await self.store.script("append", [log_key(stream_id)], args, of_log=True):
            raise InDoubt("the log ends elsewhere")

    async def seal(self, stream_id: str, epoch: int, seal: Seal) -> str:
        """End a stream, once; return the state it ended with. Raises Fenced, InDoubt."""
        apart = self.store.cluster is not None
        after = self.limits.at_end(stream_id, seal.spent, self.longest) if seal.spent else []
        args = [
            *(self.replica, epoch, seal.last_id, self._ended_ttl, seal.result),
            *(*seal.end, *seal.if_cancelled, as_bill(after[0]) if after and apart else ""),
        ]
        owed = [owing(stream_id)] if seal.webhook else []
        steps = [Script("seal", _keys(stream_id), args), *owed, *([] if apart else after)]
        # Where appends go: another connection may still lead to a master that is none any more.
        replies = await self.store.chain(steps, of_log=True)
        _, verdict, *state = replies[0]
        if verdict == b"fenced":
            raise Fenced(stream_id)
        if verdict != b"sealed":
            raise InDoubt(f"the log is {verdict.decode()}")
        if after and not apart:
            check(replies[1 + len(owed)], after[0])
        elif after:
            await self.limits.ledger.book(stream_id, after)
        return str(state[0].decode())

    async def cancel(
        self, stream_id: str, end_frame: bytes, result: bytes, *, webhook: bool = False
    ) -> tuple[str, str]:
        """Store a cancel; return the state (or missing, expired) and the owner to wake, if any.

        With a `webhook` an end that is written by this is noted for it.
        """
        args = [self._ended_ttl, end_frame, result]
        steps = [Script("cancel", _keys(stream_id), args)]
        steps += [owing(stream_id)] if webhook else []
        (state, owner), *_ = await self.store.chain(steps)
        return state.decode(), (owner or b"").decode()

    async def may_be_forgotten(self, stream_id: str, issued: int) -> bool:
        """Whether a missing record may be one that Redis lost, and that its owner writes again.

        A failover loses what is young, and leaves the dataset id as it was; however long it took,
        an owner needs time after it.
        """
        (seconds, micros), dataset = await self.store.calls(
            [["TIME"], ["GET", self.store.dataset_key_of(stream_id)]]
        )
        if dataset is None:
            return True
        now = int(seconds) * 1000 + int(micros) // 1000
        young = int(self.patience * 1000)
        forgot_all = issued < int(dataset) and now - int(dataset) < young
        soon = min(young, self._ended_ttl, self._start_by)
        return forgot_all or self.just_reached(stream_id) or now - issued < soon

    async def ran_out(self, stream_id: str, issued: int) -> bool:
        """Whether a ticket whose record is not there was never redeemed: else it would be there,
        unless Redis forgot it."""
        (seconds, micros), dataset = await self.store.calls(
            [["TIME"], ["GET", self.store.dataset_key_of(stream_id)]]
        )
        now = int(seconds) * 1000 + int(micros) // 1000
        return int(dataset or now) <= issued and now - issued < self._ended_ttl

    def just_reached(self, stream_id: str) -> bool:
        """Whether its server took another's place so lately that it may lack what is young."""
        now = clock.now()
        return now - self.store.node_for(stream_id).replaced < self.patience

    async def now(self) -> int:
        """Return Redis's time in milliseconds."""
        ((seconds, micros),) = await self.store.calls([["TIME"]])
        return int(seconds) * 1000 + int(micros) // 1000

    async def known_states(self, stream_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return the states and the webhooks of those streams that can be read, "" if none."""
        parts = [
            each[at : at + _AT_ONCE]
            for each in self.store.by_node(stream_ids)
            for at in range(0, len(each), _AT_ONCE)
        ]
        told = await asyncio.gather(
            *(self.store.attempt(["HMGET", record_key(i), *_ENDS] for i in each) for each in parts)
        )
        pairs = (pair for each in zip(parts, told, strict=True) for pair in zip(*each, strict=True))
        read = {i: got for i, got in pairs if not isinstance(got, Unavailable)}
        return {i: ((s or b"").decode(), (w or b"").decode()) for i, (s, w) in read.items()}

    async def states(self, stream_ids: list[str]) -> list[tuple[str, int]]:
        """Return the states and epochs of these streams, "" and 0 where there is none."""
        names = ("state", "epoch")
        replies = await self.store.calls(["HMGET", record_key(i), *names] for i in stream_ids)
        return [((state or b"").decode(), int(epoch or 0)) for state, epoch in replies]


def _keys(stream_id: str) -> list[str]:
    return [record_key(stream_id), log_key(stream_id)]


def _told(entry: EntryBatch) -> tuple[Any, ...]:
    return str(entry.last), entry.number, entry.frames


def _flat(fields: dict[str, Any]) -> list[Any]:
    return [part for item in fields.items() for part in item]

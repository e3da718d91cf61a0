"""Breaking the gateway on purpose: an oracle that finds nothing here would find nothing at all."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from gateway.errors import Unavailable
from gateway.eventlog import channel, packs, reader
from gateway.eventlog import writer as eventlog
from gateway.eventlog.entries import EntryBatch, EntryBatches, EventId, Seal
from gateway.eventlog.group_commit import GroupCommit, NodeCommitter
from gateway.eventlog.writer import EventLog
from gateway.limits.subjects import Limits
from gateway.membership.failure_detector import FailureDetector
from gateway.membership.heartbeat import Heartbeat
from gateway.runs import compaction, takeover
from gateway.runs.attempts import Attempts
from gateway.runs.compaction import Compaction
from gateway.runs.endings import Ending
from gateway.runs.intake import Intake
from gateway.runs.presence import Presence
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.node import Node
from gateway.upstream.client import Upstream
from gateway.upstream.protocols.base import NONE, Rest
from gateway.upstream.protocols.responses import Responses
from gateway.web.positions import Place, Positions
from gateway.webhooks.courier import Courier
from gateway.webhooks.outbox import owing
from tests.simulation import world

Patches = Iterator[Any]


def _script(name: str, old: str, new: str) -> Patches:
    init = RedisClient.__init__

    def changed(self: RedisClient, url: str = "") -> None:
        init(self, url)
        text = self._scripts[name][1]
        assert old in text
        text = text.replace(old, new)
        digest = hashlib.sha1(text.encode()).hexdigest()
        self._scripts[name] = (digest, text)
        world.NAMES[digest.encode()] = name

    yield patch.object(RedisClient, "__init__", changed)


def no_fence_entry() -> Patches:
    """A takeover changes the owner, and fences nobody."""
    yield from _script("takeover", "redis.call('XADD', KEYS[2], name .. '-0', '0', '')\n", "\n")


def repeated_claim_attaches() -> Patches:
    """A claim whose reply was lost does not know itself again."""
    yield from _script("claim", "r[4] == ARGV[2]", "false")


def cancel_is_overruled() -> Patches:
    """A stored cancel does not decide the end."""
    yield from _script("seal", "if r[4] then", "if false then")


def late_seal() -> Patches:
    """A seal does not look who owns the stream."""
    yield from _script("seal", "if theirs > mine then return {0, 'fenced'} end\n", "")


def appends_make_the_log() -> Patches:
    """Appends lack NOMKSTREAM: they go on in a log that is gone."""

    def append(key: bytes, entry: Any) -> tuple[bytes, ...]:
        return (b"XADD", key, b"%d-%d" % entry.last, b"%d" % entry.number, entry.frames)

    yield patch.object(eventlog, "_append", append)


def doubt_is_ignored() -> Patches:
    """After an error the next entry follows, whatever became of the last one."""

    async def repair(self: EventLog) -> None:
        self.in_doubt, self.in_flight = False, None
        self._settle()

    yield patch.object(EventLog, "repair", repair)


def shown_before_stored() -> Patches:
    """An entry is shown when it is sent, not when Redis has it."""
    next_batch = EventLog.next_batch

    def eager(self: EventLog) -> tuple[bytes, ...]:
        command = next_batch(self)
        assert self.in_flight is not None
        self.entries.append(self.in_flight)
        self.on_commit()
        return command

    def acknowledged(self: EventLog) -> None:
        self.in_flight = None
        self._settle()

    yield patch.object(EventLog, "next_batch", eager)
    yield patch.object(EventLog, "acknowledged", acknowledged)


def stale_owner_asks() -> Patches:
    """The lease is not looked at before the upstream is asked."""
    yield patch.object(Heartbeat, "lease_held_since", lambda beat, since: True)


def asks_again_after_a_cut() -> Patches:
    """A request that may have been paid for is repeated."""
    pause = Attempts._pause

    def always(self: Attempts, failed: Any) -> float | None:
        failed.sure = True
        return pause(self, failed)

    yield patch.object(Attempts, "_pause", always)


def every_end_is_done() -> Patches:
    """The end of the connection is taken for the end of the completion."""
    yield patch.object(Intake, "natural_end", lambda self: Ending("done"))


def nobody_takes_over() -> Patches:
    """The dead stay unburied."""
    yield patch.object(FailureDetector, "suspects", lambda self, names: set())


def viewers_elsewhere_do_not_count() -> Patches:
    """The owner looks only at its own viewers."""

    async def watched(self: Any, stream_ids: list[str]) -> list[bool]:
        return [False for _ in stream_ids]

    yield patch.object(Presence, "watched", watched)


def resumed_at_the_entry() -> Patches:
    """Who resumes inside an entry gets all of it again."""
    yield patch.object(EntryBatch, "after", lambda self, position: self.frames)


def nil_is_success() -> Patches:
    """An append that Redis refused counts as stored."""
    append = Node.append

    async def blind(self: Node, commands: Any, generation: int) -> list[Any]:
        try:
            return [reply or b"" for reply in await append(self, commands, generation)]
        except Unavailable:
            return [b"" for _ in commands]

    yield patch.object(Node, "append", blind)


def connection_is_not_looked_at() -> Patches:
    """Nobody notices that the connection leads to another server."""
    yield patch.object(NodeCommitter, "look_at_connection", _blind)


def kept_answers_are_lost() -> Patches:
    """Nobody asks for the rest of an answer that its upstream keeps."""
    yield patch.object(Responses, "rest", lambda self, preset, seen: None)


def the_rest_begins_anew() -> Patches:
    """Of an answer that is gone on with, what is logged already is logged again."""
    rest = Responses.rest

    def from_start(self: Responses, preset: Any, seen: Any) -> Any:
        found = rest(self, preset, seen)
        url = found.request.url.partition("&starting_after")[0] if found else ""
        return found and Rest(found.request._replace(url=url), NONE + 1)

    yield patch.object(Responses, "rest", from_start)


def nobody_is_told_to_stop() -> Patches:
    """An upstream goes on with what nobody waits for, and is paid for it."""
    yield patch.object(Upstream, "abandon", lambda self, preset, seen: None)


def a_stream_is_booked_twice() -> Patches:
    """A seal whose reply was lost books once more."""
    told = "if redis.call('ZSCORE', KEYS[1], born) then return {0} end\n"
    yield from _script("book", told, "\n")


def nobody_books_what_a_dead_replica_ran() -> Patches:
    """A takeover ends a stream for nothing."""
    yield patch.object(takeover, "spent", lambda fields, bill: None)


def what_is_written_again_is_not_booked() -> Patches:
    """The owner of an end that Redis forgot writes it again for nothing."""
    seal = EventLog.seal

    async def sealed(self: EventLog, *given: Any) -> str:
        stored = await seal(self, *given)
        assert self._sealed is not None
        self._sealed = replace(self._sealed, spent=None)
        return stored

    yield patch.object(EventLog, "seal", sealed)


def a_slot_is_kept() -> Patches:
    """An end does not free its slot."""
    yield from _script("permit", "if freed and preset == '' then free(ARGV[i]) end", "")


def slots_are_not_looked_at() -> Patches:
    """A stream begins whatever runs."""
    yield from _script("permit", "if left[STREAMS] == 0 then", "if false then")


def slots_are_not_prolonged() -> Patches:
    """What runs for longer than a lease has no slot any more."""
    yield patch.object(Limits, "_renew", lambda self, holder, turn: None)


def a_message_is_stored_again() -> Patches:
    """A push that is sent twice is stored twice."""
    yield from _script("push", "if id then return {1, id, unpack(watchers)} end\n", "\n")


def another_server_goes_on_with_the_ids() -> Patches:
    """Ids of messages that a failover lost are given once more."""
    yield from _script("push", "if was[1] and was[2] == server then", "if was[1] then")


def what_was_trimmed_is_not_missed() -> Patches:
    """Who was shown less than was kept is not told of what went."""
    yield patch.object(channel, "_follows", lambda entry, last: True)


def nobody_tells_what_a_dead_replica_ran() -> Patches:
    """An end that was not heard when its owner died is nobody's."""

    async def nothing(self: Courier, stream_id: str) -> bool:
        return False

    yield patch.object(Courier, "inherit", nothing)


def one_try_is_enough() -> Patches:
    """An end that a receiver refused, or was cut off from, counts as heard."""
    yield patch.object(Courier, "_is_over", lambda self, owed, answer: True)


def an_end_is_noted_after_its_seal() -> Patches:
    """Between the seal and the note that somebody is to hear of it a replica may die."""
    seal = Records.seal

    async def apart(self: Records, stream_id: str, epoch: int, seal_: Seal) -> str:
        state = await seal(self, stream_id, epoch, replace(seal_, webhook=False))
        if seal_.webhook:
            await self.store.script(*owing(stream_id))
        return state

    yield patch.object(Records, "seal", apart)


def packs_lack_an_entry() -> Patches:
    """Of each pack the last entry but one is lost."""
    opened = packs.unpacked

    def lossy(last: EventId, data: bytes, size: int) -> list[EntryBatch]:
        entries = opened(last, data, size)
        return [*entries[:-2], entries[-1]]

    yield patch.object(reader, "unpacked", lossy)


def logs_are_packed_before_their_end() -> Patches:
    """Compaction takes a log as it is after each commit, and what is there for that log."""
    opened, acknowledged = GroupCommit.open, EventLog.acknowledged

    def watched(self: GroupCommit, *given: Any) -> EventLog:
        log = opened(self, *given)
        vars(log)["pack"] = self._closed
        return log

    def packed(self: EventLog) -> None:
        acknowledged(self)
        vars(self)["pack"](self)

    def add(self: Compaction, log: EventLog) -> None:
        entries = EntryBatches(log.entries)
        self._waiting.append(compaction._Ended(0, log.stream_id, entries, 0))
        self._news.set()

    yield patch.object(GroupCommit, "open", watched)
    yield patch.object(EventLog, "acknowledged", packed)
    yield patch.object(Compaction, "add", add)
    told = "if redis.call('HGET', KEYS[1], 'end_id') ~= ARGV[1] then return 0 end\n"
    yield from _script("pack", told, "")
    yield from _script("pack", " or last[2][3] ~= 'end'", "")


def some_places_are_forgotten() -> Patches:
    """Of several streams on one connection an id does not tell each place."""
    moved = Positions.moved

    def lag(self: Positions, number: int, place: Place) -> bytes:
        if isinstance(place, EventId) and place.seq % 3 == 2:
            return str(self).encode()
        return moved(self, number, place)

    yield patch.object(Positions, "moved", lag)


def _blind(self: NodeCommitter) -> None:
    self._generation = self._node.generation


MUTANTS: dict[str, Callable[[], Patches]] = {
    each.__name__: each
    for each in (
        no_fence_entry,
        repeated_claim_attaches,
        cancel_is_overruled,
        late_seal,
        appends_make_the_log,
        doubt_is_ignored,
        shown_before_stored,
        stale_owner_asks,
        asks_again_after_a_cut,
        every_end_is_done,
        nobody_takes_over,
        viewers_elsewhere_do_not_count,
        resumed_at_the_entry,
        nil_is_success,
        connection_is_not_looked_at,
        kept_answers_are_lost,
        the_rest_begins_anew,
        nobody_is_told_to_stop,
        a_stream_is_booked_twice,
        nobody_books_what_a_dead_replica_ran,
        what_is_written_again_is_not_booked,
        a_slot_is_kept,
        slots_are_not_looked_at,
        slots_are_not_prolonged,
        a_message_is_stored_again,
        another_server_goes_on_with_the_ids,
        what_was_trimmed_is_not_missed,
        nobody_tells_what_a_dead_replica_ran,
        one_try_is_enough,
        an_end_is_noted_after_its_seal,
        packs_lack_an_entry,
        logs_are_packed_before_their_end,
        some_places_are_forgotten,
    )
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Break the code for the length of the block; "" leaves it whole."""
    with ExitStack() as stack:
        for each in MUTANTS[name]() if name else ():
            stack.enter_context(each)
        yield

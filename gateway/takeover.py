"""Takeover: ending the streams of replicas that died.

Taking a stream over fences the dead one's late writes; then its log can be read at leisure, and
tells how it ends: `interrupted`, `done` if the finish was logged, `cancelled` if a cancel was
stored. If this replica dies on the way, its own list names the stream, and a third one goes on.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gateway.beat import Beat
from gateway.errors import Fenced, Passing
from gateway.eventlog import read_all
from gateway.positions import Entries
from gateway.records import VERSION, Record, Records
from gateway.runs import Ending, answer_of, choices_of, ending_events, failure
from gateway.store import Store
from gateway.tails import Tails
from gateway.writer import Writer

log = logging.getLogger("gateway.takeover")


class Takeover:
    """This replica's duties towards dead ones."""

    def __init__(
        self, store: Store, records: Records, beat: Beat, writer: Writer, tails: Tails
    ) -> None:
        self._store = store
        self._records = records
        self._beat = beat
        self._writer = writer
        self._tails = tails
        self._burying: set[str] = set()
        self._generation = 0

    @property
    def busy(self) -> bool:
        """Whether a dead replica's streams are being ended."""
        return bool(self._burying)

    async def bury(self, dead: str, watched: list[str]) -> None:
        """End what a dead replica named as run by it, and what is watched here of it."""
        if dead in self._burying:
            return
        self._burying.add(dead)
        try:
            stream_ids = {*await self._beat.streams_of(dead), *watched}
            log.warning("replica %s is dead; it ran %d stream(s)", dead, len(stream_ids))
            for stream_id in stream_ids:
                await self._inherit(stream_id, dead)
            await self._beat.bury(dead)
        except Passing as error:
            log.info("%s is not buried yet: %s", dead, error.detail)
            self._generation = -1  # It may live after all; what was taken from it is ours now.
        finally:
            self._burying.discard(dead)

    @property
    def adoption_due(self) -> bool:
        """Whether streams may name this replica that it does not know: it broke off while burying,
        or the connection is a new one, and may lead to a server that knows less."""
        return not self._burying and self._generation != self._store.generation

    async def adopt(self, held: Callable[[str], bool]) -> None:
        """End what names this replica as its owner and is not `held` by it.

        A failover may lose the end of a stream that was forgotten here since. Its owner lives, so
        nobody else would ever take it over.
        """
        me, self._generation = self._beat.replica, self._store.generation
        try:
            for stream_id in await self._beat.streams_of(me):
                record = None if held(stream_id) else await self._records.read(stream_id)
                ours = record is not None and record.running and record.owner == me
                if ours and not held(stream_id):
                    await self._inherit(stream_id, me)
        except Passing as error:
            log.info("what was lost here is not ended yet: %s", error.detail)
            self._generation = -1

    async def _inherit(self, stream_id: str, dead: str) -> None:
        """Take one stream over and seal it with what its log tells; raises Passing."""
        await self._beat.enter(stream_id)
        # The same nonce at every try: one whose reply was lost, or that broke off, goes on.
        epoch = await self._records.takeover(stream_id, dead, f"takeover {dead}")
        record = await self._records.read(stream_id)
        if epoch is not None and record is not None:
            await self._seal(record, epoch)
        else:
            self._follow(stream_id, record)
        await self._beat.leave(stream_id)

    async def follow(self, stream_id: str) -> None:
        """Let the viewers of a stream that another replica took away follow it there."""
        with suppress(Passing):
            self._follow(stream_id, await self._records.read(stream_id))

    def _follow(self, stream_id: str, record: Record | None) -> None:
        # Redis may have forgotten the claim: then nobody runs it, and a viewer has to redeem it.
        begun = record is not None and record.state != "cached"
        self._tails.rehome(stream_id, record.owner if record and begun else "", begun)

    async def _seal(self, record: Record, epoch: int) -> None:
        stream_id = record.stream_id
        request = await self._records.request(stream_id)
        entries = await read_all(self._store, stream_id)
        if not entries or entries[-1].last.epoch != epoch:
            # Its owner may live, and write it again: a log must not get two ends.
            raise Passing("store_unavailable", "Redis forgot that the stream was taken over")
        reading = (await answer_of(entries, choices_of(request))).reading
        ending = Ending("done") if reading.finished else _lost()
        events, end, result = ending_events(ending, reading, record.attempts)
        fields = {**fields_of(record), "request": request}
        journal = self._writer.open(stream_id, epoch, Entries(entries), fields)
        try:
            state = await journal.seal(ending.state, events, end, result)
            log.warning("%s: %s in place of a dead replica", stream_id, state)
        except Fenced:
            log.info("%s: a third replica was faster", stream_id)
        finally:
            self._writer.close(journal)
            self._tails.mark([stream_id])


def _lost() -> Ending:
    words = "The replica that ran it died."
    return Ending("interrupted", failure("interrupted", words, retryable=True))


def fields_of(record: Record) -> dict[str, Any]:
    """Return what the record's owner writes again if Redis forgets it."""
    return {
        "version": VERSION,
        "subject": record.subject.encode(),
        "preset": record.preset,
        "digest": record.digest,
        "issued": record.issued,
        "start_by": record.start_by,
        "attempts": record.attempts,
    }

"""Logout: the end of all that a subject has under way, on whatever replicas that is.

Each cancel is stored first, as any other. Then every replica is told: it stops what it runs of the
subject, also where Redis forgot the record, and sends away who still watches once the `end` of what
was cancelled had its time to arrive. A word can be lost: the cancels are looked for each second.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from gateway.errors import Rejected
from gateway.eventlog.fanout import Fanout
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.cancellation import Cancellation
from gateway.runs.endings import FINAL
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry
from gateway.store.keys import control_channel, subject_tag

_LOOK = 0.3  # Seconds after which logs are read again: who runs them may have woken nobody.
_LINGER = 0.7  # Seconds in which viewers may have the end of what was cancelled.
_AT_ONCE = 64  # Streams that are cancelled side by side.


class Logout:
    """Ends what subjects have under way, as it is asked for here and by others."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        fanout: Fanout,
        registry: RunRegistry,
        cancellation: Cancellation,
    ) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._fanout = fanout
        self._registry = registry
        self._cancellation = cancellation

    async def of(self, subject: str) -> int:
        """Cancel all of a subject's streams and cut its viewers; return how many were cancelled.

        May raise Unavailable; it is harmless to ask again.
        """
        streams = await self._records.limits.streams_of(subject)
        cancelled = 0
        for start in range(0, len(streams), _AT_ONCE):
            some = streams[start : start + _AT_ONCE]
            cancelled += sum(await asyncio.gather(*(self._cancel(subject, each) for each in some)))
        words = f"logout {subject_tag(subject)}"
        others = {*await self._heartbeat.replicas()} - {self._records.replica}
        await self._records.store.publish((control_channel(each), words) for each in others)
        self.heard([subject_tag(subject)])
        return cancelled

    async def _cancel(self, subject: str, stream_id: str) -> bool:
        record = await self._records.read(stream_id)
        if record is None or record.subject != subject or record.state in FINAL or record.expired:
            return False
        with suppress(Rejected):  # It is gone by now.
            return await self._cancellation.cancel(record) == "cancelled"
        return False

    def heard(self, tags: Sequence[str]) -> None:
        """Stop what these subjects run here, and send their viewers away."""
        theirs = _any_of(tags)
        runs = self._registry.active
        mine = [run.log.stream_id for run in runs if theirs(run.subject)]
        self._cancellation.carry_out(mine)
        loop = asyncio.get_running_loop()
        loop.call_later(_LOOK, self._look, theirs)
        loop.call_later(_LINGER, self._send_away, theirs)

    def _look(self, theirs: Callable[[str], bool]) -> None:
        self._fanout.mark([tail.stream_id for tail in self._fanout.tails_of(theirs)])

    def _send_away(self, theirs: Callable[[str], bool]) -> None:
        for tail in self._fanout.tails_of(theirs):
            tail.drop()


def _any_of(tags: Iterable[str]) -> Callable[[str], bool]:
    known = frozenset(tags)
    return lambda subject: subject_tag(subject) in known

"""Logout: the end of all that a subject has under way, on whatever replicas that is.

Each cancel is stored first, as any other. Then every replica is told: it stops what it runs of the
subject, also where Redis forgot the record, and sends away who still watches once the `end` of what
was cancelled had its time to arrive. A word can be lost: the cancels are looked for each second.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from urllib.parse import quote, unquote

from gateway.errors import Rejected
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.tail import Tail
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.cancellation import Cancellation
from gateway.runs.endings import FINAL
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry
from gateway.store.keys import control_channel

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
        done: list[bool | BaseException] = []
        for start in range(0, len(streams), _AT_ONCE):
            some = (self._cancel(subject, each) for each in streams[start : start + _AT_ONCE])
            done += await asyncio.gather(*some, return_exceptions=True)
        name = quote(subject, safe="")  # A message's words have blanks between them.
        self.heard([name])
        others = {*await self._heartbeat.replicas()} - {self._records.replica}
        words = f"logout {name}"
        await self._records.store.publish((control_channel(each), words) for each in others)
        for each in done:  # One server that is away keeps nothing of the others alive.
            if isinstance(each, BaseException):
                raise each
        return done.count(True)

    async def _cancel(self, subject: str, stream_id: str) -> bool:
        record = await self._records.read(stream_id)
        if record is None or record.subject != subject or record.state in FINAL or record.expired:
            return False
        with suppress(Rejected):  # It is gone by now.
            return await self._cancellation.cancel(record) == "cancelled"
        return False

    def heard(self, names: Sequence[str]) -> None:
        """Stop what these subjects, by their quoted names, run here, and send their viewers away.

        What they begin from now on is another login's, and is left alone.
        """
        theirs = frozenset(map(unquote, names))
        mine = [run.log.stream_id for run in self._registry.active if run.subject in theirs]
        self._cancellation.carry_out(mine)
        watched = self._fanout.tails_of(theirs)
        loop = asyncio.get_running_loop()
        loop.call_later(_LOOK, self._fanout.mark, [tail.stream_id for tail in watched])
        loop.call_later(_LINGER, _send_away, watched)


def _send_away(tails: Iterable[Tail]) -> None:
    for tail in tails:
        tail.drop()

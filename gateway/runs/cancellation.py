"""Cancellation: from who asks for it to the run that it stops, on whatever replica that is.

A cancel is stored in the stream's record first, and decides its end whatever becomes of the run.
Then its owner is told, by a message and by a request that is kept: a message can be lost.
"""

from collections.abc import Awaitable, Callable, Container, Iterable, Mapping

from gateway.errors import Rejected
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.endings import Ending, ending_events
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.runs.run import Run
from gateway.sse import lines


async def _nobody(stream_id: str) -> None:
    """Leave it to the replica that finds the list of who is none."""


class Cancellation:
    """Cancels, as they are asked for here and by others; most methods may raise Unavailable."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        registry: Mapping[str, Run],
        claims: Container[str],
        tell: Callable[[str], Awaitable[None]] = _nobody,
    ) -> None:
        self._records = records
        self._limits = records.limits
        self._heartbeat = heartbeat
        self._registry = registry
        self._claims = claims  # Of runs to come.
        self._tell = tell  # Of an end that was perhaps written here, and somebody is to hear of.

    async def cancel(self, record: Record) -> str:
        """Store a cancel and make it happen; return the state the stream ends with.

        Raises Rejected if the stream is kept no more.
        """
        waits, webhook = record.state == "cached", bool(record.webhook)
        given = record.stream_id, record.subject
        state = await self.of_stream(*given, waits=waits, webhook=webhook)
        if state == "missing":
            raise Rejected("log_expired")
        return state

    async def of_stream(self, stream_id: str, subject: str, *, waits: bool, webhook: bool) -> str:
        """Do the same with one that waited to be redeemed, or did not; return "missing" if it is
        kept no more."""
        _, end, result = ending_events(Ending("cancelled"), None, 0)
        frame = lines(end.data, end.name)
        alone = waits and webhook  # Nobody runs it, so nobody else would tell its end.
        if alone:
            await self._heartbeat.register(stream_id)
        state, owner = await self._records.cancel(stream_id, frame, result, webhook=webhook)
        if alone:
            await self._tell(stream_id)
        if owner == self._records.replica and stream_id in self._registry:
            self.carry_out([stream_id])
        elif owner:
            await self._heartbeat.ask_to_cancel(stream_id, owner)
        elif state == "cancelled" and waits:
            self._limits.cancelled(subject, stream_id)
        return state

    def carry_out(self, stream_ids: Iterable[str]) -> None:
        """Cancel those of these streams that run here."""
        for stream_id in stream_ids:
            if run := self._registry.get(stream_id):
                run.stop(Ending("cancelled"))

    async def look(self) -> None:
        """Carry out cancels whose message was lost.

        A request for what is not here any more, nor about to begin, is forgotten.
        """
        asked = await self._heartbeat.cancels()
        self.carry_out(asked)
        here = (self._registry, self._claims)
        if late := [each for each in asked if not any(each in some for some in here)]:
            await self._heartbeat.cancelled(*late)

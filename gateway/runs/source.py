"""Source: what becomes of the streams that are watched here and run elsewhere."""

from collections.abc import Mapping, Sequence

from gateway.eventlog.base import Fate
from gateway.eventlog.entries import EventId
from gateway.runs.endings import FINAL
from gateway.runs.presence import Presence
from gateway.runs.records import Records


class RecordSource:
    """Follows streams by their records; see `eventlog.base.Source`."""

    def __init__(self, records: Records) -> None:
        self.patience = records.patience
        self._records = records
        self._presence = Presence(records.store, records.replica)

    async def announce(self, owners: Mapping[str, str], seconds: float) -> None:
        """Tell the owners of these streams, stream -> owner, that somebody watches from here."""
        await self._presence.show(owners, seconds)

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take back what was announced: nobody watches from here any more."""
        await self._presence.withdraw(stream_ids)

    async def compare(self, seen: Mapping[str, EventId | None]) -> list[Fate]:
        """Tell what became of streams of which so much was seen."""
        states = await self._records.states([*seen])
        pairs = zip(seen.items(), states, strict=True)
        return [await self._fate(*stream, *state) for stream, state in pairs]

    async def _fate(self, stream_id: str, last: EventId | None, state: str, epoch: int) -> Fate:
        if state == "cached":
            return Fate.UNCLAIMED
        if not state:
            forgotten = await self._records.may_be_forgotten(stream_id, 0)
            return Fate.KEPT if forgotten else Fate.LOST
        changed = state in FINAL or (last is not None and last.epoch > epoch)
        return Fate.CHANGED if changed else Fate.KEPT

    async def owner(self, stream_id: str) -> str:
        """Return who runs a stream now, "" if nobody does."""
        record = await self._records.read(stream_id)
        return record.owner if record is not None and record.running else ""

"""Notification: what is told of the ends of this replica's streams, and until when it names them.

A stream leaves this replica's list when nothing is owed for it any more: neither its booking, nor
word to its webhook.
"""

from collections.abc import Callable, Container
from contextlib import suppress

from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.reader import read_all
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.endings import FINAL
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry
from gateway.runs.run import Run
from gateway.runs.snapshot import snapshot_of
from gateway.webhooks.courier import Courier


class Notification:
    """Joins the courier with the runs, their logs and the list that names them."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        fanout: Fanout,
        presets: Callable[[str], Preset | None],
        registry: RunRegistry,
    ) -> None:
        self._records = records
        self._store = records.store
        self._ledger = records.limits.ledger
        self._heartbeat = heartbeat
        self._fanout = fanout
        self._registry = registry
        self.claims: Container[str] = ()
        self.courier = Courier(
            records.store, presets, self._text, heartbeat.register, self._leave_unless_it_runs
        )

    async def ended(self, run: Run) -> None:
        """See to what is owed for a stream that ended here."""
        stream_id = run.log.stream_id
        if run.webhook:
            self.courier.owe(stream_id, run.webhook)  # It leaves when that was heard.
            return
        await self._ledger.booked(stream_id)  # Until then its list has to name it.
        await self._leave(stream_id)

    async def look_again(self) -> None:
        """Give the courier what it had no room for, of the runs that are kept here; the list has
        the others."""
        if not self.courier.has_room_again:
            return
        self.courier.skips = False
        runs = [each for each in self._registry.values() if each.webhook and not each.active]
        try:
            for run in runs:
                await self.courier.inherit(run.log.stream_id)
        except Unavailable:
            self.courier.skips = True

    async def over(self) -> set[str]:
        """Return what is to be told here and needs no other look: a Redis that came back behind
        may have forgotten the end of a stream that has no run any more."""
        states = await self._records.known_states([*self.courier])
        running = {each for each, (state, _) in states.items() if state and state not in FINAL}
        return {*self.courier} - running

    async def _leave_unless_it_runs(self, stream_id: str) -> None:
        await self._ledger.booked(stream_id)
        run = self._registry.get(stream_id)
        if stream_id not in self.claims and not (run and run.active):
            await self._leave(stream_id)

    async def _leave(self, stream_id: str) -> None:
        with suppress(Unavailable):
            await self._heartbeat.unregister(stream_id)
            await self._heartbeat.cancelled(stream_id)

    async def _text(self, stream_id: str, dialect: str) -> bytes | None:
        """Return what a log says, as JSON without its quotes; None if the log is gone."""
        tail = self._fanout.get(stream_id)
        here = tail is not None and tail.local
        entries = tail.entries if tail and here else await read_all(self._store, stream_id)
        if not entries:
            return None
        return bytes((await snapshot_of(entries, dialect, b"")).text)

"""Ownership: whether this replica may still spend money on a stream that it claimed."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from gateway import clock
from gateway.errors import Fenced, Sealed, Unavailable
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.endings import Ending
from gateway.runs.records import Records
from gateway.runs.run import Run


class Ownership:
    """Permits requests to upstreams; `interval` tells the seconds between two looks."""

    def __init__(
        self, records: Records, heartbeat: Heartbeat, interval: Callable[[], float]
    ) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._interval = interval

    async def permit(self, claimed: float, run: Run) -> None:
        """Return when this replica may ask the upstream; raises Fenced.

        One that was late since its claim may have been declared dead, though it is well again: its
        claim is then no right to spend money.
        A further attempt, or one of another preset, is recorded, and its `reset` logged, before it
        is made. A cancel stored by then stops it: between a death and this run there was nobody to
        be woken.
        """
        again = run.attempts > 1 or run.log.taken_over or run.switched
        if again:
            await run.log.flushed()
        while again or not self._heartbeat.lease_held_since(claimed):
            asked = clock.now()
            with suppress(Unavailable):
                try:
                    await run.log.hold()
                except (Fenced, Sealed):
                    run.log.fence()  # Which cancels this task: not in the midst of what follows.
                    await asyncio.sleep(0)
                    raise Fenced(run.log.stream_id) from None
                record = await self._records.read(run.log.stream_id)
                if record is not None and record.cancelled:
                    run.stop(Ending("cancelled"))  # Which ends this task at its next await.
                elif (
                    self._heartbeat.lease_held_since(asked)
                    and record
                    and record.epoch == run.log.epoch
                ):
                    return  # Else it was taken over since the hold: a pause lies between.
            await asyncio.sleep(self._interval())

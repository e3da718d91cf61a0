"""Idle: how long runs go on that nobody watches, here or on any other replica."""

import asyncio
import logging
from collections.abc import Iterable

from gateway.membership.heartbeat import Heartbeat
from gateway.runs.records import Records
from gateway.runs.run import Run

logger = logging.getLogger("gateway.runs.idle")


class IdlePolicy:
    """Looks for the viewers of runs; only full graces of looks that found nobody count."""

    def __init__(self, records: Records, beat: Heartbeat) -> None:
        self._records = records
        self._beat = beat

    async def over(self, runs: Iterable[Run]) -> list[Run]:
        """Return the runs whose grace is over; raises Unavailable."""
        mute = not self._beat.fresh  # A full store answers, but takes no "somebody is here".
        alone = [run for run in runs if self._alone(run, mute)]
        if not alone:
            return []
        now = asyncio.get_running_loop().time()
        watched = await self._records.presence.watched([run.log.stream_id for run in alone])
        over: list[Run] = []
        for run, seen in zip(alone, watched, strict=True):
            if seen or run.tail.viewers:
                run.unseen_since = None
            elif run.unseen_since is None:
                run.unseen_since = now
            elif run.tail.idle_since > run.unseen_since:
                run.unseen_since = run.tail.idle_since  # Somebody was here between two looks.
            elif now - run.unseen_since >= run.preset.grace:
                logger.info("%s: nobody watches it any more", run.log.stream_id)
                over.append(run)
        return over

    def _alone(self, run: Run, mute: bool) -> bool:
        """Whether nobody watches it here, and that matters."""
        if mute or run.tail.viewers or run.preset.on_leave == "finish" or not run.pulling:
            run.unseen_since = None
            return False
        return True

    def anew(self, runs: Iterable[Run]) -> None:
        """Count from the start: a look failed."""
        for run in runs:
            run.unseen_since = None

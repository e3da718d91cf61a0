"""Control: what other replicas tell this one: what is new, what to cancel, who watches.

A message can be lost. News are read once a second in any case, presence is a key; a cancel is kept
in Redis as well, and looked for.
"""

import asyncio
from collections.abc import Container, Iterable, Mapping

from gateway.eventlog.fanout import Fanout
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.endings import Ending
from gateway.runs.run import Run
from gateway.store.client import RedisClient
from gateway.store.keys import inbox


class ControlChannel:
    """Does what others ask of the `runs` and `fanout` here; `listen` is its task."""

    def __init__(
        self, store: RedisClient, beat: Heartbeat, fanout: Fanout, runs: Mapping[str, Run]
    ) -> None:
        self._store = store
        self._beat = beat
        self._fanout = fanout
        self._runs = runs

    async def listen(self) -> None:
        """Do what messages ask for, for ever."""
        async for message in self._store.messages(inbox(self._beat.replica)):
            word, *rest = message.decode("utf-8", "replace").split() or [""]
            if word == "wake":
                self._fanout.mark(rest)
            elif word == "cancel":
                self.cancel(rest)
            elif word == "watch" and rest:
                self._watched_by(rest[0], rest[1:])

    def cancel(self, stream_ids: Iterable[str]) -> None:
        """Cancel those of these streams that run here."""
        for stream_id in stream_ids:
            if run := self._runs.get(stream_id):
                run.stop(Ending("cancelled"))

    async def look_for_cancels(self, begun: Container[str]) -> None:
        """Carry out cancels whose message was lost, `begun`: of runs to come; raises Unavailable.

        A request for what is not here any more, nor begun, is forgotten.
        """
        asked = await self._beat.cancels()
        self.cancel(asked)
        if late := [each for each in asked if each not in self._runs and each not in begun]:
            await self._beat.cancelled(*late)

    def _watched_by(self, replica: str, stream_ids: Iterable[str]) -> None:
        now = asyncio.get_running_loop().time()
        for stream_id in stream_ids:
            if run := self._runs.get(stream_id):
                run.log.watched_by(replica, now + run.preset.grace)
                run.unseen_since = None  # The visit may be over before the next look.

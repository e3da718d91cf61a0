"""Presence: who watches a stream anywhere, and how long a run goes on that nobody watches.

A replica with viewers of a stream that runs elsewhere says so, with a key and a message to the
owner. The owner looks for the key, and only full graces of looks that found nobody count.
"""

import logging
from collections.abc import Mapping, Sequence

from gateway import clock
from gateway.errors import Unavailable
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.endings import Ending
from gateway.runs.registry import RunRegistry
from gateway.runs.run import Run
from gateway.store.client import RedisClient
from gateway.store.keys import control_channel, presence_key

logger = logging.getLogger("gateway.runs.presence")


class Presence:
    """Who watches, as one replica tells and sees it; every method may raise Unavailable."""

    def __init__(self, store: RedisClient, replica: str) -> None:
        self._store = store
        self._replica = replica

    async def show(self, owners: Mapping[str, str], ttl: float) -> None:
        """Tell the owners of these streams, stream -> owner, that somebody watches from here.

        It holds for `ttl` seconds; an owner that is not known ("") has to look.
        """
        milliseconds = max(1, int(ttl * 1000))
        await self._store.calls(
            ["SET", presence_key(each), self._replica, "PX", milliseconds] for each in owners
        )
        words: dict[str, list[str]] = {}
        for stream_id, owner in owners.items():
            if owner:
                words.setdefault(owner, []).append(stream_id)
        messages = [
            (control_channel(each), f"watch {self._replica} {' '.join(words[each])}")
            for each in words
        ]
        if messages:
            await self._store.publish(messages)

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take back what was told, unless another replica has told it since."""
        replies = await self._store.calls(["GET", presence_key(each)] for each in stream_ids)
        ours = [
            presence_key(stream_id)
            for stream_id, reply in zip(stream_ids, replies, strict=True)
            if reply == self._replica.encode()
        ]
        await self._store.calls(["DEL", key] for key in ours)

    async def watched(self, stream_ids: list[str]) -> list[bool]:
        """Tell which of these streams somebody watches from another replica, or may watch."""
        replies = await self._store.attempt(["EXISTS", presence_key(each)] for each in stream_ids)
        return [isinstance(reply, Unavailable) or bool(reply) for reply in replies]


class IdlePolicy:
    """Stops the runs that nobody watches; only here `Run.unseen_since` is written."""

    def __init__(self, presence: Presence, heartbeat: Heartbeat, registry: RunRegistry) -> None:
        self._presence = presence
        self._heartbeat = heartbeat
        self._registry = registry

    def watched_by(self, words: Sequence[str]) -> None:
        """Note what another replica tells: its name, and the streams that it has viewers of."""
        replica, *stream_ids = words or [""]
        now = clock.now()
        for stream_id in stream_ids:
            if run := self._registry.get(stream_id):
                run.log.watched_by(replica, now + run.preset.grace)
                run.unseen_since = None  # The visit may be over before the next look.

    async def look(self) -> None:
        """Stop the runs whose grace is over; raises Unavailable."""
        # A full store answers, but takes no "somebody is here".
        mute = not self._heartbeat.lease_valid
        alone = [run for run in self._registry.active if self._alone(run, mute)]
        if not alone:
            return
        now = clock.now()
        watched = await self._presence.watched([run.log.stream_id for run in alone])
        for run, seen in zip(alone, watched, strict=True):
            if seen or run.tail.viewers:
                run.unseen_since = None
            elif run.unseen_since is None:
                run.unseen_since = now
            elif run.tail.idle_since > run.unseen_since:
                run.unseen_since = run.tail.idle_since  # Somebody was here between two looks.
            elif now - run.unseen_since >= run.preset.grace:
                logger.info("%s: nobody watches it any more", run.log.stream_id)
                run.stop(Ending("cancelled"))

    def _alone(self, run: Run, mute: bool) -> bool:
        """Whether nobody watches it here, and that matters."""
        if mute or run.tail.viewers or run.preset.on_leave == "finish" or not run.pulling:
            run.unseen_since = None
            return False
        return True

    def anew(self) -> None:
        """Count from the start: a look failed."""
        for run in self._registry.active:
            run.unseen_since = None

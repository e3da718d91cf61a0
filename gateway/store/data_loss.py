"""Data loss: since when each Redis server remembers.

A marker on each server holds the server's time when it was set. It is set once, and kept alive by
the beats of all replicas; a marker that is another one than before tells that a server lost all
that it had. In a Cluster one may do so alone.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.keys import DAY

_PATIENCE = 0.05  # Of a lease: a server that is slow must not hold up the beat.


class DataLossDetector:
    """The markers as this replica sees them; `lease` is in seconds."""

    def __init__(self, store: RedisClient, lease: float) -> None:
        self._store = store
        self._patience = lease * _PATIENCE
        self._seen: dict[str, bytes] = {}
        self._lost: set[str] = set()
        self._open: dict[str, asyncio.Task[None]] = {}

    async def renew(self) -> list[str]:
        """Set and keep alive the markers; return those that changed since the last look."""
        markers = self._store.markers
        if len(markers) == 1:
            await self._renew(markers[0])
        else:
            await self._renew_many(markers)
        lost, self._lost = self._lost, set()
        return list(lost)

    async def _renew_many(self, markers: Sequence[str]) -> None:
        """Renew what is not being renewed yet, and do not wait for the slow ones."""
        for marker in markers:
            if marker not in self._open:
                task = asyncio.create_task(self._renew(marker))
                self._open[marker] = task
                task.add_done_callback(partial(self._answered, marker))
        if self._open:
            await asyncio.wait(self._open.values(), timeout=self._patience)
        self._seen = {name: value for name, value in self._seen.items() if name in markers}

    def _answered(self, marker: str, _: object) -> None:
        del self._open[marker]

    async def _renew(self, marker: str) -> None:
        try:
            value = await self._set(marker)
        except Unavailable:
            return  # Nothing is known, so nothing changed.
        if self._seen.get(marker, value) != value:
            self._lost.add(marker)
        self._seen[marker] = value

    async def _set(self, marker: str) -> bytes:
        (seconds, micros), _ = await self._store.urgent([["TIME"], ["EXISTS", marker]])
        now = int(seconds) * 1000 + int(micros) // 1000
        replies: list[Any] = await self._store.urgent(
            [["SET", marker, now, "NX", "PX", DAY], ["GET", marker], ["PEXPIRE", marker, DAY]]
        )
        return bytes(replies[1] or b"")

    async def stop(self) -> None:
        """End what is still asked."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Data loss: since when each Redis server remembers.

Each server holds a dataset id: its time when that was set. It is set once, and kept alive by the
beats of all replicas; one that is another than before tells that a server lost all that it had. In
a Cluster one may do so alone.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.keys import DAY

_WAIT = 0.05  # Of a lease: a server that is slow must not hold up the beat.


class DataLossDetector:
    """The dataset ids as this replica sees them; `lease` is in seconds."""

    def __init__(self, store: RedisClient, lease: float) -> None:
        self._store = store
        self._wait = lease * _WAIT
        self._seen: dict[str, bytes] = {}
        self._lost: set[str] = set()
        self._open: dict[str, asyncio.Task[None]] = {}

    async def renew(self) -> list[str]:
        """Set and keep alive the dataset ids; return the keys of those that changed since."""
        keys = self._store.dataset_keys
        if len(keys) == 1:
            await self._renew(keys[0])
        else:
            await self._renew_many(keys)
        lost, self._lost = self._lost, set()
        return list(lost)

    async def _renew_many(self, keys: Sequence[str]) -> None:
        """Renew what is not being renewed yet, and do not wait for the slow ones."""
        for key in keys:
            if key not in self._open:
                task = asyncio.create_task(self._renew(key))
                self._open[key] = task
                task.add_done_callback(partial(self._answered, key))
        if self._open:
            await asyncio.wait(self._open.values(), timeout=self._wait)
        self._seen = {name: value for name, value in self._seen.items() if name in keys}

    def _answered(self, key: str, _: object) -> None:
        del self._open[key]

    async def _renew(self, key: str) -> None:
        try:
            value = await self._set(key)
        except Unavailable:
            return  # Nothing is known, so nothing changed.
        if self._seen.get(key, value) != value:
            self._lost.add(key)
        self._seen[key] = value

    async def _set(self, key: str) -> bytes:
        (seconds, micros), _ = await self._store.urgent([["TIME"], ["EXISTS", key]])
        now = int(seconds) * 1000 + int(micros) // 1000
        replies: list[Any] = await self._store.urgent(
            [["SET", key, now, "NX", "PX", DAY], ["GET", key], ["PEXPIRE", key, DAY]]
        )
        return bytes(replies[1] or b"")

    async def stop(self) -> None:
        """End what is still asked."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

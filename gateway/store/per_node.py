"""Per node: one worker for each Redis server, so that none waits for another's server.

A single Redis has one. In a Cluster a worker is made when its server is first needed.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from gateway.store.node import Node


class Worker(Protocol):
    """What has to be done at one server."""

    async def run(self) -> None:
        """Work for ever."""


W = TypeVar("W", bound=Worker)


class PerNodeTasks(Generic[W]):
    """The workers of all servers; `run` is their only owner."""

    def __init__(self, make: Callable[[Node], W]) -> None:
        self._make = make
        self._workers: dict[Node, W] = {}
        self._joined = asyncio.Event()

    def of(self, node: Node) -> W:
        """Return the worker of a server."""
        worker = self._workers.get(node)
        if worker is None:
            worker = self._workers[node] = self._make(node)
            self._joined.set()
        return worker

    def __iter__(self) -> Iterator[W]:
        return iter(list(self._workers.values()))

    async def run(self) -> None:
        """Run all workers, also those that are made later, for ever; the owner cancels it."""
        async with asyncio.TaskGroup() as group:
            started = 0
            while True:
                for worker in list(self)[started:]:
                    group.create_task(worker.run())
                    started += 1
                self._joined.clear()
                await self._joined.wait()

"""Replicas: the processes of the demo that are gateways, one of which may be killed at any time.

The first that lives has everything, the others wait; a killed one is started anew, as the last.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from gateway.serve.sockets import bind, url_of
from gateway.tasks import Tasks

_PAUSE = 1.0  # Seconds before a replica is started again, as by any supervisor.
_FAREWELL = 5.0  # Seconds that one may take beyond its drain.

Serve = Callable[[socket.socket], None]

_spawning = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class Replica:
    """One process; without a `url` it does not listen yet."""

    number: int
    process: Any
    url: str = ""

    def told(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        return {"number": self.number, "pid": self.process.pid, "listens": bool(self.url)}


class Replicas:
    """All of them; each has `drain` seconds to end in good order."""

    def __init__(self, drain: float) -> None:
        self._drain = drain
        self._tasks = Tasks()
        self._ending = False
        self._listens = asyncio.Event()
        self.living: list[Replica] = []  # The first has everything.

    async def start(self, serve: Serve, count: int) -> None:
        """Start so many, and return once one listens; what each does there is pickled."""
        self._tasks.spawn(self._keep(serve, 1))
        await self._listens.wait()  # Alone: who waits for the page waits for one start.
        for number in range(2, count + 1):
            self._tasks.spawn(self._keep(serve, number))

    @property
    def listening(self) -> list[Replica]:
        """Those that can be asked, in the order in which to ask them."""
        return [each for each in self.living if each.url]

    def kill(self) -> Replica | None:
        """Kill the one that has everything, where another could go on; return which it was."""
        if len(self.listening) < 2:
            return None
        first = self.listening[0]
        first.process.kill()
        self.living.remove(first)  # At once: nobody is to be sent there.
        return first

    def send(self, number: int) -> None:
        """Send a signal to all."""
        for each in self.living:
            with suppress(ProcessLookupError):
                os.kill(each.process.pid, number)

    async def stop(self) -> None:
        """Let them drain and end, and end by force what does not."""
        self._ending = True
        left = list(self.living)
        try:
            for each in left:
                each.process.terminate()
            await self._tasks.over(self._drain + _FAREWELL)
        finally:
            for each in left:
                each.process.kill()
                each.process.join()

    async def _keep(self, serve: Serve, number: int) -> None:
        """Have one running, one process after the other."""
        while not self._ending:
            await self._run(serve, number)
            if not self._ending:
                await asyncio.sleep(_PAUSE)

    async def _run(self, serve: Serve, number: int) -> None:
        """Run one process from its start to its end."""
        here, there = _spawning.Pipe(duplex=False)
        process = _spawning.Process(target=_begin, args=(serve, there), daemon=True)
        process.start()
        there.close()
        replica = Replica(number, process)
        self.living.append(replica)
        try:
            if await _readable(here.fileno()):
                with suppress(EOFError):  # It ended before it listened.
                    replica.url = here.recv()
                    self._listens.set()
            await _readable(process.sentinel)
            process.join()
        finally:
            if replica in self.living:
                self.living.remove(replica)
            here.close()


async def _readable(descriptor: int) -> bool:
    """Wait until there is something to be read, or nothing ever again."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        return await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _begin(serve: Serve, there: Connection) -> None:
    """Listen, say where, and serve: what a replica's process does."""
    Thread(target=_follow_parent, daemon=True).start()
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl+C must reach a replica once, from its parent; twice means at once.
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        there.send(url_of(listener))
        serve(listener)


def _follow_parent() -> None:
    """End with the process that began this one: it has the store, and so all there is to save."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

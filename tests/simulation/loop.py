"""A virtual-time event loop: deterministic, and it knows which replica each callback belongs to.

When nothing is ready, time jumps to the next timer. Every callback carries the host it runs on in
its context, so a host can be paused (its callbacks wait, as after SIGSTOP) or killed (they wait for
ever; what `finally` would do never reaches anybody).
"""

import asyncio
import heapq
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, Protocol

_TICK = 1e-6  # Seconds that a callback takes: else a busy wait would never end.
STEPS = 400_000  # Callbacks of one schedule, above which it is a loop that never ends.


class Endpoint(Protocol):
    """What a name on the network leads to."""

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseTransport:
        """Return the client's end of a new connection; raises OSError."""


class Host:
    """A process, as the loop sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False  # Paused, or killed: to the outside it is the same.
        self.dead = False
        self.held: list[asyncio.Handle] = []

    def context(self) -> Context:
        """Return a context whose callbacks run on this host."""
        context = copy_context()
        context.run(HOST.set, self)
        return context


HOST: ContextVar[Host | None] = ContextVar("HOST", default=None)


class Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Any, *, loop: "VirtualLoop", **options: Any) -> None:
        self.number = next(loop.numbers)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[str, Endpoint] = {}
        self.faults: list[str] = []  # What reached the exception handler.
        self.steps = 0
        self.numbers = count()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]
        self.set_task_factory(_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def world(self, when: float, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        """Call something that belongs to no host at a time, whoever asks for it."""
        return self.call_at(when, callback, *args, context=_WORLD)

    def release(self, host: Host) -> None:
        """Let a host's callbacks run again, those that waited first."""
        host.stopped = False
        held, host.held = host.held, []
        self._ready.extendleft(reversed(held))

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Return a name as its own address."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """Connect to a name on the simulated network."""
        endpoint = self.hosts.get(str(host))
        if endpoint is None:
            raise ConnectionRefusedError(f"no host {host}")
        transport = await endpoint.connect(protocol_factory)
        return transport, transport.get_protocol()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled
        while timers and (not ready or timers[0].when() <= self._now or timers[0].cancelled()):
            if not ready and not timers[0].cancelled():
                self._now = max(self._now, timers[0].when())
            if timers[0].when() > self._now and not timers[0].cancelled():
                break
            handle = heapq.heappop(timers)
            handle._scheduled = False  # type: ignore[attr-defined]
            if not handle.cancelled():
                ready.append(handle)
        if not ready:
            raise RuntimeError("nothing will ever happen again")
        for _ in range(len(ready)):
            handle = ready.popleft()  # type: ignore[assignment]
            if not handle.cancelled():
                self._step(handle)

    def _step(self, handle: asyncio.Handle) -> None:
        host = handle._context.get(HOST)  # type: ignore[attr-defined]
        if host is not None and host.stopped:
            host.held.append(handle)
            return
        self.steps += 1
        if self.steps > STEPS:
            raise RuntimeError(f"no end after {STEPS} callbacks")
        self._now += _TICK
        handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # They are dropped when they are due.

    def _write_to_self(self) -> None:
        raise AssertionError("no threads here")

    def _process_events(self, event_list: object) -> None:
        raise AssertionError("no sockets here")

    def _note(self, loop: object, context: dict[str, Any]) -> None:
        where = context.get("task") or context.get("handle") or ""
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r} {where!r}")


def _task(loop: VirtualLoop, coro: Coroutine[Any, Any, Any], context: Any = None) -> Any:
    return Task(coro, loop=loop, context=context)


_WORLD = Context()


def run(loop: VirtualLoop, main: Coroutine[Any, Any, Any], wake_all: Callable[[], None]) -> Any:
    """Run a coroutine to its end on this loop, and cancel all that is left."""
    try:
        return loop.run_until_complete(main)
    finally:
        wake_all()
        loop.steps = 0
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

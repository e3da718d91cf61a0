"""A virtual-time event loop: deterministic, and it knows which replica each callback belongs to.

When nothing is ready, time jumps to the next timer. Every callback carries the host it runs on in
its context, so a host can be paused (its callbacks wait, as after SIGSTOP) or killed (they wait for
ever; what `finally` would do never reaches anybody).
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
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
        self.held: list[Call] = []

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


class Call(asyncio.Handle):
    """A callback that is due; it asks the loop for nothing: there are thousands in a schedule."""

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], loop: Any, context: Any
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None


class Timer(Call, asyncio.TimerHandle):
    """A callback that is due at a time, and dropped only then if it was cancelled."""

    def __init__(self, when: float, *call: Any) -> None:
        Call.__init__(self, *call)
        self._when = when
        self._scheduled = True

    def cancel(self) -> None:
        """Do nothing when it is due."""
        asyncio.Handle.cancel(self)


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
        self._ready: deque[Call]
        self._timers: list[tuple[float, int, Timer]] = []
        self._set = 0  # Timers so far: of those due at once the first that was set is the first.
        self.set_task_factory(_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def world(self, when: float, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        """Call something that belongs to no host at a time, whoever asks for it."""
        return self.call_at(when, callback, *args, context=_WORLD)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call something at the next turn."""
        handle = Call(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call something at a time."""
        timer = Timer(when, callback, args, self, context)
        self._set += 1
        heappush(self._timers, (when, self._set, timer))
        return timer

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
        ready, timers = self._ready, self._timers
        while timers:
            when, _, timer = timers[0]
            if timer._cancelled:
                heappop(timers)
                continue
            if when > self._now:
                if ready:
                    break
                self._now = when
            heappop(timers)
            ready.append(timer)
        if not ready:
            raise RuntimeError("nothing will ever happen again")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._step(handle)

    def _step(self, handle: Call) -> None:
        host = handle._context.get(HOST)
        if host is not None and host.stopped:
            host.held.append(handle)
            return
        self.steps += 1
        if self.steps > STEPS:
            raise RuntimeError(f"no end after {STEPS} callbacks")
        self._now += _TICK
        try:
            handle._context.run(handle._callback, *handle._args)
        except Exception as error:
            words = {"message": "a callback broke", "exception": error, "handle": handle}
            self.call_exception_handler(words)

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

"""Server: uvicorn's, with an orderly end and with what a stream wants from its socket.

What it lends to a response, in the scope's extensions: `gateway.abort` cuts the connection,
`gateway.write` writes a part of the body if there is room, `gateway.closed` tells of the end. Under
another server these are missing, and a stream does without.
"""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from gateway import workers
from gateway.app import Gateway
from gateway.errors import SettingsError

_UNSENT = 16 * 1024  # Bytes of one connection that wait for its reader, before we wait as well.
_FILES = 1 << 20  # Where the system names no limit.
_LINGER = 0.5  # Seconds in which open connections can still see that we are not ready.

log = logging.getLogger("gateway")


class Closed:
    """Whom to tell that a connection has ended; who comes late is told at once."""

    def __init__(self) -> None:
        self._lost = False
        self._calls: set[Callable[[], None]] = set()

    def add(self, call: Callable[[], None]) -> None:
        """Call this at the end."""
        self._calls.add(call)
        if self._lost:
            call()

    def discard(self, call: Callable[[], None]) -> None:
        """Do not: the response has ended before its connection."""
        self._calls.discard(call)

    def tell(self) -> None:
        """Tell all."""
        self._lost = True
        for call in list(self._calls):
            call()


class Few(list[Any]):
    """A deque of what is nearly always nothing: an empty one of those takes 600 bytes."""

    def appendleft(self, item: Any) -> None:
        """Add before the first."""
        self.insert(0, item)


def _event(*, done: bool = False) -> asyncio.Event:
    """Return an event that keeps its waiters in a list; see `Few`."""
    event = asyncio.Event()
    event._waiters = []  # type: ignore[assignment]
    if done:
        event.set()
    return event


class Front:
    """The way to our own URLs past the router, whose frames every open stream would keep."""

    def __init__(self, app: ASGIApp, exact: dict[str, ASGIApp]) -> None:
        self._app = app
        self._exact = exact

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the answer's coroutine: another `async` would be another frame."""
        return self._exact.get(scope.get("path", ""), self._app)(scope, receive, send)


class Protocol(HttpToolsProtocol):
    """uvicorn's, which lends its socket to the application, and keeps less for an open stream."""

    def on_message_begin(self) -> None:
        """Lend the transport's abort to the response: a close would wait for the reader."""
        super().on_message_begin()
        self.scope["extensions"] = {"gateway.abort": self.transport.abort}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Lend a way to write a part of the body at once, where there is room for it."""
        super().on_headers_complete()
        self.cycle.message_event = _event()  # Its task has not run yet.
        extensions: Any = self.scope["extensions"]
        extensions["gateway.write"] = partial(_write, self.cycle, self.transport, self.flow)
        extensions["gateway.closed"] = self._closed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to keep who wants to know of the end: a task that waits for it costs memory."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_UNSENT)  # Of one who does not read it all stays.
        self.pipeline = Few()  # type: ignore[assignment]
        self.flow._is_writable_event = _event(done=True)
        self._closed = Closed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell them."""
        super().connection_lost(exc)
        self._closed.tell()


def _write(
    cycle: RequestResponseCycle, transport: asyncio.Transport, flow: FlowControl, body: bytes
) -> bool:
    """Write a chunk as `cycle.send` would, unless that would have to wait; say whether."""
    if flow.write_paused or transport.is_closing() or not cycle.chunked_encoding:
        return False
    transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


class Server(uvicorn.Server):
    """uvicorn's, with an orderly end: the listener first, then viewers, then runs, then exit 0."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway | None) -> None:
        super().__init__(config)
        self.linger = _LINGER
        self._gateway = gateway
        self.ready = ""
        self._parent = os.getppid() if workers.inside() else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so: whoever waits for that line connects at once."""
        await super().startup(sockets)
        if self.started and self.ready:
            print(self.ready, flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Look whether to end; a worker whose supervisor was killed does."""
        orphaned = self._parent is not None and os.getppid() != self._parent
        return await super().on_tick(counter) or orphaned

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends at once.

        uvicorn raises what it captured again at its end, and the exit code would not be 0.
        """
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, drain, then let uvicorn close what is left."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        if self._gateway is not None:
            await self._drain(self._gateway)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # It tells what it cuts.
        await super().shutdown(sockets)

    async def _drain(self, gateway: Gateway) -> None:
        drained = asyncio.create_task(gateway.replica.drain(gateway.settings.drain))
        log.info("draining %d run(s)", len(gateway.replica.active))
        linger = asyncio.get_running_loop().time() + self.linger
        while not drained.done() or asyncio.get_running_loop().time() < linger:
            if self.force_exit:
                drained.cancel()
                break
            await asyncio.sleep(0.05)
        with suppress(asyncio.CancelledError):
            await drained


def run(
    app: ASGIApp, listener: socket.socket, gateway: Gateway | None, level: str, ready: str
) -> None:
    """Serve on a bound socket until a signal, then drain."""
    config = uvicorn.Config(
        app if gateway is None else Front(app, gateway.routes.exact()),
        http=Protocol,
        interface="asgi3",
        proxy_headers=False,  # Nothing here asks who the client is; a caller could lie about it.
        ws="none",
        log_config=None,
        log_level=level if level == "debug" else "warning",
        access_log=False,  # It prints the query, and so the ticket.
        server_header=False,
        timeout_graceful_shutdown=5,
        backlog=4096,
    )
    _allow_files()
    server = Server(config, gateway)
    server.ready = ready
    gc.collect()
    gc.set_threshold(50_000, 20, 50)  # Nor is each stream that opens a reason to look at all.
    gc.freeze()  # What is loaded by now stays; looking at it again stops the process for long.
    server.run([listener])


def _allow_files() -> None:
    """Allow as many open files as may be: a stream takes two, and a usual limit is 1,024."""
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else most
    with suppress(ValueError, OSError):  # Some systems have a limit that they do not tell.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening address; raises SettingsError if it is not to be had."""
    if not 0 <= port <= 65535:
        raise SettingsError(f"cannot listen on {host}:{port}: no such port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a socket listens, as a browser would write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

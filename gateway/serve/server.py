"""Server: uvicorn's, with an orderly end, over connections that owe nothing for long."""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from gateway.app import Gateway
from gateway.config.settings import Settings
from gateway.errors import SettingsError
from gateway.serve import workers
from gateway.serve.deadlines import Debts, Terms
from gateway.serve.protocol import Protocol

_FILES = 1 << 20  # Where the system names no limit.
_LINGER = 0.5  # Seconds in which open connections can still see that we are not ready.

logger = logging.getLogger("gateway")


class Front:
    """The way to our own URLs past the router, whose frames every open stream would keep."""

    def __init__(self, app: ASGIApp, exact: dict[str, ASGIApp]) -> None:
        self._app = app
        self._exact = exact

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the answer's coroutine: another `async` would be another frame."""
        return self._exact.get(scope.get("path", ""), self._app)(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's, with an orderly end: the listener first, then viewers, then runs, then exit 0."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway | None) -> None:
        super().__init__(config)
        self._debts = Debts(_terms(gateway.settings) if gateway else Terms(), _files())
        config.http = partial(Protocol, debts=self._debts)  # type: ignore[assignment]
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
        """Look who owes us something, and whether to end; with its supervisor, a worker does."""
        self._debts.collect()
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
        logger.info("draining %d run(s)", len(gateway.replica.active))
        linger = asyncio.get_running_loop().time() + self.linger
        while not drained.done() or asyncio.get_running_loop().time() < linger:
            if self.force_exit:
                drained.cancel()
                break
            self._debts.collect()
            await asyncio.sleep(0.05)
        with suppress(asyncio.CancelledError):
            await drained


def run(
    app: ASGIApp, listener: socket.socket, gateway: Gateway | None, level: str, ready: str
) -> None:
    """Serve on a bound socket until a signal, then drain."""
    config = uvicorn.Config(
        app if gateway is None else Front(app, gateway.routes.exact()),
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


def _terms(given: Settings) -> Terms:
    return Terms(
        size=given.max_head,
        head=given.head_timeout,
        body=given.body_timeout,
        idle=given.idle_timeout,
        reading=given.write_timeout,
    )


def _files() -> int:
    if resource is None:
        return _FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _FILES if allowed == resource.RLIM_INFINITY else allowed


def _allow_files() -> None:
    """Allow as many open files as may be: a stream takes two, and a usual limit is 1,024."""
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else most
    with suppress(ValueError, OSError):  # Some systems have a limit that they do not tell.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def reserve(host: str, port: int) -> socket.socket:
    """Return an address for workers to share, and for nobody else; raises SettingsError.

    Whoever shares a port gets a part of its connections, and any process of the same user may that
    asks to: another gateway's workers too. So it has to be had alone first, and is then held by a
    socket that does not listen, against whom a port without a listener would be free.
    """
    with bind(host, port) as alone:
        actual = alone.getsockname()[1]
    try:
        return bind(host, actual, shared=True, reuse=False)
    except SettingsError:  # What a server without workers has left, for a minute.
        return bind(host, actual, shared=True)


def bind(host: str, port: int, *, shared: bool = False, reuse: bool = True) -> socket.socket:
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
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
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

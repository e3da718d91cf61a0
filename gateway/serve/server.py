"""Server: uvicorn's, with an orderly end, over connections that owe nothing for long."""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gateway import clock
from gateway.config.settings import Settings
from gateway.serve import workers
from gateway.serve.deadlines import Debts, Terms
from gateway.serve.protocol import HttpProtocol
from gateway.serve.sockets import allow_files, files_allowed

_LINGER = 0.5  # Seconds in which open connections can still see that we are not ready.

_TERMS = Terms()

Drain = Callable[[], Coroutine[Any, Any, None]]
Reload = Drain


class Server(uvicorn.Server):
    """uvicorn's, with an orderly end: the listener first, then what drains the rest, then exit 0.

    `ready` is what it says as soon as it listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        terms: Terms = _TERMS,
        drain: Drain | None = None,
        ready: str = "",
        reload: Reload | None = None,
    ) -> None:
        super().__init__(config)
        self._debts = Debts(terms, files_allowed())
        config.http = partial(HttpProtocol, debts=self._debts)  # type: ignore[assignment]
        self.linger = _LINGER
        self._drain = drain
        self._ready = ready
        self._reload = reload
        self._reloading: asyncio.Task[None] | None = None
        self._hung_up = False
        self._parent = os.getppid() if workers.inside() else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so: whoever waits for that line connects at once."""
        await super().startup(sockets)
        if self.started and self._ready:
            print(self._ready, flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Look who owes us something, and whether to end; with its supervisor, a worker does."""
        self._debts.collect()
        if self._hung_up:
            self._begin_reload()
        orphaned = self._parent is not None and os.getppid() != self._parent
        return await super().on_tick(counter) or orphaned

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Have the presets read again, at the next tick."""
        self._hung_up = True

    def _begin_reload(self) -> None:
        if self._reload and (self._reloading is None or self._reloading.done()):
            self._hung_up = False
            self._reloading = asyncio.create_task(self._reload())

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
        if self._drain is not None:
            await self._drained(self._drain)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # It tells what it cuts.
        await super().shutdown(sockets)

    async def _drained(self, drain: Drain) -> None:
        drained = asyncio.create_task(drain())
        linger = clock.now() + self.linger
        while not drained.done() or clock.now() < linger:
            if self.force_exit:
                drained.cancel()
                break
            self._debts.collect()
            await asyncio.sleep(0.05)
        with suppress(asyncio.CancelledError):
            await drained


def run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    level: str,
    ready: str,
    terms: Terms = _TERMS,
    drain: Drain | None = None,
    reload: Reload | None = None,
) -> None:
    """Serve on a bound socket until a signal, then drain; at SIGHUP reload, if that is given."""
    config = uvicorn.Config(
        app,
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
    allow_files()
    server = Server(config, terms, drain, ready, reload)
    if reload is not None:
        workers.on_hangup(server.handle_hangup)
    gc.collect()
    gc.set_threshold(50_000, 20, 50)  # Nor is each stream that opens a reason to look at all.
    gc.freeze()  # What is loaded by now stays; looking at it again stops the process for long.
    server.run([listener])


def terms_of(given: Settings) -> Terms:
    """Return what the settings let a caller take."""
    return Terms(
        size=given.max_head,
        head=given.head_timeout,
        body=given.body_timeout,
        idle=given.idle_timeout,
        reading=given.write_timeout,
    )

"""Demonstration: what `gateway demo` runs, a page, a pretend upstream, a store and two replicas.

This process has all but the replicas, which are processes of their own: each can be killed. Where
no socket file can be had there is one, with a store of its own.
"""

import asyncio
import secrets
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.routing import Mount, Router

from gateway import options
from gateway.app import Gateway
from gateway.auth.loading import signed_cookie
from gateway.config import settings
from gateway.config.presets import Preset
from gateway.config.settings import Settings
from gateway.config.user_limits import NONE, UserLimits
from gateway.demo.front import Front
from gateway.demo.page import page
from gateway.demo.plain import plain
from gateway.demo.replicas import Replicas
from gateway.demo.upstream import UpstreamOptions, upstream
from gateway.serve import workers
from gateway.serve.server import run, terms_of
from gateway.serve.sockets import url_of
from gateway.store.embedded import served_at

KEPT = "kept"  # The preset of an upstream that keeps its answers.

_LIMITS = UserLimits(posts_per_minute=30, tokens_per_day=100_000)  # What is left is shown.
_LEASE = 3.0  # Seconds until a replica that was killed is missed: somebody watches.


@dataclass(frozen=True)
class Told:
    """What all processes of one demonstration are told."""

    asked: dict[str, Any]  # As options.
    pretend: str  # Where the pretend upstream is.
    redis_url: str = ""

    @property
    def chat(self) -> str:
        """The URL of the pretend upstream's chat completions."""
        return f"{self.pretend}/v1/chat/completions"

    def settings(self, before: Settings | None = None) -> Settings:
        """Return the settings that are asked for, and what the demo adds; raises SettingsError."""
        return self.completed(settings.load(self.asked, before))

    def completed(self, loaded: Settings) -> Settings:
        """Return settings with what the demo adds."""
        more: dict[str, Any] = {}
        if self.own(loaded):
            kept = {"protocol": "responses", "url": f"{self.pretend}/v1/responses"}
            more["presets"] = {KEPT: Preset.model_validate({**kept, "background": True})}
        if loaded.limits == NONE:
            more["limits"] = _LIMITS
        if "lease" not in loaded.model_fields_set:
            more["lease"] = _LEASE
        if loaded.embedded:
            more["redis_url"] = self.redis_url
        return loaded.model_copy(update=more)

    def own(self, loaded: Settings) -> bool:
        """Whether what is asked is the demo's own upstream."""
        return loaded.upstream_url == self.chat and set(loaded.presets) <= {KEPT}


def demonstrate(flags: Mapping[str, Any], listener: socket.socket, interval: float) -> None:
    """Run it on a bound socket until a signal; raises SettingsError."""
    here = url_of(listener)
    given = {name: value for name, value in flags.items() if value is not None}
    told = Told({}, f"{here}/pretend")
    made_up = {
        "secrets": secrets.token_urlsafe(32),
        "service_tokens": secrets.token_urlsafe(32),
        "upstream_url": told.chat,
    }
    told = replace(told, asked={"log_level": "warning", **made_up, **given})
    loaded = told.completed(options.load(told.asked))
    Gateway(loaded)  # A wrong setting is to be said once, not by every replica.
    demo = _Demonstration(told, loaded, UpstreamOptions(interval=interval, script="prompt"))
    if loaded.config:
        workers.outlive_terminal()  # Before a replica begins, which has no handler yet either.
    run(
        demo.app,
        listener,
        level=loaded.log_level,
        ready=f"The demo is at {here}  (Ctrl+C ends it)",
        terms=terms_of(loaded),
        drain=demo.drain,
        # Without a file there is nothing to reload, and it ends with its terminal.
        reload=demo.reload if loaded.config else None,
    )


class _Demonstration:
    """The parts, which live as long as the server does."""

    def __init__(self, told: Told, loaded: Settings, pretending: UpstreamOptions) -> None:
        sessions = signed_cookie(loaded)
        self._told = told
        self._loaded = loaded
        self._replicas = Replicas(loaded.drain)
        token = loaded.service_tokens[0].get_secret_value()
        self._front = Front(self._replicas, sessions, token, loaded.prefix)
        own = told.own(loaded)
        routes = page(sessions, self._front, loaded.prefix, preset=KEPT if own else "")
        routes.append(Mount("/pretend", upstream(pretending)))
        self.app = Router(
            routes,
            default=self._front,
            redirect_slashes=False,
            lifespan=self._running,
        )

    async def drain(self) -> None:
        """Let the replicas send their viewers away, finish what runs, and end."""
        await self._replicas.stop()

    async def reload(self) -> None:
        """Have every replica read the presets again."""
        self._replicas.send(signal.SIGHUP)

    @asynccontextmanager
    async def _running(self, _: object) -> AsyncGenerator[None]:
        async with self._store() as url:
            told = replace(self._told, redis_url=url)
            shared = bool(url or self._loaded.redis_url)
            await self._replicas.start(partial(replica, told), 2 if shared else 1)
            try:
                yield
            finally:
                await self._replicas.stop()
                await self._front.close()

    @asynccontextmanager
    async def _store(self) -> AsyncGenerator[str]:
        """Yield the URL of a store for all replicas, "" where there is one already, or none."""
        if self._loaded.redis_url or not hasattr(asyncio, "start_unix_server"):
            yield ""
            return
        with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
            async with served_at(Path(folder) / "store") as url:
                yield url


def replica(told: Told, listener: socket.socket) -> None:
    """Serve as one of the replicas, with the plain loop's half of a server beside it."""
    loaded = told.settings()
    options.log_as(loaded)
    gateway = Gateway(loaded)
    beside = [plain(told.chat)] if told.own(loaded) else []
    run(
        gateway.served(*beside),
        listener,
        level=loaded.log_level,
        ready="",
        terms=terms_of(loaded),
        drain=gateway.drain,
        reload=partial(gateway.presets.reload, told.settings) if loaded.config else None,
    )

"""The application: builds every part from the settings, starts and stops them. Decides nothing."""

import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth.loading import authenticator
from gateway.auth.tickets import Tickets
from gateway.config import settings as settings_
from gateway.config.preset_book import PresetBook
from gateway.config.settings import Settings
from gateway.errors import SettingsError
from gateway.eventlog.fanout import Fanout
from gateway.limits.subjects import Most
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.intake import RunLimits
from gateway.runs.records import Records
from gateway.runs.source import RecordSource
from gateway.runs.supervisor import RunSupervisor
from gateway.store.client import RedisClient
from gateway.store.keys import new_id
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from gateway.upstream.client import Upstream
from gateway.web.routes import Routes

logger = logging.getLogger("gateway")


class Front:
    """The way to our own URLs past the router, whose frames every open stream would keep."""

    def __init__(self, app: ASGIApp, exact: dict[str, ASGIApp]) -> None:
        self._app = app
        self._exact = exact

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the answer's coroutine: another `async` would be another frame."""
        return self._exact.get(scope.get("path", ""), self._app)(scope, receive, send)


class Gateway:
    """One replica: `app` is the ASGI application, whose lifespan is `running`."""

    def __init__(
        self,
        settings: Settings,
        upstream: Upstream | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        if not settings.secrets:
            raise SettingsError("GATEWAY_SECRETS: missing; a long random string, the same on all")
        self.settings = settings
        self.presets = PresetBook(settings)
        self.tickets = Tickets([secret.get_secret_value() for secret in settings.secrets])
        self.store = RedisClient(settings.redis_url)
        self.name = new_id()
        self.records = Records(
            self.store,
            self.name,
            start_by=settings.start_by,
            log_ttl=settings.log_ttl,
            max_run=lambda: self.presets.longest_run,
            lease=settings.lease,
            most=Most(
                settings.subject_bytes,
                settings.subject_streams,
                settings.subject_viewers,
                settings.store_share,
            ),
        )
        self.fanout = Fanout(
            self.store,
            RecordSource(self.records),
            grace=lambda: self.presets.shortest_grace,  # The soonest that an owner may miss them.
            heartbeat=settings.heartbeat,
            write_timeout=settings.write_timeout,
            replay_bytes=settings.replay_bytes,
            telemetry=telemetry,
        )
        self.upstream = upstream or Upstream()
        self.supervisor = RunSupervisor(
            self.records,
            Heartbeat(self.store, self.name, settings.lease),
            self.fanout,
            self.upstream,
            self.presets.get,
            RunLimits(settings.max_event, settings.max_log, settings.max_streams),
            self._sweep_interval,
            telemetry=telemetry,
        )
        self.routes = Routes(
            self.presets,
            self.tickets,
            self.records,
            self.fanout,
            self.supervisor,
            authenticator(settings),
            telemetry,
        )
        self.app = self.with_routes([])

    def _sweep_interval(self) -> float:
        """Return a quarter of the shortest time that the sweep has to keep, within bounds."""
        given = self.settings
        shortest = min(self.presets.shortest_wait, given.heartbeat, given.write_timeout)
        return min(1.0, max(0.05, shortest / 4))

    def with_routes(self, more: Sequence[BaseRoute]) -> Router:
        """Return the application with further URLs."""
        return Router(
            [*self.routes.all(), *more],
            default=self.routes.fallback(),
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    def served(self, *more: BaseRoute) -> ASGIApp:
        """Return the same for a server that asks for nothing else of it."""
        return Front(self.with_routes(more), self.routes.exact())

    def cut(self, ticket: str) -> int:
        """Cut off the viewers of a ticket's stream, as a bad line would; return how many.

        Raises Rejected if it is no ticket.
        """
        tail = self.fanout.get(self.tickets.verify(ticket).stream_id)
        return tail.drop() if tail else 0

    async def drain(self) -> None:
        """Send viewers away and let runs finish, for as long as the settings say."""
        logger.info("draining %d run(s)", len(self.supervisor.active))
        await self.supervisor.drain(self.settings.drain)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the replica; at the end runs are drained, unless the server has done so before."""
        self.supervisor.start()
        try:
            yield
        finally:
            if not self.supervisor.draining:
                await self.supervisor.drain(self.settings.drain)
            await self.supervisor.stop()
            await self.fanout.stop()
            await self.upstream.close()
            await self.store.close()

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        async with self.running():
            yield


def create() -> Router:
    """Return the application for another server: `uvicorn --factory gateway.app:create`."""
    return Gateway(settings_.load({})).app

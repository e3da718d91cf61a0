"""The application: builds every part from the settings, starts and stops them. Decides nothing."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import date
from typing import Any

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth.loading import authenticators, given
from gateway.auth.tickets import Tickets
from gateway.channels.message import Message, text_of
from gateway.channels.source import ChannelSource, Sources
from gateway.config import settings as settings_
from gateway.config.preset_book import PresetBook
from gateway.config.settings import Settings
from gateway.errors import SettingsError
from gateway.eventlog.fanout import Fanout
from gateway.limits.statement import Statement
from gateway.limits.subjects import Most
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.intake import RunLimits
from gateway.runs.records import Records
from gateway.runs.source import RecordSource
from gateway.runs.supervisor import RunSupervisor
from gateway.serve.signals import heard
from gateway.store.client import RedisClient
from gateway.store.keys import channel_id, new_id
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from gateway.upstream.client import Upstream
from gateway.web.mount import placed
from gateway.web.requests import checked_key, checked_ref, written
from gateway.web.routes import Routes
from gateway.web.tickets import Issued
from gateway.web.users import named

logger = logging.getLogger("gateway")


class Front:
    """The way to our own URLs past the router, whose frames every open stream would keep."""

    def __init__(self, app: ASGIApp, exact: dict[str, ASGIApp]) -> None:
        self._app = app
        self._exact = exact

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the answer's coroutine: another `async` would be another frame."""
        return self._exact.get(scope.get("path", ""), self._app)(scope, receive, send)


class Application:
    """What an application mounts, or a server runs: it stays, its parts live for one lifespan."""

    def __init__(self, router: Callable[[], ASGIApp]) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http":
            scope = placed(scope)
        await self._router()(scope, receive, send)


Subject = str | int | None
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
Authenticate = Callable[[Mapping[str, str], Mapping[str, str]], Subject | Awaitable[Subject]]


class Gateway:
    """One replica: `app` is the ASGI application, which answers while `lifespan` runs.

    `authenticate` gets a request's headers and cookies and returns its subject, None for nobody; it
    takes the place of what the settings say. Without `logs_out` nobody but who has a service token
    asks for a user's streams, and where nothing else has them counted, nobody counts them.
    """

    def __init__(
        self,
        settings: Settings,
        upstream: Upstream | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
        *,
        authenticate: Authenticate | None = None,
        logs_out: bool = True,
    ) -> None:
        if not settings.secrets:
            raise SettingsError("GATEWAY_SECRETS: missing; a long random string, the same on all")
        self.settings = settings
        self._given = upstream
        self._telemetry = telemetry
        self._authenticate = authenticate
        self._logs_out = logs_out or bool(settings.service_tokens)
        self._path = ""  # Where an application has it, as far as that can be seen.
        self._assemble()
        self.app = Application(lambda: self._router)

    def _assemble(self) -> None:
        """Make the parts, which live as long as one lifespan does."""
        settings, telemetry = self.settings, self._telemetry
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
                self._logs_out,
            ),
            bounds=self.presets.bounds,
        )
        self.fanout = Fanout(
            self.store,
            Sources(RecordSource(self.records), ChannelSource(self.store, self.name)),
            grace=lambda: self.presets.shortest_grace,  # The soonest that an owner may miss them.
            heartbeat=settings.heartbeat,
            write_timeout=settings.write_timeout,
            replay_bytes=settings.replay_bytes,
            telemetry=telemetry,
        )
        self.upstream = self._given or Upstream()
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
        ask = self._authenticate
        self.authenticators = given(ask) if ask else authenticators(settings)
        self.routes = Routes(
            self.presets,
            self.tickets,
            self.records,
            self.fanout,
            self.supervisor,
            self.authenticators,
            telemetry,
        )
        self._router = self.with_routes([])

    def _sweep_interval(self) -> float:
        """Return a quarter of the shortest time that the sweep has to keep, within bounds."""
        given = self.settings
        shortest = min(self.presets.shortest_wait, given.heartbeat, given.write_timeout)
        return min(1.0, max(0.05, shortest / 4))

    def with_routes(self, more: Sequence[BaseRoute]) -> Router:
        """Return the application with further URLs."""
        return self._joined(more, self.lifespan)

    def served(self, *more: BaseRoute) -> ASGIApp:
        """Return the same for our own server, which drains before it ends the lifespan."""
        return Front(self._joined(more, lambda _: self.running()), self.routes.exact())

    def _joined(self, more: Sequence[BaseRoute], lifespan: Lifespan) -> Router:
        urls = [*self.routes.all(), *more]
        nowhere = self.routes.fallback()
        return Router(urls, default=nowhere, redirect_slashes=False, lifespan=lifespan)

    def cut(self, ticket: str) -> int:
        """Cut off the viewers of a ticket's stream, as a bad line would; return how many.

        Raises Rejected if it is no ticket.
        """
        return self._dropped(self.tickets.verify(ticket).stream_id)

    def cut_channel(self, subject: str) -> int:
        """Cut off the viewers of a user's channel, with all that they watch on that connection."""
        return self._dropped(channel_id(subject))

    def _dropped(self, log_id: str) -> int:
        tail = self.fanout.get(log_id)
        return tail.drop() if tail else 0

    async def ticket(
        self,
        subject: str | int,
        body: Mapping[str, Any],
        preset: str = "default",
        *,
        idempotency_key: str | None = None,
        ref: str = "",
    ) -> Issued:
        """Store a completion request on behalf of a user, and return the ticket of its stream.

        It does what `POST /users/{subject}/tickets` does. Raises Rejected and Unavailable, whose
        `code` is the URL's; its `stream_url` has the path that `lifespan` or the settings tell.
        """
        self.routes.life.check()
        key = "" if idempotency_key is None else checked_key(idempotency_key)
        issue = self.routes.tickets.issue
        told = {"key": key, "ref": checked_ref(ref)}
        return await issue(named(subject), preset, written(body), self._path, **told)

    async def push(
        self,
        subject: str | int,
        event: str | None,
        data: Any,
        *,
        message_id: str | None = None,
        ttl: float | None = None,
    ) -> str:
        """Store a message in a user's channel, and return its id; `data` is a string, or JSON.

        It does what `POST /users/{subject}/events` does. Raises Rejected and Unavailable, whose
        `code` is the URL's.
        """
        self.routes.life.check()
        publisher = self.routes.publisher
        message = Message.of(event, text_of(data), message_id, ttl, publisher.bounds)
        return await publisher.push(named(subject), message)

    async def log_out(self, subject: str | int) -> int:
        """Cancel all streams of a user on all replicas, and return how many; raises Unavailable."""
        self.routes.life.check()
        if not self.records.limits.counted:
            raise SettingsError("GATEWAY_SUBJECT_BYTES: 0, so no user's streams are known")
        return await self.supervisor.logout.of(named(subject))

    async def usage(
        self, subject: str | int, first: date | None = None, last: date | None = None
    ) -> Statement:
        """Return what a user has spent, on these days or today, and what is left of the limits.

        It is what `GET /users/{subject}/usage` tells. Raises Rejected and Unavailable.
        """
        self.routes.life.check()
        return await self.routes.statements.of(named(subject), first, last)

    async def drain(self) -> None:
        """Send viewers away and let runs finish, for as long as the settings say."""
        logger.info("draining %d run(s)", len(self.supervisor.active))
        await self.supervisor.drain(self.settings.drain)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Run the replica in an application, whose lifespan runs this in its own.

        Its end drains the runs; viewers are sent away as soon as the process is told to end.
        """
        self._path = path_in(app, self.app)
        async with self.running():
            with heard(self.supervisor.send_away):
                yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the replica; at the end runs are drained, unless the server has done so before."""
        if self.supervisor.started:
            if not self.supervisor.stopped:
                raise RuntimeError("the gateway runs already: two lifespans have it")
            self._assemble()
        supervisor = self.supervisor
        supervisor.start()
        try:
            yield
        finally:
            if not supervisor.drained:
                await supervisor.drain(self.settings.drain)
            await supervisor.stop()
            await self.fanout.stop()
            await self.authenticators.close()
            await self.upstream.close()
            await self.store.close()


def path_in(app: object, ours: ASGIApp) -> str:
    """Return the path under which an application has ours mounted, "" if it does not show it."""
    for route in getattr(app, "routes", None) or ():
        handler = getattr(route, "route_handler", None)  # Litestar's.
        inner = getattr(handler, "fn", getattr(route, "app", None))
        path = str(getattr(route, "path", ""))
        if inner is ours:
            return path
        if found := path_in(inner, ours):
            return path + found
    return ""


def create() -> ASGIApp:
    """Return the application for another server: `uvicorn --factory gateway.app:create`."""
    return Gateway(settings_.load({})).app

"""Routes: every URL of the gateway, and what each checks before it does anything.

The order is the same everywhere: the page's origin, the caller's cookie, the request's form, the
ticket, the record. Only then is anything stored or started.
"""

import json
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gateway.auth.base import Authenticator
from gateway.auth.tickets import Ticket, Tickets
from gateway.config.presets import Preset
from gateway.config.settings import Settings
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.runs.endings import state_of
from gateway.runs.records import Created, Records
from gateway.runs.redemption import NothingMore
from gateway.runs.rehearsal import can_store
from gateway.runs.repeats import Repeats, asked
from gateway.runs.snapshot import CompletionSnapshots
from gateway.runs.supervisor import RunSupervisor
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from gateway.web.body import Asked
from gateway.web.endpoint import AnyResponse, Call, Methods
from gateway.web.event_stream import EventStream
from gateway.web.mount import Mount
from gateway.web.origins import Origins
from gateway.web.requests import (
    accepts,
    body_of,
    cookies_of,
    idempotency_key,
    idempotent_stream_id,
    last_event_id,
)
from gateway.web.responses import LongReply, Retry, issued, nothing_more, reply


class Routes:
    """The HTTP contract of DESIGN §3 over the parts below it."""

    def __init__(
        self,
        settings: Settings,
        tickets: Tickets,
        records: Records,
        fanout: Fanout,
        supervisor: RunSupervisor,
        authenticator: Authenticator,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.origins = Origins(settings.allowed_origins, settings.public_url)
        self.retry = Retry(settings.shortest_grace)
        self._supervisor = supervisor
        self._redemption = supervisor.redemption
        self._cancellation = supervisor.cancellation
        self._tickets = tickets
        self._mount = Mount(settings.public_url, settings.prefix)
        self._repeats = Repeats(records)
        self._settings = settings
        self._records = records
        self._fanout = fanout
        self._answers = CompletionSnapshots(records.store, fanout, settings.replay_bytes // 2)
        self._authenticator = authenticator
        self._telemetry = telemetry

    def exact(self) -> dict[str, ASGIApp]:
        """Return the URLs without a parameter."""
        own = {
            "/tickets": self._methods(POST=self.create),
            "/stream": self._methods(GET=self.stream, DELETE=self.cancel),
            "/stream/cancel": self._methods(POST=self.cancel),
            "/completion": self._methods(GET=self.completion),
            "/healthz": self._methods(GET=self.alive, HEAD=self.alive),
            "/readyz": self._methods(GET=self.ready, HEAD=self.ready),
        }
        return {path: own[each] for each in own for path in self._mount.paths(each)}

    def all(self) -> list[BaseRoute]:
        """Return every URL."""
        exact = [Route(path, methods) for path, methods in self.exact().items()]
        named = self._methods(POST=self.create)
        paths = self._mount.paths("/tickets/{preset}")
        return [*exact, *(Route(path, named) for path in paths)]

    def fallback(self) -> ASGIApp:
        """Return the answer to every other URL."""

        async def nowhere(request: Request) -> NoReturn:
            raise Rejected("not_found")

        methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        return self._methods(**dict.fromkeys(methods, nowhere))

    def _methods(self, **calls: Call) -> ASGIApp:
        return Methods(
            self.origins, self.retry, lambda: self._supervisor.draining, self._telemetry, **calls
        )

    # Tickets

    async def create(self, request: Request) -> AnyResponse:
        """POST /tickets: cache a request and return its ticket, or the stream itself."""
        self.origins.check(request.headers)
        subject = await self._subject(request)
        name = request.path_params.get("preset", "default")
        preset = self._preset(name)
        at_once = accepts(request)[0]
        if at_once and self._supervisor.draining:
            raise Unavailable("draining")
        key = idempotency_key(request)
        position = EventId.parse(last_event_id(request)) if at_once else None
        if at_once and position is None:
            self._records.limits.check(subject, claims=not key)
        made = (await body_of(request, self._settings.max_body)).made(preset)
        stream_id = idempotent_stream_id(subject, name, key) if key else self._records.new_stream()
        if position is not None:
            request_name = asked(subject, name, made.digest)
            begun = stream_id if key else await self._repeats.find(request_name, position)
            return await self._repeat(request, begun, subject, made.digest)
        if key:
            created = await self._keyed(stream_id, subject, name, made)
        elif at_once:
            created = await self._begun(request, stream_id, subject, name, made)
        else:
            created = await self._records.create(stream_id, subject, name, *made)
        if created.digest != made.digest:
            raise Rejected("idempotency_mismatch", "Take a new key for a new request.")
        ticket = self._tickets.issue(stream_id, subject, created.issued)
        url = self._stream_url(request, ticket)
        if at_once:
            if key and await request.is_disconnected():  # Without one it was looked at before.
                raise ClientDisconnect  # Nobody else could find what would be paid for.
            return await self._open_at(url, request, self._tickets.verify(ticket), subject)
        return issued(ticket, url, created)

    async def _keyed(self, stream_id: str, subject: str, preset: str, made: Asked) -> Created:
        """Store a request, or find what its key has begun: that needs no room."""
        try:
            return await self._records.create(stream_id, subject, preset, *made)
        except Unavailable as error:
            known = await self._records.created(stream_id) if error.of_room else None
            if known is None:
                raise
            return known

    async def _begun(
        self, request: Request, stream_id: str, subject: str, preset: str, made: Asked
    ) -> Created:
        """Store a request that begins at once, so that a repeat of it finds the stream."""
        name = asked(subject, preset, made.digest)
        more = await self._repeats.remember(name, stream_id)
        try:
            created = await self._records.create(stream_id, subject, preset, *made, more)
            if await request.is_disconnected():
                raise ClientDisconnect
            return created
        except (Unavailable, ClientDisconnect):
            await self._repeats.forget(name, stream_id)
            raise

    async def _repeat(self, request: Request, begun: str, subject: str, digest: str) -> AnyResponse:
        """Go on with the stream that a request has begun; never begin another."""
        record = await self._redemption.of_repeat(begun, digest)
        ticket = self._tickets.issue(begun, subject, record.issued)
        url = self._stream_url(request, ticket)
        return await self._open_at(url, request, self._tickets.verify(ticket), subject)

    def _stream_url(self, request: Request, ticket: str) -> str:
        return self._mount.url(request.scope.get("root_path", ""), f"/stream?ticket={ticket}")

    async def _open_at(
        self, url: str, request: Request, ticket: Ticket, subject: str
    ) -> AnyResponse:
        """Open a stream for a caller who does not know its URL yet."""
        try:
            answer = await self._open(request, ticket, subject)
        except Unavailable as error:  # Its claim may go on, and be paid for: it must be found.
            error.headers["Content-Location"] = url
            raise
        answer.raw_headers.append((b"content-location", url.encode()))
        return answer

    # Streams

    async def stream(self, request: Request) -> AnyResponse:
        """GET /stream: redeem a ticket, or go on with its stream."""
        self.origins.check_stream(request.headers)
        subject = await self._subject(request)
        if not accepts(request)[1]:
            raise Rejected("not_acceptable", "Send Accept: text/event-stream.")
        return await self._open(request, self._ticket(request), subject)

    async def _open(self, request: Request, ticket: Ticket, subject: str) -> AnyResponse:
        opened = await self._redemption.open(ticket, subject, last_event_id(request))
        if isinstance(opened, NothingMore):
            return nothing_more()
        text = request.query_params.get("format") == "text"
        return EventStream(self._fanout, opened, self.retry.line(), text=text)

    async def cancel(self, request: Request) -> AnyResponse:
        """DELETE /stream, POST /stream/cancel: stop it, for all viewers."""
        self.origins.check(request.headers)
        subject = await self._subject(request)
        record = await self._redemption.record(self._ticket(request), subject)
        return reply({"state": await self._cancellation.cancel(record)})

    async def completion(self, request: Request) -> AnyResponse:
        """GET /completion: the answer so far, as one object."""
        self.origins.check(request.headers)
        subject = await self._subject(request)
        record = await self._redemption.record(self._ticket(request), subject)
        answer = await self._answers.of(record)
        result = json.loads(record.result) if record.result else {}
        data = {
            "state": state_of(record, answer.last_id is not None),
            "finish_reason": result.get("finish_reason", answer.completion.finish_reason),
            "usage": result.get("usage", answer.completion.usage),
            "last_event_id": answer.last_id,
            "attempts": result.get("attempts", record.attempts),
        }
        return LongReply(data, "text", answer.text, self._settings.write_timeout)

    # Health

    async def alive(self, request: Request) -> AnyResponse:
        """GET /healthz: the process answers."""
        return reply({"status": "ok"})

    async def ready(self, request: Request) -> AnyResponse:
        """GET /readyz: able to serve."""
        if self._supervisor.draining:
            raise Unavailable("draining")
        await can_store(self._records)
        return reply({"status": "ready"})

    # Checks

    async def _subject(self, request: Request) -> str:
        subject = await self._authenticator.subject(request.headers, cookies_of(request))
        if subject is None:
            raise Rejected("not_authenticated", "Log in, then try again.")
        return subject

    def _preset(self, name: str) -> Preset:
        preset = self._settings.preset(name)
        if preset is None:
            raise Rejected("preset_not_found")
        return preset

    def _ticket(self, request: Request) -> Ticket:
        return self._tickets.verify(request.query_params.get("ticket", ""))

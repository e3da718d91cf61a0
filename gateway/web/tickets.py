"""Tickets: a completion request is stored, and its ticket given; or its stream, at once.

What a caller sends again must begin nothing anew: a key names the stream, and a `Last-Event-ID` one
that the same request has begun.
"""

from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request

from gateway.auth.tickets import Ticket, Tickets
from gateway.config.preset_book import PresetBook
from gateway.config.presets import Preset
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.runs.record import Created, dialect_fields
from gateway.runs.records import Records
from gateway.runs.redemption import Redemption
from gateway.runs.repeats import Repeats, asked
from gateway.upstream.protocols.demand import expected
from gateway.upstream.request_body import PreparedRequest, RequestBody
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.life import Life
from gateway.web.mount import Mount
from gateway.web.requests import (
    accepts,
    body_of,
    form_of,
    idempotency_key,
    idempotent_stream_id,
    last_event_id,
    stream_ref,
    too_large,
)
from gateway.web.responses import issued, left_headers
from gateway.web.streams import StreamEndpoints
from gateway.webhooks.message import receiver_of


class Issued(NamedTuple):
    """A ticket, where its stream is, and the seconds in which it has to be redeemed."""

    ticket: str
    stream_url: str
    expires_in: int


class TicketEndpoints:
    """Where completions are asked for."""

    def __init__(
        self,
        presets: PresetBook,
        guards: Guards,
        tickets: Tickets,
        records: Records,
        redemption: Redemption,
        streams: StreamEndpoints,
        life: Life,
    ) -> None:
        settings = presets.settings
        self._presets = presets
        self._max_body = settings.max_body
        self._mount = Mount(settings.public_url, settings.prefix)
        self._guards = guards
        self._tickets = tickets
        self._records = records
        self._limits = records.limits
        self._repeats = Repeats(records)
        self._redemption = redemption
        self._streams = streams
        self._life = life

    async def create(self, request: Request) -> AnyResponse:
        """POST /tickets: cache a request and return its ticket, or the stream itself."""
        subject = await self._guards.caller(request)
        return await self.answer(request, subject)

    async def answer(
        self, request: Request, subject: str, *, on_behalf: bool = False
    ) -> AnyResponse:
        """Answer a POST of a subject's, or `on_behalf` of it: then any preset may be asked."""
        name = request.path_params.get("preset", "default")
        preset = self._preset(name, on_behalf)
        at_once = accepts(request)[0]
        if at_once:
            self._life.check_stays()
            form_of(request)
        key = idempotency_key(request)
        position = EventId.parse(last_event_id(request)) if at_once else None
        if at_once and position is None:
            self._limits.check(subject, claims=not key)
        ref = stream_ref(request)
        body = await body_of(request, self._max_body)
        made = self._made(name, preset, body, ref)
        stream_id = idempotent_stream_id(subject, name, key) if key else self._records.new_stream()
        if position is not None:
            request_name = asked(subject, name, made.digest)
            begun = stream_id if key else await self._repeats.find(request_name, position)
            return await self._repeat(request, begun, subject, made.digest)
        if at_once and not key:
            created = await self._begun(request, stream_id, subject, name, made)
        else:
            created = await self._created(stream_id, subject, name, made, known=bool(key))
        ticket = self._tickets.issue(stream_id, subject, created.issued)
        url = self._stream_url(request.scope.get("root_path", ""), ticket)
        if at_once:
            if key and await request.is_disconnected():  # Without one it was looked at before.
                raise ClientDisconnect  # Nobody else could find what would be paid for.
            opened = await self._open_at(url, request, self._tickets.verify(ticket), subject)
            left = left_headers(created, self._presets.bounds(name))
            opened.raw_headers += [(each.lower().encode(), left[each].encode()) for each in left]
            return opened
        return issued(ticket, url, created, self._presets.bounds(name))

    async def issue(
        self, subject: str, name: str, data: bytes, root_path: str, *, key: str, ref: str
    ) -> Issued:
        """Return the ticket of a request that the application itself makes; raises GatewayError."""
        preset = self._preset(name, on_behalf=True)
        if len(data) > self._max_body:
            raise too_large(self._max_body)
        body = RequestBody(data)
        made = self._made(name, preset, body, ref)
        stream_id = idempotent_stream_id(subject, name, key) if key else self._records.new_stream()
        created = await self._created(stream_id, subject, name, made, known=bool(key))
        ticket = self._tickets.issue(stream_id, subject, created.issued)
        return Issued(ticket, self._stream_url(root_path, ticket), created.seconds_left)

    def _made(self, name: str, preset: Preset, body: RequestBody, ref: str) -> PreparedRequest:
        """Return what is sent for a page's request, and what its record says beside it."""
        made, more = body.made(preset), dialect_fields(preset.dialect)
        if ref:
            more["ref"] = ref
        if preset.webhook:
            more["webhook"] = receiver_of(name, preset.webhook)
        if preset.fallback:
            more["body"] = body.data
        if self._presets.bounds(name).of_spending:
            more["estimate"] = " ".join(map(str, expected(preset, made.text)))
        return made._replace(more=more)

    async def _created(
        self, stream_id: str, subject: str, preset: str, made: PreparedRequest, *, known: bool
    ) -> Created:
        """Store a request; raises Rejected where its key, if it is `known` by one, has another."""
        if not known:
            return await self._records.create(stream_id, subject, preset, *made)
        created = await self._keyed(stream_id, subject, preset, made)
        if created.digest != made.digest:
            raise Rejected("idempotency_mismatch", "Take a new key for a new request.")
        return created

    async def _keyed(
        self, stream_id: str, subject: str, preset: str, made: PreparedRequest
    ) -> Created:
        """Store a request, or find what its key has begun: that needs no room."""
        try:
            return await self._records.create(stream_id, subject, preset, *made)
        except Unavailable as error:
            known = await self._records.created(stream_id) if error.of_room else None
            if known is None:
                raise
            return known

    async def _begun(
        self, request: Request, stream_id: str, subject: str, preset: str, made: PreparedRequest
    ) -> Created:
        """Store a request that begins at once, so that a repeat of it finds the stream."""
        name = asked(subject, preset, made.digest)
        more = {**made.more, **await self._repeats.remember(name, stream_id)}
        try:
            created = await self._records.create(stream_id, subject, preset, *made[:2], more)
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
        url = self._stream_url(request.scope.get("root_path", ""), ticket)
        return await self._open_at(url, request, self._tickets.verify(ticket), subject)

    def _stream_url(self, root_path: str, ticket: str) -> str:
        return self._mount.url(root_path, f"/stream?ticket={ticket}")

    async def _open_at(
        self, url: str, request: Request, ticket: Ticket, subject: str
    ) -> AnyResponse:
        """Open a stream for a caller who does not know its URL yet."""
        try:
            answer = await self._streams.open(request, ticket, subject)
        except Unavailable as error:  # Its claim may go on, and be paid for: it must be found.
            error.headers["Content-Location"] = url
            raise
        answer.raw_headers.append((b"content-location", url.encode()))
        return answer

    def _preset(self, name: str, on_behalf: bool) -> Preset:
        preset = self._presets.get(name)
        if preset is None or not (preset.public or on_behalf):
            raise Rejected("preset_not_found")
        return preset

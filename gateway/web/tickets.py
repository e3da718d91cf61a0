"""Tickets: a completion request is stored, and its ticket given; or its stream, at once.

What a caller sends again must begin nothing anew: a key names the stream, and a `Last-Event-ID` one
that the same request has begun.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request

from gateway.auth.tickets import Ticket, Tickets
from gateway.config.preset_book import PresetBook
from gateway.config.presets import Preset
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.runs.record import Created, Record, dialect_fields
from gateway.runs.records import Records
from gateway.runs.redemption import Redemption
from gateway.runs.repeats import Repeats, asked
from gateway.upstream.protocols.demand import expected
from gateway.upstream.protocols.problems import asked_nobody
from gateway.upstream.request_body import PreparedRequest, RequestBody
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.life import Life
from gateway.web.mount import Mount
from gateway.web.requests import (
    accepts,
    body_of,
    idempotency_key,
    idempotent_stream_id,
    is_retry,
    last_event_id,
    stream_ref,
    too_large,
    view_of,
)
from gateway.web.responses import as_raw, issued, left_headers
from gateway.web.streams import StreamEndpoints
from gateway.webhooks.message import receiver_of

_FIRST_TRY = 15 * 60_000  # Milliseconds: SDKs wait for ten minutes.
_REFUSALS = 16  # Of one key; then the last of them stands. An SDK sends a request three times.


class Issued(NamedTuple):
    """A ticket, where its stream is, and the seconds in which it has to be redeemed."""

    ticket: str
    stream_url: str
    expires_in: int


class Begun(NamedTuple):
    """A stream that an SDK's request has begun, or begins with who opens it."""

    stream_id: str
    ticket: str
    repeat: str  # By which the SDK's own repeats find it, "" where a key does.
    left: dict[str, str]  # Headers that tell what is left of the caller's limits.


class Naming(NamedTuple):
    """By what the stream of a request without a key is found, and which one it is."""

    request: str
    stream: Callable[[str], str]  # Of the digest.
    runs: str  # One that runs, and may be it; "" for none.


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
        preset = self.preset(name, on_behalf)
        at_once = accepts(request)[0]
        if at_once:
            self._life.check_stays()
            view_of(request)
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
            repeat = asked(subject, name, made.digest)
            created = await self._begun(request, stream_id, subject, name, made, repeat)
        else:
            created = await self._created(stream_id, subject, name, made, known=bool(key))
        ticket = self._tickets.issue(stream_id, subject, created.issued)
        url = self._stream_url(request.scope.get("root_path", ""), ticket)
        if at_once:
            if key and await request.is_disconnected():  # Without one it was looked at before.
                raise ClientDisconnect  # Nobody else could find what would be paid for.
            opened = await self._open_at(url, request, self._tickets.verify(ticket), subject)
            opened.raw_headers += as_raw(left_headers(created, self._presets.bounds(name)))
            return opened
        return issued(ticket, url, created, self._presets.bounds(name))

    async def begin(
        self,
        request: Request,
        subject: str,
        name: str,
        preset: Preset,
        body: RequestBody,
        naming: Naming | None = None,
    ) -> Begun:
        """Store a request that begins at once; or find what its key, or its first try, has begun.

        SDKs send a request again by themselves, without a key, and say so.
        """
        self._life.check_stays()
        key, again = idempotency_key(request), is_retry(request)
        self._limits.check(subject, claims=not (key or again or naming))
        made = self._made(name, preset, body, stream_ref(request))
        repeat = "" if key or naming else asked(subject, f"sdk {name}", made.digest)
        if again and repeat and (first := await self._first_try(repeat)):
            ticket = self._tickets.issue(first.stream_id, subject, first.issued)
            return Begun(first.stream_id, ticket, repeat, {})
        if naming:
            made = made._replace(more={**made.more, "asked": naming.request})
        if key:
            stream_id, created = await self._of_key(key, subject, name, made)
        elif naming:
            stream_id = naming.stream(made.digest)
            if stream_id != naming.runs:  # Before it takes that one's place.
                self._limits.check_streams(subject)
            created = await self._created(stream_id, subject, name, made, known=True)
        else:
            stream_id = self._records.new_stream()
            created = await self._begun(request, stream_id, subject, name, made, repeat)
        if naming:  # Before it is claimed: what was paid for is found.
            await self._repeats.remember(naming.request, stream_id)
        ticket = self._tickets.issue(stream_id, subject, created.issued)
        return Begun(stream_id, ticket, repeat, left_headers(created, self._presets.bounds(name)))

    async def _first_try(self, repeat: str) -> Record | None:
        """Return what a request has begun that is sent again, unless nobody was asked for it."""
        stream_id = await self._repeats.latest(repeat)
        record = await self._records.read(stream_id) if stream_id else None
        if record is None:
            if stream_id and await self._records.may_be_forgotten(stream_id, 0):
                raise Unavailable("not_yet")
            return None
        late = record.expired or record.now - record.issued > _FIRST_TRY
        return None if late or _asked_nobody(record) else record

    async def _of_key(
        self, key: str, subject: str, name: str, made: PreparedRequest
    ) -> tuple[str, Created]:
        """Store a request, or find what its key has begun, but for streams that asked nobody.

        An SDK that is told of a 429 sends its request again, with the same key.
        """
        for number in range(_REFUSALS):
            words = f"{key}\0{number}" if number else key  # No key has such a character.
            stream_id = idempotent_stream_id(subject, name, words)
            created = await self._created(stream_id, subject, name, made, known=True)
            if created.state != "failed":
                break
            record = await self._records.read(stream_id)
            if record is None or not _asked_nobody(record):
                break
        return stream_id, created

    async def issue(
        self, subject: str, name: str, data: bytes, root_path: str, *, key: str, ref: str
    ) -> Issued:
        """Return the ticket of a request that the application itself makes; raises GatewayError."""
        preset = self.preset(name, on_behalf=True)
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
        self,
        request: Request,
        stream_id: str,
        subject: str,
        preset: str,
        made: PreparedRequest,
        name: str,
    ) -> Created:
        """Store a request that begins at once, so that a repeat of it, by `name`, finds it."""
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

    def preset(self, name: str, on_behalf: bool = False) -> Preset:
        """Return a preset that a page may ask, or `on_behalf` of it any; raises Rejected."""
        preset = self._presets.get(name)
        if preset is None or not (preset.public or on_behalf):
            raise Rejected("preset_not_found")
        return preset


def _asked_nobody(record: Record) -> bool:
    """Whether a stream has failed before anything could be paid for."""
    result = json.loads(record.result) if record.result else {}
    return asked_nobody(result.get("failure", {}))

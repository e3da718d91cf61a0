"""Streams: what may be asked with a ticket: the stream, and its end."""

import json

from starlette.requests import Request

from gateway.auth.tickets import Ticket, Tickets
from gateway.config.preset_book import PresetBook
from gateway.errors import Rejected
from gateway.eventlog.fanout import Fanout
from gateway.runs.cancellation import Cancellation
from gateway.runs.redemption import NothingMore, Opened, Redemption
from gateway.runs.snapshot import CompletionSnapshots
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.event_stream import EventStream
from gateway.web.heartbeats import HeartbeatEvents
from gateway.web.openings import Openings
from gateway.web.plain_stream import PlainStream
from gateway.web.raw_stream import RawStream
from gateway.web.requests import accepts, accepts_text, last_event_id, view_of
from gateway.web.responses import Retry, nothing_more, reply, unanswered


class StreamEndpoints:
    """One stream, as its owner asks for it."""

    def __init__(
        self,
        presets: PresetBook,
        guards: Guards,
        tickets: Tickets,
        redemption: Redemption,
        cancellation: Cancellation,
        snapshots: CompletionSnapshots,
        fanout: Fanout,
    ) -> None:
        self._guards = guards
        self._tickets = tickets
        self._redemption = redemption
        self._cancellation = cancellation
        self._snapshots = snapshots
        self._fanout = fanout
        self.openings = Openings(redemption, snapshots, presets.settings.max_event)
        self._retry = Retry(lambda: presets.shortest_grace)

    async def stream(self, request: Request) -> AnyResponse:
        """GET /stream: redeem a ticket, or go on with its stream."""
        subject = await self._guards.viewer(request)
        raw = view_of(request).form == "raw"
        if not (accepts_text(request) if raw else accepts(request)[1]):
            kind = "text/plain" if raw else "text/event-stream"
            raise Rejected("not_acceptable", f"Send Accept: {kind}.")
        return await self.open(request, self._ticket(request), subject)

    async def open(self, request: Request, ticket: Ticket, subject: str) -> AnyResponse:
        """Answer with a ticket's stream, from where its caller left it."""
        wanted, view = last_event_id(request), view_of(request)
        if view.is_text_alone:
            kind = PlainStream if view.form == "plain" else RawStream
            return await self._text_alone(kind, ticket, subject, wanted)
        opening = await self.openings.open(ticket, subject, wanted, snapshot=view.snapshot)
        if isinstance(opening, NothingMore):
            return nothing_more()
        first, text = self._retry.line(), view.form == "text"
        stream = EventStream(self._fanout, opening.opened, first, text=text, before=opening.before)
        return HeartbeatEvents(stream) if view.heartbeats else stream

    async def _text_alone(
        self, kind: type[RawStream], ticket: Ticket, subject: str, wanted: str
    ) -> AnyResponse:
        record = await self._redemption.record(ticket, subject)
        begin = wanted
        if not wanted and record.attempts > 1:  # What is before a `reset` could not be taken back.
            begin = (await self._snapshots.of(record)).began
        opened = await self._redemption.open(ticket, subject, begin)
        if isinstance(opened, Opened):
            return kind(self._fanout, opened, self._retry, more=bool(wanted))
        record = await self._redemption.record(ticket, subject)
        if record.state == "done":
            return nothing_more()
        return unanswered(record.state, json.loads(record.result or "{}").get("failure", {}))

    async def cancel(self, request: Request) -> AnyResponse:
        """DELETE /stream, POST /stream/cancel: stop it, for all viewers."""
        subject = await self._guards.caller(request)
        record = await self._redemption.record(self._ticket(request), subject)
        return reply({"state": await self._cancellation.cancel(record)})

    def _ticket(self, request: Request) -> Ticket:
        return self._tickets.verify(request.query_params.get("ticket", ""))

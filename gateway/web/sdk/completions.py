"""Completions: the URL of one API, as its own SDKs ask there."""

from starlette.requests import Request

from gateway.auth.tickets import Ticket, Tickets
from gateway.errors import Rejected, Unavailable
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.runs.redemption import Redemption
from gateway.upstream.protocols.api import Api
from gateway.web.endpoint import AnyResponse
from gateway.web.requests import body_of
from gateway.web.sdk.answers import Answers, Wanted, wanted_of
from gateway.web.sdk.callers import SdkCaller, SdkCallers
from gateway.web.sdk.models import Models
from gateway.web.tickets import TicketEndpoints


class Owned:
    """Records of what tickets lead to, for who may see it."""

    def __init__(self, tickets: Tickets, records: Records, redemption: Redemption) -> None:
        self._tickets = tickets
        self._records = records
        self._redemption = redemption

    async def by_ticket(self, shown: str, caller: SdkCaller) -> Record:
        """Return the record of a ticket; raises Rejected and Unavailable.

        An app's server that does not say for whom it asks is taken for whose ticket it has.
        """
        ticket = self._tickets.verify(shown)
        subject = caller.subject or await self._subject(ticket)
        return await self._redemption.record(ticket, subject)

    async def by_stream(self, stream_id: str, caller: SdkCaller) -> Record:
        """Return the record of a stream that an alias led to; raises Rejected and Unavailable."""
        record = await self._records.read(stream_id) if stream_id else None
        subject = record.subject if record is not None else ""
        if record is None or (caller.subject and caller.subject != subject):
            if stream_id and await self._records.may_be_forgotten(stream_id, 0):
                raise Unavailable("not_yet")
            raise Rejected("response_not_found")
        ticket = Ticket.of(stream_id, subject, record.issued)
        return await self._redemption.record(ticket, subject)

    async def _subject(self, ticket: Ticket) -> str:
        record = await self._records.read(ticket.stream_id)
        if record is not None:
            return record.subject
        if await self._records.may_be_forgotten(ticket.stream_id, ticket.issued):
            raise Unavailable("not_yet")
        raise Rejected("log_expired")


class CompletionEndpoints:
    """`POST` and `GET` of one API's path."""

    def __init__(
        self,
        api: Api,
        callers: SdkCallers,
        models: Models,
        tickets: TicketEndpoints,
        owned: Owned,
        answers: Answers,
        max_body: int,
    ) -> None:
        self._api = api
        self._callers = callers
        self._models = models
        self._tickets = tickets
        self._owned = owned
        self._answers = answers
        self._max_body = max_body

    async def create(self, request: Request) -> AnyResponse:
        """POST: ask a model; the body's `stream` says how the answer is to come."""
        caller = await self._callers.of(request, has_body=True)
        body = await body_of(request, self._max_body)
        subject = caller.acting_for(self._api.user(body.values))
        streams = body.values.get("stream") or False
        if not isinstance(streams, bool):
            raise Rejected("bad_request", '"stream" is true or false.')
        wanted = Wanted(streams, not streams or self._api.wants_usage(body.values))
        name, preset, body = self._models.choose(self._api, body, on_behalf=bool(caller.server))
        begun = await self._tickets.begin(request, subject, name, preset, body)
        caller = SdkCaller(subject, caller.server)
        return await self._answers.of_begun(request, self._api, begun, caller, wanted)

    async def resume(self, request: Request) -> AnyResponse:
        """GET: go on with an answer, where its `Content-Location` says."""
        caller = await self._callers.of(request, watches=True)
        wanted = wanted_of(request, streams=True)
        ticket = request.query_params.get("ticket", "")
        record = await self._owned.by_ticket(ticket, caller)
        return await self._answers.of_record(self._api, record, wanted)

"""Answers: from a ticket to the reply that an SDK gets of its stream."""

from contextlib import suppress
from typing import NamedTuple

from starlette.requests import Request

from gateway.auth.tickets import Ticket, Tickets
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.runs.aliases import Aliases
from gateway.runs.record import Record
from gateway.runs.redemption import NothingMore, Opened, Redemption
from gateway.runs.repeats import Repeats
from gateway.sse import Event
from gateway.upstream.protocols.api import Api
from gateway.upstream.protocols.apis import speaks
from gateway.web.event_stream import readable
from gateway.web.mount import Mount
from gateway.web.requests import last_event_id
from gateway.web.responses import as_raw
from gateway.web.sdk.callers import SERVICE, SdkCaller
from gateway.web.sdk.reading import Position, Reading
from gateway.web.sdk.replies import UNNOTED, ObjectReply, Reply, Shown, StateReply, StreamReply
from gateway.web.tickets import Begun


class Wanted(NamedTuple):
    """How a caller wants a stream: as events after a position, as one object, or as it is now."""

    streams: bool
    usage: bool = True  # Whether with the event that tells only what it took.
    after: str = ""  # The id of the last event that it has.
    had: int = 0  # Or how many it has,
    beyond: int = -1  # or the number of the last.
    now: bool = False
    cancelled: bool = False  # What it is now: its log may not say so yet.


class Answers:
    """Replies for the streams of all APIs."""

    def __init__(
        self,
        mount: Mount,
        tickets: Tickets,
        redemption: Redemption,
        fanout: Fanout,
        repeats: Repeats,
        aliases: Aliases,
    ) -> None:
        self._mount = mount
        self._tickets = tickets
        self._redemption = redemption
        self._fanout = fanout
        self._repeats = repeats
        self._aliases = aliases

    async def of_begun(
        self, request: Request, api: Api, begun: Begun, caller: SdkCaller, wanted: Wanted
    ) -> Reply:
        """Return the reply to a POST; `caller` says for whom. Raises Rejected and Unavailable."""
        url = self._url(request, api, begun.ticket, wanted)
        ticket = self._tickets.verify(begun.ticket)
        try:
            opened = await self._redemption.open(ticket, caller.subject, "")
        except Unavailable as error:  # Its claim may go on, and be paid for: it must be found.
            error.headers["Content-Location"] = url
            raise
        if isinstance(opened, NothingMore):
            raise Rejected("log_expired")
        reply = self._reply(api, opened, wanted, self._shown(api, begun, caller))
        told = {"content-location": url, api.request_id: begun.stream_id, **begun.left}
        reply.raw_headers += as_raw(told)
        return reply

    async def of_record(self, api: Api, record: Record, wanted: Wanted) -> Reply:
        """Return a reply of a stream that was begun before; raises Rejected and Unavailable."""
        if not speaks(api, record.protocol):
            raise Rejected("ticket_not_found", "Its answer is of another API.")
        ticket = Ticket.of(record.stream_id, record.subject, record.issued)
        opened = await self._redemption.open(ticket, record.subject, wanted.after)
        if isinstance(opened, NothingMore):
            raise Rejected("log_expired", "There is nothing after this event.")
        reply = self._reply(api, opened, wanted, UNNOTED)
        reply.raw_headers.append((api.request_id.encode(), record.stream_id.encode()))
        return reply

    def _reply(self, api: Api, opened: Opened, wanted: Wanted, shown: Shown) -> Reply:
        with readable(self._fanout, opened):
            return self._made(api, opened, wanted, shown)

    def _made(self, api: Api, opened: Opened, wanted: Wanted, shown: Shown) -> Reply:
        if not wanted.streams:
            reading = Reading(api, opened.dialect, restarts=True)
            if wanted.now:
                return StateReply(self._fanout, opened, api, reading, cancelled=wanted.cancelled)
            return ObjectReply(self._fanout, opened, api, reading, shown)
        fresh = not (wanted.after or wanted.had) and wanted.beyond < 0
        reading = Reading(api, opened.dialect, restarts=False, fresh=fresh)
        position = Position(api, usage=wanted.usage, had=wanted.had, beyond=wanted.beyond)
        return StreamReply(self._fanout, opened, api, reading, position, shown)

    def _shown(self, api: Api, begun: Begun, caller: SdkCaller) -> Shown:
        whose = {caller.subject, SERVICE} if caller.server else {caller.subject}

        async def first(event: Event) -> None:
            if answer_id := api.answer_id(event):
                with suppress(Unavailable):  # What was paid for is shown all the same.
                    await self._aliases.remember(whose, answer_id, begun.stream_id)

        async def head() -> None:
            if begun.repeat:
                await self._repeats.given(begun.repeat, begun.stream_id)

        return Shown(first, head)

    def _url(self, request: Request, api: Api, ticket: str, wanted: Wanted) -> str:
        """Return where the same is to be had again."""
        told = "" if wanted.streams else "&stream=false"
        told += "" if wanted.usage else "&usage=0"
        root = request.scope.get("root_path", "")
        return self._mount.url(root, f"{api.path}?ticket={ticket}{told}")


def wanted_of(request: Request, *, streams: bool) -> Wanted:
    """Return what the query of a GET says; raises Rejected."""
    query = request.query_params
    told = query.get("stream")
    if told not in (None, "true", "false", "1", "0"):
        raise Rejected("bad_request", "`stream` is true or false.")
    streams = streams if told is None else told in ("true", "1")
    after, usage = last_event_id(request), query.get("usage") != "0"
    if after and EventId.parse(after) is None:
        raise Rejected("bad_position", "It is the id of no event.")
    had, beyond = _count(query.get("after"), 0), _count(query.get("starting_after"), -1)
    if not streams:
        return Wanted(streams, usage)  # Of a part of the events the whole cannot be made.
    if after:
        return Wanted(
            streams, usage, after
        )  # What the URL says is older, and counts from the start.
    return Wanted(streams, usage, "", had, beyond)


def _count(text: str | None, unsaid: int) -> int:
    """Return a number of events; raises Rejected."""
    if text is None:
        return unsaid
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise Rejected("bad_position", "It is a whole number from 0.")
    return int(text)

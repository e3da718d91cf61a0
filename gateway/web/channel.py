"""Channel: GET /events, what is pushed to the caller, alone or with several of their streams."""

from starlette.requests import Request

from gateway.auth.tickets import Tickets
from gateway.errors import Rejected
from gateway.eventlog.entries import END, NOTHING, EventId
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.viewer import Viewer
from gateway.runs.redemption import Opened, Redemption
from gateway.sse import position
from gateway.store.keys import channel_id
from gateway.web.composite import CompositeStream
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.event_stream import EventStream
from gateway.web.heartbeats import HeartbeatEvents
from gateway.web.openings import Openings
from gateway.web.parts import Asked, Part, Parts
from gateway.web.positions import MOST, channel_place, positions
from gateway.web.requests import View, accepts, last_event_id, view_of
from gateway.web.responses import Retry


class ChannelEndpoint:
    """A user's channel, watched with the user's login, and with it the streams of tickets."""

    def __init__(
        self,
        guards: Guards,
        tickets: Tickets,
        redemption: Redemption,
        openings: Openings,
        fanout: Fanout,
        retry: Retry,
    ) -> None:
        self._guards = guards
        self._tickets = tickets
        self._redemption = redemption
        self._openings = openings
        self._fanout = fanout
        self._retry = retry

    async def watch(self, request: Request) -> AnyResponse:
        """GET /events: the channel and the streams, from where the caller left them."""
        subject = await self._guards.viewer(request)
        if not accepts(request)[1]:
            raise Rejected("not_acceptable", "Send Accept: text/event-stream.")
        start = request.query_params.get("from", "")
        if start not in ("", "start"):
            raise Rejected("bad_request", "`from` is `start`, or not there.")
        view = view_of(request)
        if view.is_text_alone:
            raise Rejected("bad_request", f"`{view.form}` is the text of one stream, unnamed.")
        stream = await self._stream(request, subject, view, None if start else END)
        return HeartbeatEvents(stream) if view.heartbeats else stream

    async def _stream(
        self, request: Request, subject: str, view: View, start: EventId | None
    ) -> AnyResponse:
        wanted = last_event_id(request)
        if asked := self._asked(request, subject, view):
            return await self._composite(asked, wanted, start, view.heartbeats)
        place = channel_place(wanted) if wanted else start
        opened = await self._opened(subject, place)
        first = self._retry.line()
        if place == END:  # Without an id a browser that is cut now would miss what comes.
            first += position(str(opened.viewer.at or NOTHING).encode(), view.heartbeats)
        return EventStream(self._fanout, opened, first)

    def _asked(self, request: Request, subject: str, view: View) -> Asked | None:
        """Return what is asked for with tickets, None if there are none; raises Rejected."""
        given = request.query_params.getlist("ticket")
        if not given:
            return None
        if len(given) > MOST:
            raise Rejected("bad_tickets", f"One connection carries {MOST} at most.")
        tickets = [self._tickets.verify(each) for each in given]
        if not all(each.belongs_to(subject) for each in tickets):
            raise Rejected("ticket_not_found")
        if len({each.stream_id for each in tickets}) < len(tickets):
            raise Rejected("bad_tickets", "Two are of the same stream.")
        return Asked(subject, tickets, view.snapshot, view.form == "text")

    async def _composite(
        self, asked: Asked, wanted: str, start: EventId | None, seen: bool
    ) -> AnyResponse:
        told = positions(wanted, [each.stream_id for each in asked.tickets], start)
        place = told.channel
        opened = await self._opened(asked.subject, place)
        first = self._retry.line()
        if place == END:
            told.moved(0, opened.viewer.at or NOTHING)
            first += position(str(told).encode(), seen)
        channel = Part(0, opened)
        parts = Parts(self._fanout, self._openings, self._retry, asked, told, channel)
        return CompositeStream(self._fanout, parts, told, first)

    async def _opened(self, subject: str, at: EventId | None) -> Opened:
        seat = self._redemption.seat(subject)
        viewer: Viewer | None = None
        try:
            viewer = await self._fanout.attach(channel_id(subject), "", at, subject)
        finally:
            if viewer is None:
                seat()
        return Opened(viewer, seat, "")

"""Answers: from a chat's stream to the response that shows it."""

from contextlib import suppress

from gateway.auth.tickets import Ticket, Tickets
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.runs.chats import Chats
from gateway.runs.record import Record
from gateway.runs.redemption import NothingMore, Opened, Redemption
from gateway.runs.snapshot import CompletionSnapshots
from gateway.upstream.protocols.table import logged_protocol
from gateway.web.chat.parts import UiParts
from gateway.web.chat.stream import UiStream
from gateway.web.event_stream import readable

_GONE = ("log_expired", "ticket_expired", "ticket_not_found")


class ChatAnswers:
    """Responses for the streams of chats."""

    def __init__(
        self,
        tickets: Tickets,
        chats: Chats,
        redemption: Redemption,
        snapshots: CompletionSnapshots,
        fanout: Fanout,
    ) -> None:
        self._tickets = tickets
        self._chats = chats
        self._redemption = redemption
        self._snapshots = snapshots
        self._fanout = fanout

    async def begun(self, shown: str, subject: str, continued: str) -> UiStream:
        """Return the answer that a ticket leads to, from its start; raises Rejected, Unavailable.

        `continued` is the message that it goes on with, "" for none.
        """
        ticket = self._tickets.verify(shown)
        if continued:
            await self._chats.note_continued(ticket.stream_id, continued)
        began = await self._began(await self._redemption.record(ticket, subject))
        opened = await self._redemption.open(ticket, subject, began)
        if isinstance(opened, NothingMore):
            raise Rejected("log_expired")
        return self._streamed(opened, ticket.stream_id, continued or ticket.stream_id)

    async def under_way(self, record: Record, position: EventId | None) -> UiStream | None:
        """Return an answer, to who is at a position of it or at none; None if there is no more."""
        began = await self._began(record)
        place = EventId.parse(began)
        if position is not None and place is not None and position <= place:
            position = None
        message_id = await self._chats.message_of(record.stream_id)
        ticket = Ticket.of(record.stream_id, record.subject, record.issued)
        try:
            opened = await self._redemption.open(ticket, record.subject, began)
        except Rejected as error:
            if error.code not in _GONE:
                raise
            return None
        if isinstance(opened, NothingMore):
            return None
        return self._streamed(opened, record.stream_id, message_id, position)

    async def _began(self, record: Record) -> str:
        """Return the event after which an answer begins, "" for the first: no page takes back what
        is before a `reset`."""
        return (await self._snapshots.of(record)).began if record.attempts > 1 else ""

    async def note_shown(self, stream_id: str) -> None:
        """Note that a stream is not to be shown any more."""
        with suppress(Unavailable):  # What was shown is shown once more, and that is all.
            await self._chats.note_shown(stream_id)

    def _streamed(
        self, opened: Opened, stream_id: str, message_id: str, position: EventId | None = None
    ) -> UiStream:
        with readable(self._fanout, opened):
            protocol = logged_protocol(opened.dialect)
        parts = UiParts(stream_id, message_id, protocol.readings, position)

        async def shown() -> None:
            await self.note_shown(stream_id)

        return UiStream(self._fanout, opened, parts, shown)

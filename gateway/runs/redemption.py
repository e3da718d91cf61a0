"""Redemption: from a ticket to a viewer of its stream.

The first one claims the stream, and so starts its run; every other one attaches to what is there.
Nothing is claimed before it is known that there is somebody to show it to, and room to do so. Where
Redis may only have forgotten something, the caller is told to come back: never that there is
nothing, and never to begin anew what may have been paid for.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from gateway.auth.tickets import Ticket
from gateway.config.presets import Preset
from gateway.errors import Rejected, Unavailable
from gateway.eventlog.entries import EventId
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.viewer import Viewer
from gateway.limits.tallies import Seat
from gateway.runs.claims import Claims
from gateway.runs.endings import FINAL, moved
from gateway.runs.record import VERSION, ClaimVerdict, Record
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry
from gateway.upstream.protocols.table import DEFAULT


class Opened(NamedTuple):
    """A viewer, to be detached, and the place of its subject's that it takes until then."""

    viewer: Viewer
    seat: Seat
    dialect: str  # Of its stream's answer.


class NothingMore:
    """Who asked has all of the stream that there will ever be."""


class Redemption:
    """Tickets and what they lead to; `saw` is told of every record that somebody looked at."""

    def __init__(
        self,
        records: Records,
        fanout: Fanout,
        registry: RunRegistry,
        claims: Claims,
        presets: Callable[[str], Preset | None],
        draining: Callable[[], bool],
        saw: Callable[[Record], None],
    ) -> None:
        self._records = records
        self._limits = records.limits
        self._fanout = fanout
        self._registry = registry
        self._claims = claims
        self._presets = presets
        self._draining = draining
        self._saw = saw

    async def open(self, ticket: Ticket, subject: str, wanted: str) -> Opened | NothingMore:
        """Return a viewer of a ticket's stream, after the event `wanted`, "" for all of it.

        Raises Rejected, and Unavailable where it will pass.
        """
        record = await self._record(ticket, subject, wanted)
        if record is None or (wanted and wanted == record.end_id):
            return NothingMore()
        seat, viewer = self.seat(subject), None  # Before anything is paid for that none could show.
        try:
            viewer = await self._viewer(record, wanted)
        finally:
            if viewer is None:
                seat()
        return Opened(viewer, seat, record.protocol) if viewer else NothingMore()

    def seat(self, subject: str) -> Seat:
        """Return a subject's place for one more viewer; raises Unavailable."""
        if self._draining():
            raise Unavailable("draining")
        if self._fanout.viewers >= self._registry.most:
            raise Unavailable("overloaded")
        return self._limits.seat(subject)

    async def record(self, ticket: Ticket, subject: str) -> Record:
        """Return a ticket's record.

        Raises Rejected, and Unavailable where Redis may only have forgotten it.
        """
        record = await self._known(ticket, subject)
        if record is None:
            if await self._records.ran_out(ticket.stream_id, ticket.issued):
                raise Rejected("ticket_expired", "Ask for a new one.")
            raise _gone()
        return record

    async def of_repeat(self, stream_id: str, digest: str) -> Record:
        """Return the record of a stream that a request has begun, "" if none is known.

        Its caller has seen events of it, so it was paid for, and has gone or is to come back: that
        request must not begin another. Raises Rejected and Unavailable.
        """
        record = await self._records.read(stream_id) if stream_id else None
        if record is None or record.state == "cached":
            if stream_id and await self._may_come_back(stream_id, 0):
                raise Unavailable("not_yet")
            raise Rejected("log_expired", "Without Last-Event-ID it is a new request.")
        if record.digest != digest:
            raise Rejected("idempotency_mismatch", "Take a new key for a new request.")
        return record

    async def _record(self, ticket: Ticket, subject: str, wanted: str) -> Record | None:
        """Return a ticket's record; None where a reconnect is to be told that it is over."""
        # An EventSource that reconnects takes a refusal for an error, and says so to its page.
        return await (self._known if wanted else self.record)(ticket, subject)

    async def _known(self, ticket: Ticket, subject: str) -> Record | None:
        """Return a ticket's record, None if it is kept no more."""
        if not ticket.belongs_to(subject):
            raise Rejected("ticket_not_found")
        record = await self._records.read(ticket.stream_id)
        if record is not None and record.version > VERSION:
            raise Unavailable("newer_record")
        if record is not None and record.subject != subject:
            raise Rejected("ticket_not_found")
        if record is not None and record.issued <= ticket.issued:
            self._saw(record)
            return record
        # A younger one: the key was used again, after this ticket had run out or was forgotten.
        if await self._may_come_back(ticket.stream_id, ticket.issued, there=record is not None):
            raise Unavailable("not_yet")
        return None

    async def _may_come_back(self, stream_id: str, issued: int, *, there: bool = False) -> bool:
        """Whether a record is missing that its owner writes again; `there` is another's instead."""
        if not there and self._registry.owes(stream_id):
            return True
        return await self._records.may_be_forgotten(stream_id, issued)

    async def _viewer(self, record: Record, wanted: str) -> Viewer | None:
        """Return a viewer, to be detached; None where there is nothing more."""
        if record.state == "cached":
            record = await self._begun(record)
        if self._fanout.superseded(record.stream_id, record.epoch):
            # Its position is in a log that this replica does not see yet.
            raise Unavailable("not_yet")
        owner = record.owner if record.running else ""
        position = EventId.parse(wanted)
        whose = (record.subject, record.issued)
        viewer = await self._fanout.attach(record.stream_id, owner, position, *whose)
        if record.state not in FINAL or viewer.tail.ended or viewer.tail.local:
            return viewer
        self._fanout.detach(viewer)  # The log went before the record did.
        if not await self._records.outlives_log(record.stream_id):
            # A failover lies between the two looks, or is under way.
            raise Unavailable("not_yet")
        if not wanted:
            raise _gone()
        return None

    async def _begun(self, record: Record) -> Record:
        """Return the record of a stream that runs now, by this claim or an earlier one."""
        preset = self._presets(record.preset)
        if preset is None:
            raise Unavailable("newer_record", f"This replica has no preset {record.preset}.")
        if preset.dialect != (record.protocol or DEFAULT):  # What was prepared is not for it.
            words = f"Preset {record.preset} speaks another protocol here."
            raise Unavailable("newer_record", words)
        verdict = ClaimVerdict.EXPIRED
        if not record.expired or record.stream_id in self._registry:
            verdict = await self._claims.claim(record, preset)
        if verdict is ClaimVerdict.EXPIRED:
            if self._records.just_reached(record.stream_id):
                raise Unavailable("not_yet")  # A failover may have lost its claim.
            raise Rejected("ticket_expired", "Ask for a new one.")
        if verdict is ClaimVerdict.CLAIMED:
            return replace(
                record, state=moved(record.state, "starting"), owner=self._records.replica
            )
        found = await self._records.read(record.stream_id)
        if found is None or found.state == "cached":
            raise Unavailable("not_yet")
        return found


def _gone() -> Rejected:
    return Rejected("log_expired", "Ask for a new ticket.")

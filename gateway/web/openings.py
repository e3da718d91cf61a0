"""Openings: from a ticket to what is shown of its stream, whichever response shows it."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from gateway.auth.tickets import Ticket
from gateway.runs.redemption import NothingMore, Opened, Redemption
from gateway.runs.snapshot import CompletionSnapshots
from gateway.web.event_stream import SnapshotEvent
from gateway.web.responses import LongText


class Opening(NamedTuple):
    """A viewer, and the pieces of an event that stands for what is before its place, if any."""

    opened: Opened
    before: Iterable[bytes] = ()


class Openings:
    """Opens streams, with a snapshot where one is asked for; `max_event` bounds its bytes."""

    def __init__(
        self, redemption: Redemption, snapshots: CompletionSnapshots, max_event: int
    ) -> None:
        self._redemption = redemption
        self._snapshots = snapshots
        self._max_event = max_event

    async def open(
        self, ticket: Ticket, subject: str, wanted: str, *, snapshot: bool
    ) -> Opening | NothingMore:
        """Return a ticket's stream after the event `wanted`; raises Rejected and Unavailable.

        Whoever has a position gets no snapshot.
        """
        before = None
        if snapshot and not wanted:
            before = await self._snapshot(ticket, subject)
        opened = await self._redemption.open(ticket, subject, before.id if before else wanted)
        return opened if isinstance(opened, NothingMore) else Opening(opened, before or ())

    async def _snapshot(self, ticket: Ticket, subject: str) -> SnapshotEvent | None:
        """Return what stands for the log so far, None where nothing is logged that it could."""
        record = await self._redemption.record(ticket, subject)
        if record.state == "cached":
            return None
        answer = await self._snapshots.of(record)
        if not answer.covered or len(answer.text) > self._max_event:
            return None
        result = json.loads(record.result) if record.result else {}
        told = {
            "finish_reason": result.get("finish_reason", answer.completion.finish_reason),
            "state": record.told(started=True),
        }
        return SnapshotEvent(LongText(told, "text", answer.text), answer.covered)

"""What the log needs of what lies above it: who may write it, and where it runs elsewhere."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from gateway.eventlog.entries import EntryBatch, EventId, Seal


class Ownership(Protocol):
    """Who may write a log, as its writer asks; every method may raise Unavailable."""

    async def hold(
        self,
        stream_id: str,
        epoch: int,
        fields: dict[str, Any],
        before: Sequence[EntryBatch] | None = (),
        torn: str = "",
    ) -> str:
        """Assert an ownership, and write again what Redis forgot; return the id of the last entry.

        `before` is what the log holds of earlier owners; None: there is something, to be asked for
        by EarlierNeeded. `torn` is a log that lacks something: the id of its last entry and how
        many it has. Raises Fenced, and Sealed if the stream has its end.
        """

    async def append(self, stream_id: str, last: str, entries: Sequence[EntryBatch]) -> None:
        """Append all of these to a log that ends with `last`; raises InDoubt if it does not."""

    async def seal(self, stream_id: str, epoch: int, seal: Seal) -> str:
        """End a stream, once; return the state it ended with. Raises Fenced, InDoubt."""


class Fate(Enum):
    """What became of a stream that was followed."""

    KEPT = "it goes on as it did, as far as is known"
    CHANGED = "it ended, or another owner has it: its log is to be compared with what was seen"
    UNCLAIMED = "it is lost, unless its owner writes it again within the source's patience"
    LOST = "nobody will write it again"


class Source(Protocol):
    """Where the streams are that run elsewhere; every method may raise Unavailable."""

    patience: float  # Seconds that an owner has to write again what Redis lost.

    async def announce(self, owners: Mapping[str, str], seconds: float) -> None:
        """Tell the owners of these streams, stream -> owner, that somebody watches from here."""

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take back what was announced: nobody watches from here any more."""

    async def compare(self, seen: Mapping[str, EventId | None]) -> list[Fate]:
        """Tell what became of streams of which so much was seen."""

    async def owner(self, stream_id: str) -> str:
        """Return who runs a stream now, "" if nobody does."""

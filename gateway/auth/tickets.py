"""Tickets: a signed claim to one stream, worth nothing without its owner's cookie.

A ticket carries no lifetime. Its age is judged by Redis's clock on the record, so that replicas
with skewed clocks refuse nobody.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time

from itsdangerous import BadData, Signer

from gateway.errors import Rejected
from gateway.store.keys import id_of

_SALT = "gateway.ticket.v1"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A verified claim; `issued` is in milliseconds, of the clock that the record is dated by."""

    stream_id: str
    owner: str
    issued: int

    @classmethod
    def of(cls, stream_id: str, subject: str, issued: int) -> "Ticket":
        """Return the claim of a ticket that need not be shown to anybody."""
        return cls(stream_id, _owner(stream_id, subject), issued)

    def belongs_to(self, subject: str) -> bool:
        """Say whether the ticket was issued to this subject."""
        return self.owner == _owner(self.stream_id, subject)


class Tickets:
    """Issues and verifies tickets; the newest secret (the first) signs, all of them verify."""

    def __init__(self, secrets: Sequence[str], now: Callable[[], float] = time) -> None:
        self._now = now
        self._signer = Signer(
            list(reversed(secrets)),  # itsdangerous signs with the last.
            salt=_SALT,
            key_derivation="hmac",
            digest_method=hashlib.sha256,
        )

    def issue(self, stream_id: str, subject: str, issued: int | None = None) -> str:
        """Return a ticket of under 300 URL-safe characters; the same facts give the same ticket."""
        if issued is None:
            issued = int(self._now() * 1000)
        # Not a serializer's: that one tries to compress what is too short to gain by it.
        claim = f"{stream_id}.{_owner(stream_id, subject)}.{issued}"
        return self._signer.sign(claim).decode()

    def verify(self, ticket: str) -> Ticket:
        """Return what a ticket claims; raises Rejected `ticket_not_found` if it is not ours."""
        try:
            stream_id, owner, issued = self._signer.unsign(ticket).decode().split(".")
            return Ticket(stream_id, owner, int(issued))
        except (BadData, ValueError):
            raise Rejected("ticket_not_found") from None


def _owner(stream_id: str, subject: str) -> str:
    """A digest, so that neither names nor mail addresses travel in URLs, however long they are."""
    return id_of(stream_id, subject)

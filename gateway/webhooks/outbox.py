"""Outbox: what Redis keeps of an end that is to be told: what it says, how often it was tried, and
when it is tried next.

The seal of a stream notes it in the same step. Each try is counted before it is made, so that
replicas which have the same end on their lists do not tell it at once, nor a replica that dies at
each try for ever.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from gateway.store.client import RedisClient, Script
from gateway.store.keys import record_key, webhook_key

KEPT = 25 * 3600.0  # Seconds; longer than it is tried.
LONGEST = 3600.0  # Seconds that a try is put off at most.

_HEARD = 900.0  # Seconds: longer than another replica waits with what it has on its list, too.
_TRY = 20.0  # Seconds; longer than a receiver has to answer.


class Verdict(StrEnum):
    """What came of asking for a try."""

    GO = "go"
    WAIT = "wait"
    HEARD = "heard"
    MISSING = "missing"


class Turn(NamedTuple):
    """A verdict; seconds to wait; the tries with this one, the age of the end, what is known."""

    verdict: Verdict
    wait: float = 0.0
    tries: int = 0
    age: float = 0.0
    fields: Mapping[bytes, bytes] = {}


def owing(stream_id: str) -> Script:
    """Return the script that notes an end; it runs with the one that writes it, as one."""
    keys = [record_key(stream_id), webhook_key(stream_id)]
    return Script("owe", keys, [int(KEPT * 1000)])


class Outbox:
    """The ends that are to be told, one by one; every method may raise Unavailable."""

    def __init__(self, store: RedisClient) -> None:
        self._store = store

    async def receiver(self, stream_id: str) -> str:
        """Return who is still to be told of a stream's end, "" if nobody is."""
        found = await self._store.call("HGET", webhook_key(stream_id), "to")
        return (found or b"").decode()

    async def begin(self, stream_id: str, *, known: bool) -> Turn:
        """Begin a try, if one is due; what is to be told is not read where it is `known`."""
        args = [int(_TRY * 1000), int(LONGEST * 1000), "" if known else "1"]
        reply = await self._store.script("tell", [webhook_key(stream_id)], args, large=not known)
        verdict, rest = Verdict(reply[0].decode()), reply[1:]
        if verdict is Verdict.WAIT:
            return Turn(verdict, wait=rest[0] / 1000)
        if verdict is not Verdict.GO:
            return Turn(verdict)
        tries, age, *flat = rest
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return Turn(verdict, tries=tries, age=age / 1000, fields=fields)

    async def put_off(
        self, stream_id: str, seconds: float, tries: int, fields: Mapping[bytes, Any]
    ) -> bool:
        """Put the next try off; return whether Redis has the body of what is told.

        `fields` are written where they are not there.
        """
        flat = [part for pair in fields.items() for part in pair]
        args = [int(seconds * 1000), int(KEPT * 1000), tries, *flat]
        keys, large = [webhook_key(stream_id)], bool(flat)
        _, stored = await self._store.script("put_off", keys, args, large=large)
        return bool(stored)

    async def told(self, stream_id: str) -> None:
        """Note that an end is told no more."""
        await self._store.script("told", [webhook_key(stream_id)], [int(_HEARD * 1000)])

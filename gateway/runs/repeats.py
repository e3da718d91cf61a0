"""Repeats: a POST that is sent again for the rest of the stream it was answered with.

Clients that fetch send their request once more when the connection broke, with the id of the last
event they have (`Last-Event-ID`). To take that for a new request would be paid twice, and the page
would show two answers as one. An id names an epoch, and the streams that a request has begun are
remembered by what was asked: the one whose log knows the epoch, whoever wrote it, is meant.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gateway.errors import Unavailable
from gateway.eventlog.entries import EventId
from gateway.runs.records import Records
from gateway.store.keys import asked_key, given_key, id_of, log_keys

_SOON = 15  # Seconds: SDKs wait for eight before they send a request again.

KEPT = 32  # Streams of one request; who asked for so many more lately gets 410 for the oldest.


def asked(subject: str, preset: str, digest: str) -> str:
    """Return the name of a request, whoever sends it again: as good as a stream's."""
    return id_of("asked", subject, preset, digest)


class Repeats:
    """What requests have begun; every method may raise Unavailable."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._store = records.store

    async def remember(self, name: str, stream_id: str) -> dict[str, Any]:
        """Let a request find the stream that it is about to begin; return what its record says.

        It comes before the claim: what is paid for and not to be found would be paid for again.
        """
        args = [self._records.longest, stream_id, KEPT]
        ahead = int(await self._store.script("remember", [asked_key(name)], args))
        return {"asked": name, "ahead": ahead}

    async def again(self, streams: Mapping[str, str]) -> None:
        """Let requests find their streams, stream -> request, that Redis has forgotten of them."""
        asked = (self.remember(name, stream_id) for stream_id, name in streams.items())
        await asyncio.gather(*asked, return_exceptions=True)

    async def forget(self, name: str, stream_id: str) -> None:
        """Let go of a stream that will not begin: what is refused must not fill the store."""
        with suppress(Unavailable):
            await self._store.call("ZREM", asked_key(name), stream_id)

    async def given(self, name: str, stream_id: str) -> None:
        """Note that a request has its answer: only who lost it on the way asks again, and soon."""
        with suppress(Unavailable):
            await self._store.calls(
                [
                    ["ZREM", asked_key(name), stream_id],
                    ["SET", given_key(name), stream_id, "EX", _SOON],
                ]
            )

    async def latest(self, name: str) -> str:
        """Return the last stream that a request has begun and had no answer of, "" for none."""
        last, given = await self._store.calls(
            [["ZREVRANGE", asked_key(name), 0, 0], ["GET", given_key(name)]]
        )
        return (last[0] if last else given or b"").decode()

    async def find(self, name: str, position: EventId) -> str:
        """Return the one stream of a request whose log knows an epoch, "" if there is none."""
        found = await self._store.call("ZREVRANGE", asked_key(name), 0, -1)
        streams: list[str] = [each.decode() for each in found]
        first, last = f"{position.epoch}-0", f"{position.epoch}-{2**64 - 1}"
        logs = [(each, key) for each in streams for key in log_keys(each)]
        looks = await self._store.attempt(
            ["XRANGE", key, first, last, "COUNT", 1] for _, key in logs
        )
        away = [look for look in looks if isinstance(look, Unavailable)]
        pairs = zip(logs, looks, strict=True)
        knows = [each for (each, _), look in pairs if look and look not in away]
        if len(knows) == 1:
            return knows[0]
        if away:
            raise away[0]
        for each in [name, *streams]:
            if await self._records.may_be_forgotten(each, 0):
                raise Unavailable("not_yet")
        return ""

"""Aliases: streams by the id that an upstream gave to their answer.

Who asks by such an id is its caller's subject, or an app's server, which need not say for whom.
What a Redis that came back empty has forgotten nobody writes again: then its ticket finds it alone.
"""

import asyncio
from collections.abc import Iterable

from gateway.runs.records import Records
from gateway.store.keys import alias_key, id_of


class Aliases:
    """What ids lead to; every method may raise Unavailable."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._store = records.store

    async def remember(self, whose: Iterable[str], answer_id: str, stream_id: str) -> None:
        """Let each of these find a stream by its answer's id, as long as it is known."""
        ttl = self._records.longest
        names = [_name(each, answer_id) for each in whose]
        sets = (self._store.call("SET", alias_key(each), stream_id, "PX", ttl) for each in names)
        await asyncio.gather(*sets)

    async def find(self, whose: str, answer_id: str) -> str:
        """Return the stream, "" if there is none."""
        found = await self._store.call("GET", alias_key(_name(whose, answer_id)))
        return (found or b"").decode()


def _name(whose: str, answer_id: str) -> str:
    return id_of("answer", whose, answer_id)

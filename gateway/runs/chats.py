"""Chats: the newest stream of a conversation, by the id that its page gave to it.

An id is its subject's own: two may have the same and never meet. To have begun a stream is for a
chat what it is for a request that is sent again (`repeats`): kept as long, and written again if
Redis forgets it. That an end was shown is noted of the stream, so that nobody who watches an
earlier one can say it of a later one.
"""

from typing import NamedTuple

from gateway.errors import Unavailable
from gateway.runs.endings import FINAL
from gateway.runs.record import Record
from gateway.runs.records import Records
from gateway.runs.repeats import Repeats
from gateway.store.keys import continued_key, id_of, shown_key


class Chat(NamedTuple):
    """The stream that a chat's last request has begun, and its record if it is kept."""

    stream_id: str = ""
    record: Record | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is more of it to come."""
        record = self.record
        over = record is None or record.expired or record.cancelled or record.state in FINAL
        return not over


class Chats:
    """What chats lead to; every method may raise Unavailable."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._store = records.store
        self._repeats = Repeats(records)

    async def find(self, subject: str, chat_id: str) -> Chat:
        """Return a chat of a subject's, one without a stream if there is none."""
        stream_id = await self._repeats.latest(chat_name(subject, chat_id))
        record = await self._records.read(stream_id) if stream_id else None
        if stream_id and record is None and await self._records.may_be_forgotten(stream_id, 0):
            raise Unavailable("not_yet")
        return Chat(stream_id, record)

    async def note_continued(self, stream_id: str, message_id: str) -> None:
        """Note that a stream goes on with a message that its page has."""
        key, ttl = continued_key(stream_id), self._records.longest
        await self._store.call("SET", key, message_id, "PX", ttl)

    async def message_of(self, stream_id: str) -> str:
        """Return what a stream's message is called: as the stream, or as what it goes on with."""
        found = await self._store.call("GET", continued_key(stream_id))
        return (found or b"").decode() or stream_id

    async def note_shown(self, stream_id: str) -> None:
        """Note that somebody has all of a stream."""
        await self._store.call("SET", shown_key(stream_id), 1, "PX", self._records.longest)

    async def was_shown(self, stream_id: str) -> bool:
        """Whether somebody has all of it."""
        return bool(await self._store.call("EXISTS", shown_key(stream_id)))


def next_stream(subject: str, chat_id: str, digest: str, after: str) -> str:
    """Return the id of the stream that a request begins after an earlier one of its chat.

    It is the same for two that are sent at once, wherever they arrive: one of them begins it.
    """
    return id_of("chat", subject, chat_id, digest, after)


def chat_name(subject: str, chat_id: str) -> str:
    """Return what a chat is called among all requests that streams are found by."""
    return id_of("chat", subject, chat_id)

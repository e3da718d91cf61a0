"""Publisher: stores messages in the channels of users, and wakes those who watch."""

from typing import NamedTuple

from gateway.channels.message import Bounds, Message
from gateway.config.settings import Settings
from gateway.errors import Rejected
from gateway.limits.headroom import Headroom
from gateway.store.client import RedisClient
from gateway.store.keys import (
    DAY,
    channel_id,
    channel_key,
    control_channel,
    log_key,
    message_key,
    new_id,
    watchers_key,
)

_AGAIN = 60_000  # Milliseconds after which no command is sent again by itself.
_AROUND = 512  # Bytes that a message takes beside its own, about.


class Kept(NamedTuple):
    """What a channel keeps at most: messages, bytes, seconds; and of `one` the bytes."""

    messages: int
    size: int
    ttl: float
    one: int

    @property
    def bounds(self) -> Bounds:
        """Those of one message."""
        return Bounds(self.one, self.ttl)


class Publisher:
    """Writes to channels, from any process; `share` is the part of Redis's memory it may fill."""

    def __init__(self, store: RedisClient, kept: Kept, share: float) -> None:
        self.bounds = kept.bounds
        self._store = store
        self._kept = kept
        self._headroom = Headroom(store, share)

    async def push(self, subject: str, message: Message) -> str:
        """Store a message, once for each message id, and return its id.

        Raises Rejected where the message id has another message, and Unavailable.
        """
        channel, size = channel_id(subject), len(message.lines) + _AROUND
        room = await self._headroom.room_for(channel, size)
        room.take(size)
        try:
            stored, event_id, *watchers = await self._store.script(
                "push", _keys(channel, message.message_id), self._args(message)
            )
        finally:
            room.stored(size)
        if not stored:
            raise Rejected("message_id_reused", "Take a new one for a new message.")
        names = (each.decode() for each in watchers)
        await self._store.publish((control_channel(each), f"wake {channel}") for each in names)
        return str(event_id.decode())

    def _args(self, message: Message) -> list[object]:
        kept = self._kept
        shown = max(1, int(message.ttl * 1000))
        limits = [shown, kept.messages, kept.size, int(kept.ttl * 1000)]
        return [message.lines, *limits, message.digest, DAY if message.message_id else _AGAIN]


def _keys(channel: str, message_id: str) -> list[str]:
    # A command may be sent twice, after a reply that was lost: no message is without a name.
    name = message_id or f"\n{new_id()}"
    keys = [log_key(channel), channel_key(channel), watchers_key(channel)]
    return [*keys, message_key(channel, name)]


def publisher(settings: Settings, store: RedisClient) -> Publisher:
    """Return a publisher with the bounds that the settings have."""
    kept = Kept(settings.events_keep, settings.max_log, settings.events_ttl, settings.max_event)
    return Publisher(store, kept, settings.store_share)

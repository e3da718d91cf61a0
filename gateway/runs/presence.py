"""Presence: a key that says that somebody watches a stream on another replica than its owner's."""

from collections.abc import Sequence

from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.keys import presence_key


class Presence:
    """Who watches, as one replica tells and sees it; every method may raise Unavailable."""

    def __init__(self, store: RedisClient, replica: str) -> None:
        self._store = store
        self._replica = replica

    async def show(self, stream_ids: Sequence[str], ttl: float) -> None:
        """Tell the owners of these streams that somebody watches from here, for `ttl` seconds."""
        milliseconds = max(1, int(ttl * 1000))
        await self._store.calls(
            ["SET", presence_key(each), self._replica, "PX", milliseconds] for each in stream_ids
        )

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take back what was told, unless another replica has told it since."""
        replies = await self._store.calls(["GET", presence_key(each)] for each in stream_ids)
        ours = [
            presence_key(stream_id)
            for stream_id, reply in zip(stream_ids, replies, strict=True)
            if reply == self._replica.encode()
        ]
        await self._store.calls(["DEL", key] for key in ours)

    async def watched(self, stream_ids: list[str]) -> list[bool]:
        """Tell which of these streams somebody watches from another replica, or may watch."""
        replies = await self._store.attempt(["EXISTS", presence_key(each)] for each in stream_ids)
        return [isinstance(reply, Unavailable) or bool(reply) for reply in replies]

"""Source: who watches a channel, and what becomes of one that is watched here.

Nobody owns a channel: each replica with viewers of it is on its list, for a time, and whoever
writes tells those that there is more.
"""

from collections.abc import Mapping, Sequence

from gateway.eventlog.base import Fate, Source
from gateway.eventlog.entries import NOTHING, EventId
from gateway.eventlog.reader import last_of
from gateway.store.client import RedisClient
from gateway.store.keys import is_channel, watchers_key

_KEPT = 60_000  # Milliseconds that a list lives, at least.


class ChannelSource:
    """Follows channels; see `eventlog.base.Source`."""

    patience = 0.0

    def __init__(self, store: RedisClient, replica: str) -> None:
        self._store = store
        self._replica = replica

    async def announce(self, owners: Mapping[str, str], seconds: float) -> None:
        """Put this replica on the lists of these channels."""
        if not owners:
            return
        ((now, micros),) = await self._store.calls([["TIME"]])
        ttl = max(1, int(seconds * 1000))
        till = int(now) * 1000 + int(micros) // 1000 + ttl
        keys = [watchers_key(each) for each in owners]
        adds = [["ZADD", key, till, self._replica] for key in keys]
        # A replica with another grace must not end the list of those who have a longer one.
        await self._store.calls([*adds, *(["PEXPIRE", key, max(ttl, _KEPT)] for key in keys)])

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take this replica off the lists."""
        await self._store.calls(["ZREM", watchers_key(each), self._replica] for each in stream_ids)

    async def compare(self, seen: Mapping[str, EventId | None]) -> list[Fate]:
        """Tell which channels end before what was seen of them."""
        last = await last_of(self._store, [*seen])
        return [
            Fate.CHANGED if (known or NOTHING) > (now or NOTHING) else Fate.KEPT
            for known, now in zip(seen.values(), last, strict=True)
        ]

    async def owner(self, stream_id: str) -> str:
        """Return "": a channel is nobody's."""
        return ""


class Sources:
    """What is followed here, streams and channels; see `eventlog.base.Source`."""

    def __init__(self, streams: Source, channels: Source) -> None:
        self.patience = streams.patience
        self._streams = streams
        self._channels = channels

    async def announce(self, owners: Mapping[str, str], seconds: float) -> None:
        """Tell that these are watched from here."""
        channels, streams = _parted(owners)
        await self._streams.announce({each: owners[each] for each in streams}, seconds)
        await self._channels.announce(dict.fromkeys(channels, ""), seconds)

    async def withdraw(self, stream_ids: Sequence[str]) -> None:
        """Take back what was announced."""
        channels, streams = _parted(stream_ids)
        await self._streams.withdraw(streams)
        await self._channels.withdraw(channels)

    async def compare(self, seen: Mapping[str, EventId | None]) -> list[Fate]:
        """Tell what became of what was seen."""
        channels, streams = _parted(seen)
        fates = dict(zip(streams, await self._of(self._streams, streams, seen), strict=True))
        fates |= dict(zip(channels, await self._of(self._channels, channels, seen), strict=True))
        return [fates[each] for each in seen]

    @staticmethod
    async def _of(
        source: Source, names: Sequence[str], seen: Mapping[str, EventId | None]
    ) -> list[Fate]:
        return await source.compare({each: seen[each] for each in names}) if names else []

    async def owner(self, stream_id: str) -> str:
        """Return who runs a stream now, "" if nobody does."""
        source = self._channels if is_channel(stream_id) else self._streams
        return await source.owner(stream_id)


def _parted(names: Mapping[str, object] | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the channels among these, and the streams."""
    channels = [each for each in names if is_channel(each)]
    return channels, [each for each in names if not is_channel(each)]

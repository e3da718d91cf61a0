"""Suspects: owners of streams that somebody looked at and did not stay to watch.

A dead replica's list may lack what it ran: Redis can forget that. Then only the record names the
owner, and who reads a record is who can find that nobody runs its stream any more.
"""

from collections.abc import Callable, Mapping

from gateway import clock

_MOST = 10_000  # Streams; whoever looks at one beyond that is welcome to look again.


class Suspects:
    """The owners seen in records, each with its streams, for `kept` seconds after a look."""

    def __init__(self, kept: float, watched: Callable[[], dict[str, list[str]]]) -> None:
        self._kept = kept
        self._watched = watched
        self._seen: dict[str, tuple[str, float]] = {}

    def note(self, stream_id: str, owner: str) -> None:
        """Remember who is said to run a stream."""
        self._seen.pop(stream_id, None)  # So that the oldest looks come first.
        if len(self._seen) < _MOST:
            self._seen[stream_id] = owner, clock.now() + self._kept

    def owners(self) -> Mapping[str, list[str]]:
        """Return the owners of all that was looked at lately, or is watched, with the streams."""
        now = clock.now()
        for stream_id, (_, until) in list(self._seen.items()):
            if until > now:
                break
            del self._seen[stream_id]
        owners = self._watched()
        for stream_id, (owner, _) in self._seen.items():
            owners.setdefault(owner, []).append(stream_id)
        return owners

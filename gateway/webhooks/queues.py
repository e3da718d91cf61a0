"""Queues: which ends are to be told when, one queue a receiver: a slow one must not delay others.

Pure; times are in seconds, of one clock.
"""

import heapq
from collections.abc import Iterator

AT_ONCE = 16  # Tries of one receiver at the same time.

_LONGEST_PAUSE = 300.0
_LONGEST_ASKED = 3000.0  # Of a Retry-After.


class Queue:
    """What one receiver is to be told."""

    def __init__(self) -> None:
        self.busy = 0  # Tries under way.
        self._waiting: list[tuple[float, int, str]] = []
        self._count = 0

    def put(self, when: float, stream_id: str) -> None:
        """Add an end, to be told at a time."""
        self._count += 1  # What is due at once comes in the order in which it ended.
        heapq.heappush(self._waiting, (when, self._count, stream_id))

    def due(self, now: float) -> Iterator[str]:
        """Yield what is to be told now, each of which is busy from here on."""
        while self.busy < AT_ONCE and self._waiting and self._waiting[0][0] <= now:
            self.busy += 1
            yield heapq.heappop(self._waiting)[2]

    @property
    def next(self) -> float:
        """When there will be something to do without a try that is over."""
        idle = self.busy < AT_ONCE and self._waiting
        return self._waiting[0][0] if idle else float("inf")

    @property
    def empty(self) -> bool:
        """Whether nothing waits, or is under way."""
        return not (self.busy or self._waiting)


def pause(tries: int, asked_for: float | None, chance: float) -> float:
    """Return the seconds until the next try; `asked_for` by the receiver, `chance` from 0 to 1.

    Spread out: a receiver that comes back must not be asked by all at once.
    """
    own = min(_LONGEST_PAUSE, 2.0 ** min(tries - 1, 16)) * (0.5 + 0.5 * chance)
    if asked_for is None:
        return own
    return max(own, min(asked_for, _LONGEST_ASKED) * (1 + 0.1 * chance))

"""Compact: what each connection keeps, without the room that it hardly ever needs."""

import asyncio
from typing import Any


class Few(list[Any]):
    """A deque of what is nearly always nothing: an empty one of those takes 600 bytes."""

    def appendleft(self, item: Any) -> None:
        """Add before the first."""
        self.insert(0, item)


def event(*, done: bool = False) -> asyncio.Event:
    """Return an event that keeps its waiters in a list; see `Few`."""
    event = asyncio.Event()
    event._waiters = []  # type: ignore[assignment]
    if done:
        event.set()
    return event

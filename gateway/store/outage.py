"""Outage: says once that something fails, and once that it works again.

A Redis that is away is noticed by every loop and by every stream, some of them ten times a second:
a log that said so each time would hide what else happens.
"""

import logging
from time import monotonic

from redis.asyncio.sentinel import MasterNotFoundError

from gateway.errors import redacted

_SHOWN = 200  # Characters of what a server says.


class Outage:
    """One thing that may fail; `calm` is for how many seconds it must not, to work again."""

    def __init__(self, log: logging.Logger, fails: str, works: str, calm: float = 1.0) -> None:
        self.open = False
        self._log = log
        self._fails = fails
        self._works = works
        self._calm = calm
        self._since = self._last = 0.0

    def failed(self, error: Exception) -> None:
        """Take note of a failure; only the first one is said."""
        self._last = monotonic()
        if self.open:
            self._log.debug("%s: %s", self._fails, words_of(error))
            return
        self.open, self._since = True, self._last
        self._log.warning("%s: %s", self._fails, words_of(error))

    def passed(self) -> None:
        """Take note that it worked; worth a call only while it is `open`."""
        now = monotonic()
        if self.open and now - self._last >= self._calm:
            self.open = False
            self._log.info("%s after %.0f s", self._works, now - self._since)


def words_of(error: Exception) -> str:
    """Return what an operator is told of an error of Redis or of the way there."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, MasterNotFoundError):  # Its own words show all its clients, at length.
        words = f"no Sentinel tells of the master: {str(error).rpartition(' - ')[2]}"
    return redacted(words)[:_SHOWN]

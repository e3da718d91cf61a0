"""Absence: says that what is asked who a caller is does not answer, and that it does again.

Every caller is told 503 meanwhile, and any stranger may come: so once a minute, not each time.
"""

import logging
from collections.abc import Callable
from time import monotonic

_QUIET = 60.0  # Seconds in which it is not said again.


class Absence:
    """Of one thing that is asked; `name` is what the settings call it."""

    def __init__(
        self, log: logging.Logger, name: str, now: Callable[[], float] = monotonic
    ) -> None:
        self._log = log
        self._name = name
        self._now = now
        self._told_at = -_QUIET
        self._told = False  # That it is away, and not yet that it is back.

    def noted(self, why: str) -> None:
        """Say that there is no answer, if it was not said within the last minute."""
        now = self._now()
        if now - self._told_at >= _QUIET:
            self._told_at, self._told = now, True
            self._log.warning("%s: %s; callers are told 503 auth_unavailable", self._name, why)

    def over(self) -> None:
        """Say that there is an answer again, if it was said that there is none."""
        if self._told:
            self._told = False
            self._log.warning("%s: answers again", self._name)

"""Base: what is told of a replica's life, in a few verbs; by default nobody listens.

None of them is for each event or each byte, so that a listener costs a stream a few calls. Another
kind is a class with these methods, given to `Gateway`; no label of its may come from a caller. What
one raises would break what it is told of: it answers for its own faults.
"""

from typing import Protocol


class Telemetry(Protocol):
    """Hears what happens on one replica; must neither wait nor raise."""

    def run_began(self, preset: str) -> None:
        """Tell of a stream that this replica now asks the upstream for, or goes on with."""

    def run_ended(self, preset: str, state: str) -> None:
        """Tell of its end, once; `state` is "" if it became another replica's."""

    def viewer_opened(self) -> None:
        """Tell of somebody who is about to be sent a stream."""

    def viewer_closed(self) -> None:
        """Tell that he has gone, once."""

    def refused(self, code: str) -> None:
        """Tell of a request that was refused, or told to come back, and why."""


class NoTelemetry:
    """Nobody listens."""

    def run_began(self, preset: str) -> None:
        """Do nothing."""

    def run_ended(self, preset: str, state: str) -> None:
        """Do nothing."""

    def viewer_opened(self) -> None:
        """Do nothing."""

    def viewer_closed(self) -> None:
        """Do nothing."""

    def refused(self, code: str) -> None:
        """Do nothing."""


NO_TELEMETRY = NoTelemetry()

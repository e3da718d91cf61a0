"""Failure detector: decides without I/O who is dead, and whether this replica may be thought so.

It is told what each renewal read, and when that was begun and answered, on one monotonic clock in
seconds. Each quorum copy has one; a death is what a quorum of them tells.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence


class FailureDetector:
    """What the counters of one quorum copy tell; `lease` is in seconds."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self.renewed = float("-inf")  # When the last renewal that was answered was begun.
        self._answered = float("-inf")
        self._held_since = float("inf")  # Since when the lease was valid at every moment.
        self._latest: Mapping[str, bytes] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}

    def lease_valid(self, now: float) -> bool:
        """Whether nobody can read a death of this replica yet, with a margin for the send."""
        return now - self.renewed < self._lease * 0.6

    def lease_held_since(self, since: float, now: float) -> bool:
        """Whether nobody can have read a death of this replica since a moment."""
        return self._held_since <= since and self.lease_valid(now)

    def begin(self, now: float) -> None:
        """Note that a renewal begins: who did not look for long did not see others stand still."""
        if now - self.renewed > self._lease * 2 / 3:
            self._seen.clear()

    def failed(self) -> None:
        """Count anew: nobody knows whether a renewal that failed would have told of a beat."""
        self._seen.clear()

    def answered(self, begun: float, now: float, counters: Mapping[str, bytes]) -> None:
        """Note what a renewal read: replica -> its counter."""
        if not self.lease_valid(now):
            self._held_since = now
        self.renewed, self._answered = begun, now
        self._latest = counters

    @property
    def named(self) -> Iterable[str]:
        """The replicas that have a counter."""
        return self._latest

    def suspects(self, names: Iterable[str]) -> set[str]:
        """Return which of these stood still for a lease; one that it has not stands still too.

        It counts from the answer that told to the question of a later one: counted from question
        to question a slow answer would shorten the lease.
        """
        seen, self._seen = self._seen, {}
        still: set[str] = set()
        for name in names:
            count = self._latest.get(name, b"")
            before, since = seen.get(name, (count, self._answered))
            since = since if before == count else self._answered
            self._seen[name] = (count, since)
            if self.renewed - since >= self._lease:
                still.add(name)
        return still

    def count_of(self, name: str) -> bytes | None:
        """Return the counter that stands still, b"" for none, or None if it may not stand still."""
        count, since = self._seen.get(name, (None, 0.0))
        return count if self.renewed - since >= self._lease else None

    def forget(self, name: str) -> None:
        """Begin anew with a replica."""
        self._seen.pop(name, None)


def deaths(detectors: Sequence[FailureDetector], names: Collection[str], quorum: int) -> list[str]:
    """Return which of these so many suspect as make a quorum."""
    votes = [detector.suspects(names) for detector in detectors]
    return [name for name in names if sum(name in suspects for suspects in votes) >= quorum]

"""Tallies: how many of a kind each subject has in this process."""


class Tally:
    """How many of a kind each subject has in this process; who has none is not in it."""

    def __init__(self, most: int) -> None:
        self.counts: dict[str, int] = {}
        self._most = most

    def full(self, subject: str) -> bool:
        """Whether a subject has all that it may have."""
        return 0 < self._most <= self.counts.get(subject, 0)

    def take(self, subject: str) -> None:
        """Count one more."""
        self.counts[subject] = self.counts.get(subject, 0) + 1

    def give(self, subject: str) -> None:
        """Count one less."""
        left = self.counts[subject] - 1
        if left:
            self.counts[subject] = left
        else:
            del self.counts[subject]


class Seat:
    """One more of a subject's, until it is called; a partial would take 250 bytes a viewer."""

    __slots__ = ("_subject", "_tally")

    def __init__(self, tally: Tally, subject: str) -> None:
        self._tally = tally
        self._subject = subject
        tally.take(subject)

    def __call__(self) -> None:
        """Count it no more."""
        self._tally.give(self._subject)

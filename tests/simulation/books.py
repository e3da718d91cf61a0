"""Books: what is booked for the subject of all streams, and how many of them have a slot.

A seal books in the same step on a single Redis. So whatever Redis lost, it has both or neither:
each stream that is sealed is booked once, with the tokens of an end that it had.
"""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from gateway.sse import parse
from gateway.store.keys import subject_keys
from tests.simulation.redis import Args, Id
from tests.simulation.sorted_sets import SortedSet

if TYPE_CHECKING:
    from tests.simulation.world import World

SUBJECT = "alice"
_KEYS = subject_keys(SUBJECT)
_KINDS = ("streams", "prompt", "completion", "cached", "estimated", "cost")


class Sums(NamedTuple):
    """What was booked."""

    streams: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: int = 0
    cost: int = 0


# The most of one answer that came to nothing: 20 pieces of nine bytes, which tell more than they.
_LOST = Sums(0, 10, 45, 0, 55)


class Overrun(NamedTuple):
    """A claim that gave a subject more running streams than it may have."""

    at: float
    running: list[str]


class Books:
    """Watches what one world's Redis keeps of its subject."""

    def __init__(self, world: "World", accuse: Callable[[str, str], None]) -> None:
        self._world = world
        self._accuse = accuse
        self._ends: dict[str, set[Sums]] = {}  # Stream id -> what each end that it had has told.
        self._resets: dict[str, int] = {}  # Stream id -> answers that were paid for and lost.
        self._claimed: list[str] = []  # In the batch at hand, as what follows.
        self._sealed: list[str] = []
        self._overruns: list[Overrun] = []
        world.redis.on_ran = self._ran

    def noted(self, stream_id: str, number: Id, fields: Args) -> None:
        """Look at an entry that a log has got."""
        if number[1] == 0:
            self._claimed.append(stream_id)
        if b"event: reset\n" in fields[1]:
            self._resets[stream_id] = self._resets.get(stream_id, 0) + 1
        if len(fields) > 2:
            self._ends.setdefault(stream_id, set()).add(_told(fields[1]))
            self._sealed.append(stream_id)

    def _ran(self) -> None:
        """Look at what a batch has made."""
        claimed, sealed = self._claimed, self._sealed
        self._claimed, self._sealed = [], []
        for stream_id in sealed:
            # One whose claim Redis forgot, if it ever had one, is cancelled for nothing.
            if any(number[1] == 0 for number, _ in self._world.redis.log(stream_id)):
                self._judge_seal(stream_id)
        most = self._world.settings.limits.streams
        if claimed and most:
            running = [
                name
                for name, each in self._world.streams.items()
                if self._world.redis.record(each.stream_id).get(b"state") == b"starting"
            ]
            if len(running) > most:
                self._overruns.append(Overrun(self._world.loop.time(), running))

    def _judge_seal(self, stream_id: str) -> None:
        if self._booked().count(stream_id) != 1:
            self._accuse("booked once", f"{stream_id} was sealed, and {self._booked()} are booked")
        slots = self._world.redis.redis.value(_KEYS.slots.encode(), dict) or {}
        if stream_id.encode() in slots:
            self._accuse("limits", f"{stream_id} has ended, and keeps its slot")

    def judge(self) -> None:
        """Judge the sums, and who ran too much."""
        sums, booked = self._sums(), self._booked()
        if sums.streams != len(booked):
            self._accuse("booked once", f"{sums} for {booked}")
        ranges = [self._range(stream_id) for stream_id in booked]
        least, most = (_sum(each[end] for each in ranges) for end in (0, 1))
        for kind, low, value, high in zip(_KINDS, least, sums, most, strict=True):
            if not low <= value <= high:
                self._accuse("booked once", f"{value} {kind} where ends told {low} to {high}")
        for each in self._overruns:
            if self._was_well(each.at):
                self._accuse("limits", f"{each.running} ran at once at {each.at:.3f}")

    def _range(self, stream_id: str) -> tuple[Sums, Sums]:
        """Return the least and the most that a stream may have been booked with."""
        told = self._ends.get(stream_id, {Sums()})
        least, most = (Sums(*map(bound, zip(*told, strict=True))) for bound in (min, max))
        # Of what is guessed it is a part: of the prompt's tokens or the completion's.
        least = least._replace(estimated=min(1, least.estimated))
        resets = self._resets.get(stream_id, 0)
        lost = Sums(*(resets * each for each in _LOST))
        return least, _sum([most, lost])

    def _was_well(self, at: float) -> bool:
        """Whether all that ran could say so for two leases; who drains can."""
        since = at - 2 * self._world.settings.lease - 1
        troubles = self._world.troubles
        return not any(a < at and b > since for a, b, what in troubles if what[:5] != "drain")

    def _booked(self) -> list[str]:
        found = self._world.redis.redis.value(_KEYS.booked.encode(), SortedSet) or {}
        return [born.decode().rpartition(":")[0] for born in found]

    def _sums(self) -> Sums:
        self._world.redis.tick()
        sums: dict[str, int] = {}
        redis = self._world.redis.redis
        for key in list(redis.data):
            if b":usage:" in key:
                for name, value in (redis.value(key, dict) or {}).items():
                    kind = name.decode().rpartition("\n")[2]
                    sums[kind] = sums.get(kind, 0) + int(value)
        return Sums(*(sums.get(kind, 0) for kind in _KINDS))


def _sum(all_of_them: Iterable[Sums]) -> Sums:
    return Sums(*map(sum, zip(Sums(), *all_of_them, strict=True)))


def _told(frames: bytes) -> Sums:
    end = next(event for event in parse(frames) if event.name == b"end")
    tokens = json.loads(end.data)["tokens"] or {}
    prompt, completion, cached = (tokens.get(n) or 0 for n in ("prompt", "completion", "cached"))
    guessed = prompt + completion if tokens.get("estimated") else 0
    return Sums(1, prompt, completion, cached, guessed)

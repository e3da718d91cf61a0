"""Schedule: all that a run does, drawn from one seed. Pure.

World faults follow one another with a short pause; streams begin between them, so that a slow
machine meets the same faults at the same streams, only later.
"""

import random
from dataclasses import dataclass, field

REPLICA_FAULTS = ("kill", "term", "pause_short", "pause_long")
REDIS_FAULTS = ("redis_restart", "redis_empty", "redis_pause")
SENTINEL_FAULTS = ("failover",)
CLUSTER_FAULTS = ("failover", "reshard")
NGINX_FAULTS = ("reload",)
UPSTREAM_FAULTS = ("cut", "stall", "garbage", "slow", "refuse")
VIEWER_FAULTS = (
    *("viewer_pause", "viewer_cut", "duplicate", "resend"),
    *("leave", "away", "page_reload", "delete"),
)

USERS = 5
GARBAGE = ("junk", "html", "no_http", "bad_chunk", "error")
# What a call is answered with, one status an attempt, before it is answered in earnest.
REFUSALS = ((503,), (429,), (429, 503), (500, 502), (503, 503, 503), (400,), (401,))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the upstream does with the calls of one ticket."""

    events: int
    interval: float  # Seconds between two events.
    padding: int = 0  # Bytes that make an event large.
    fault: str = ""
    at: int = 0  # The events before the fault.
    variant: str = ""
    refusals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Act:
    """What a viewer does `at` seconds after it began, for `length` seconds."""

    at: float
    kind: str
    length: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """One viewer of a stream; it begins `delay` seconds after the ticket was there."""

    delay: float = 0.0
    acts: tuple[Act, ...] = ()
    direct: bool = False  # Past nginx, to a replica.


@dataclass(frozen=True, slots=True)
class Stream:
    """One ticket: what is asked, who watches, whether it is cancelled."""

    number: int
    delay: float  # Seconds after the step it belongs to began.
    answer: Answer
    watches: tuple[Watch, ...]
    delete_at: float | None = None
    preset: str = ""
    fault: str = ""  # Of the viewers, or the DELETE.
    kept: bool = False  # Whether the upstream goes on with it while nobody is connected.

    @property
    def user(self) -> str:
        """Whose it is."""
        return f"user {self.number % USERS}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a process: `where` picks it and `how` is its strength, both 0 to 1."""

    kind: str
    where: float
    how: float


@dataclass(frozen=True, slots=True)
class Step:
    """One world fault, the streams that begin beside it, and the pause after it."""

    fault: Fault | None
    streams: tuple[Stream, ...]
    pause: float


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of what; lives and pauses in seconds, as (least, most)."""

    streams: int
    faults: dict[str, int] = field(default_factory=dict)
    life: tuple[float, float] = (4.0, 16.0)
    pause: tuple[float, float] = (0.2, 1.6)
    share: float = 0.085  # Of the streams, that each kind of stream fault gets.
    kept: float = 0.5  # Of the streams, whose upstream keeps its answer.


def draw(seed: int, shape: Shape, first: int = 0) -> list[Step]:
    """Return the steps of a seed; streams are numbered from `first`."""
    chance = random.Random(f"faults {seed} {first}")
    kinds = [kind for kind, count in shape.faults.items() for _ in range(count)]
    chance.shuffle(kinds)
    streams = _streams(chance, shape, first)
    steps: list[Step] = []
    for number, kind in enumerate(kinds):
        pause = chance.uniform(*shape.pause)
        begin, end = (len(streams) * each // len(kinds) for each in (number, number + 1))
        fault = Fault(kind, chance.random(), chance.random())
        steps.append(Step(fault, tuple(streams[begin:end]), pause))
    return steps or [Step(None, tuple(streams), 0.0)]


def _streams(chance: random.Random, shape: Shape, first: int) -> list[Stream]:
    upstream = _deck(chance, UPSTREAM_FAULTS, shape)
    viewer = _deck(chance, VIEWER_FAULTS, shape)
    return [
        _stream(chance, shape, first + number, upstream[number], viewer[number])
        for number in range(shape.streams)
    ]


def _deck(chance: random.Random, kinds: tuple[str, ...], shape: Shape) -> list[str]:
    each = max(1, round(shape.streams * shape.share))
    deck = [kind for kind in kinds for _ in range(each)]
    deck += [""] * (shape.streams - len(deck))
    chance.shuffle(deck)
    return deck[: shape.streams]


def _stream(chance: random.Random, shape: Shape, number: int, fault: str, viewer: str) -> Stream:
    life = chance.uniform(*shape.life)
    answer = _answer(chance, life, fault, viewer)
    when = chance.uniform(0, life * 0.7)
    watches = [Watch(direct=chance.random() < 0.3), *_others(chance, life, viewer)]
    acts = _acts(chance, viewer, when)
    watches[0] = Watch(0.0, acts, watches[0].direct)
    kept = chance.random() < shape.kept
    return Stream(
        number=number,
        delay=chance.uniform(0, shape.pause[1]),
        answer=answer,
        watches=tuple(watches),
        delete_at=chance.choice([when, when, 0.0]) if viewer == "delete" else None,
        preset="kept" * kept + "brief" * (viewer == "away"),
        fault=viewer,
        kept=kept,
    )


def _answer(chance: random.Random, life: float, fault: str, viewer: str) -> Answer:
    interval = chance.uniform(0.04, 0.2)
    events = max(3, int(life / interval))
    return Answer(
        events=events,
        interval=interval,
        padding=_unread(events) if viewer == "viewer_pause" else chance.choice([0, 0, 0, 2000]),
        fault=fault,
        at=chance.randint(0, events),
        variant=chance.choice(GARBAGE) if fault == "garbage" else chance.choice(["rst", "fin"]),
        refusals=chance.choice(REFUSALS) if fault == "refuse" else (),
    )


def _unread(events: int) -> int:
    """Return a padding that fills the sockets' buffers between a replica and who does not read."""
    return min(9_000_000 // events, 500_000)


def _others(chance: random.Random, life: float, viewer: str) -> list[Watch]:
    if viewer == "away":  # Nobody else may be there, or nobody would miss it.
        return []
    if viewer == "duplicate":
        return [Watch(direct=True) for _ in range(chance.randint(1, 3))]
    if viewer == "page_reload" or chance.random() < 0.25:
        return [Watch(delay=chance.uniform(0, life), direct=chance.random() < 0.3)]
    return []


def _acts(chance: random.Random, viewer: str, when: float) -> tuple[Act, ...]:
    if viewer == "viewer_pause":
        return (Act(min(when, 1.0), "pause", chance.uniform(3, 6)),)
    if viewer == "viewer_cut":
        cuts = sorted(chance.uniform(0, 2 * when + 0.5) for _ in range(chance.randint(1, 4)))
        return tuple(Act(at, "cut") for at in cuts)
    if viewer == "resend":
        return (Act(0.0, "resend"), Act(when, "resend"))
    if viewer == "leave":
        return (Act(when, "leave", chance.uniform(0.5, 4)),)
    if viewer == "away":  # Longer than the preset's grace of 3 s, and all that may lengthen it.
        return (Act(when, "leave", chance.uniform(5, 9)),)
    return ()

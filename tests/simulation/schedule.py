"""Schedules: what happens in one run, as data. A seed makes one; shrinking takes parts away."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.simulation.upstream import ENDS

Act = dict[str, Any]

CALM = 10.0  # From this second on nothing more goes wrong.
RESTARTS = 4  # The profile that pays again for what a dead replica ran.
LIMITED = 5  # Added to a profile, it is one with limits.
HOOKED = 10  # Added to a profile, it is one with webhooks.
HOWS = (
    *("drop_request", "drop_reply", "half", "hang", "hang_after", "late", "oom", "readonly"),
    *("freeze", "freeze", "murder", "murder_after"),
)
TARGETS = ("any", "XADD", "claim", "seal", "hold", "create", "cancel", "takeover", "beat")
OF_LIMITS = ("admit", "settle", "permit", "book")
OF_HOOKS = ("owe", "tell", "put_off", "told", "seal", "cancel")
MORE_TARGETS = ("HMGET", "XRANGE", "SET", "SADD", "PUBLISH", "SREM", "EXISTS")


@dataclass(frozen=True)
class Schedule:
    """One run: how many replicas, what the streams are, and what is done to them, and when."""

    seed: int
    replicas: int
    profile: int
    streams: tuple[Act, ...]
    acts: tuple[Act, ...]

    def without(self, gone: set[int]) -> "Schedule":
        """Return a schedule that lacks some of its acts."""
        kept = tuple(act for number, act in enumerate(self.acts) if number not in gone)
        return replace(self, acts=kept)


# From this seed on some viewers follow their stream on the connection of its channel.
COMPOSITE = 1000


def from_json(text: str) -> Schedule:
    """Return a schedule that was kept as JSON."""
    plain = json.loads(text)
    return Schedule(**{**plain, "streams": tuple(plain["streams"]), "acts": tuple(plain["acts"])})


def make(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    rng = random.Random(f"schedule {seed}")
    replicas = rng.choice((2, 2, 3))
    streams = [_stream(rng, number) for number in range(rng.choice((1, 1, 1, 2, 3)))]
    acts: list[Act] = []
    for stream in streams:
        acts += _people(rng, stream, replicas)
    # Some runs without any fault: there nothing at all may go wrong.
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        acts.append(_fault(rng, replicas, rng.choice(streams)["at"]))
    if rng.random() < 0.15:
        acts += _zombie(rng, replicas, rng.choice(streams)["at"])
    acts += _afterwards(random.Random(f"afterwards {seed}"), streams)
    kept = random.Random(f"kept {seed}")  # Of its own chance, too.
    if kept.random() < 0.25:
        for stream in streams:
            stream["kept"] = kept.random() < 0.8
            if kept.random() < 0.5:
                stream["script"][-1]["end"] = kept.choice(("cut", "eof", "half", "stall"))
            if kept.random() < 0.3:
                act = {"act": "cancel", "stream": stream["name"], "form": "DELETE"}
                at = round(stream["at"] + kept.uniform(0.3, 4), 4)
                acts.append({**act, "at": at, "host": kept.randrange(3)})
    one = random.Random(f"composite {seed}")
    if seed >= COMPOSITE and one.random() < 0.3:
        for act in acts:
            if act["act"] == "view":
                act["composite"] = one.random() < 0.6
    acts.sort(key=lambda act: float(act["at"]))
    profile = rng.randrange(4)
    if rng.random() < 0.2:
        profile = RESTARTS
    limits = random.Random(f"limits {seed}")  # What was without them, stays as it was.
    if limits.random() < 0.3:
        profile += LIMITED
        acts += [_of_limits(limits, streams) for _ in range(limits.choice((0, 0, 1, 2)))]
        acts.sort(key=lambda act: float(act["at"]))
    hooks = random.Random(f"hooks {seed}")
    if hooks.random() < 0.15:
        profile += HOOKED
        acts += [_of_hooks(hooks, streams) for _ in range(hooks.choice((0, 1, 1, 2)))]
        acts.sort(key=lambda act: float(act["at"]))
    acts = sorted([*acts, *_of_channel(random.Random(f"channel {seed}"))], key=_at)
    return Schedule(seed, replicas, profile, tuple(streams), tuple(acts))


def _at(act: Act) -> float:
    return float(act["at"])


def _of_channel(rng: random.Random) -> list[Act]:
    """Make the messages of two who write to one user's channel, and pages that listen."""
    if rng.random() > 0.2:
        return []
    acts: list[Act] = []
    for number in range(rng.choice((6, 12, 24))):
        at, writer = round(rng.choice((2.0, 9.0)) * rng.random(), 4), rng.randrange(2)
        acts.append({"act": "push", "at": at, "writer": writer, "text": f"m{number}."})
        acts[-1] |= {"seed": rng.randrange(1 << 30), "twice": rng.random() < 0.3}
    for _ in range(rng.choice((1, 1, 2))):
        act = _viewer(rng, {"name": "", "at": 3 * rng.random(), "key": False}, stays=True)
        del act["stream"]
        acts.append({**act, "act": "listen", "reloads": False, "start": rng.random() < 0.3})
    for _ in range(rng.choice((0, 1, 2))):
        at = round(5 * rng.random(), 4)
        acts.append({"act": "trap", "at": at, **_trap(rng, 2), "on": "push"})
    for _ in range(rng.choice((0, 0, 1, 2))):
        lost = {"act": "failover", "at": round(6 * rng.random(), 4), **_failover(rng, 2)}
        acts.append(lost if rng.random() < 0.8 else {"act": "flush", "at": lost["at"]})
    return acts


def _afterwards(rng: random.Random, streams: list[Act]) -> list[Act]:
    """Make further acts by chance of their own: what a seed was before, it stays."""
    acts: list[Act] = []
    for stream in streams:
        for answer in stream["script"]:
            if answer["status"] == 500:
                answer["status"] = rng.choice((500, 502, 504, 529))
        for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
            # Who looks, or has enough, long after; also when all that goes wrong is over.
            act = {"stream": stream["name"], "at": round(rng.uniform(0.5, 14), 4)}
            act |= {"host": rng.randrange(3), "hold": 0.05}
            act["act"] = rng.choice(("completion", "completion", "cancel", "ghost"))
            acts.append({**act, "form": "DELETE"} if act["act"] == "cancel" else act)
    if rng.random() < 0.03:
        trap = {"act": "trap", "at": round(rng.uniform(0, 4), 4), "host": -1, "seconds": 0.0}
        on, seed = rng.choice(("seal", "seal", "hold", "takeover")), rng.randrange(1 << 30)
        acts += [{**trap, "on": on, "how": "nonsense", "seed": seed}] * rng.choice((1, 1, 3, 5))
    return acts


def _of_limits(rng: random.Random, streams: list[Act]) -> Act:
    at = round(rng.choice(streams)["at"] + rng.choice((0.1, 4.0)) * rng.random(), 4)
    trap = {"act": "trap", "at": at, **_trap(rng, 2)}
    return {**trap, "on": rng.choice(OF_LIMITS)}


def _of_hooks(rng: random.Random, streams: list[Act]) -> Act:
    at = round(rng.choice(streams)["at"] + 5 * rng.random(), 4)
    return {"act": "trap", "at": at, **_trap(rng, 2), "on": rng.choice(OF_HOOKS)}


def _stream(rng: random.Random, number: int) -> Act:
    refusals = rng.choice((0, 0, 0, 0, 1, 1, 2, 4))
    script = [_answer(rng, status=rng.choice((429, 500, 503))) for _ in range(refusals)]
    script.append(_answer(rng, status=rng.choice((200,) * 14 + (0, -1, 400, 401))))
    return {
        "name": f"s{number}",
        "at": round(rng.uniform(0, 3), 3),
        "key": rng.random() < 0.6,
        "host": rng.randrange(3),
        "script": script,
    }


def _answer(rng: random.Random, status: int) -> Act:
    slow = rng.random() < 0.3  # Long enough to be taken over, or to outlive the grace.
    ends = ("done",) * 8 + ("at_once", "at_once", "finish_only") + tuple(ENDS)
    return {
        "status": status,
        "events": rng.choice((12, 20)) if slow else rng.choice((0, 1, 3, 5, 8, 12, 20)),
        "wait": round(rng.choice((0.0, 0.01, 0.3, 1.5)) * rng.random(), 4),
        "gap": round((0.4 if slow else rng.choice((0.001, 0.02, 0.1))) * (0.5 + rng.random()), 4),
        "end": rng.choice(ends),
        "seed": rng.randrange(1 << 30),
    }


def _people(rng: random.Random, stream: Act, replicas: int) -> list[Act]:
    acts = [_viewer(rng, stream, stays=rng.random() < 0.8)]
    acts += [
        _viewer(rng, stream, stays=rng.random() < 0.5) for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    name, begin = stream["name"], stream["at"]
    for _ in range(rng.choice((0, 0, 1, 2))):
        # What a browser or nginx sends again: to any replica, at any moment.
        acts.append(
            {
                "act": "ghost",
                "stream": name,
                "at": _near(rng, begin, 1.0),
                "host": rng.randrange(3),
                "hold": round(rng.choice((0.0, 0.002, 0.1)) * rng.random(), 5),
            }
        )
    if rng.random() < 0.3:
        at, form = _near(rng, begin, 4.0), rng.choice(("DELETE", "beacon"))
        acts.append(
            {"act": "cancel", "stream": name, "at": at, "host": rng.randrange(3), "form": form}
        )
    if rng.random() < 0.3:
        at = _near(rng, begin, 4.0)
        acts.append({"act": "completion", "stream": name, "at": at, "host": rng.randrange(3)})
    if stream["key"] and rng.random() < 0.4:
        at = _near(rng, begin, 5.0)
        acts.append({"act": "repost", "stream": name, "at": at, "host": rng.randrange(3)})
    return acts


def _viewer(rng: random.Random, stream: Act, *, stays: bool) -> Act:
    leaves: list[list[float]] = []
    at = _near(rng, stream["at"], 1.5)
    when = at
    for _ in range(rng.choice((0, 0, 1, 2))):
        when = round(when + rng.uniform(0.01, 3), 4)
        back = round(when + 0.0005 + rng.choice((0.001, 0.1, 1.0, 5.0)) * rng.random(), 4)
        leaves.append([when, back])
        when = back
    if not stays:
        leaves.append([round(when + rng.uniform(0.0, 4), 4), 0.0])
    return {
        "act": "view",
        "stream": stream["name"],
        "at": at,
        "leaves": leaves,
        "seed": rng.randrange(1 << 30),
        "post": bool(stream["key"]) and rng.random() < 0.15,
        "lend": rng.random() < 0.7,  # Whether the server lends its socket, as ours does.
        "sticks": rng.random() < 0.1,  # It stops reading for a while.
        "reloads": rng.random() < 0.15,  # It comes back without its last id.
        "flaky": rng.random() < 0.25,  # Its connection breaks in the middle of what comes.
    }


def _near(rng: random.Random, begin: float, spread: float) -> float:
    return round(begin + 0.02 + spread * rng.choice((0.01, 0.1, 1.0)) * rng.random(), 4)


def _fault(rng: random.Random, replicas: int, begin: float) -> Act:
    kind = rng.choice(_KINDS)
    at = round(begin + rng.choice((0.1, 1.0, 1.0, 4.0)) * rng.random(), 4)
    return {"act": kind.__name__.strip("_"), "at": at, **kind(rng, replicas)}


def _zombie(rng: random.Random, replicas: int, begin: float) -> list[Act]:
    """An owner that is cut off until another takes its stream over, and comes back meanwhile."""
    if rng.random() < 0.3:  # Before it has asked its upstream, or while it writes.
        on, seconds = rng.choice(("claim", "claim", "XADD")), round(rng.uniform(2.5, 4.0), 4)
        frozen = {"act": "trap", "at": begin, "host": -1, "on": on, "how": "freeze", "seed": 0}
        return [{**frozen, "seconds": seconds}]
    at, host = round(begin + 0.5 + rng.random(), 4), rng.randrange(replicas)
    act = rng.choice(("pause", "block", "trap"))
    seconds = round(rng.uniform(1.5, 4.0), 4)
    late = {"on": "XADD", "how": "late", "seed": 0}
    first = {
        "act": act,
        "at": at,
        "host": host,
        "seconds": seconds,
        **(late if act == "trap" else {}),
    }
    second = {
        "act": "trap",
        "at": at,
        "host": -1,
        "seconds": round(rng.uniform(0.1, 2.0), 4),
        "on": rng.choice(("seal", "takeover", "XRANGE")),
        "how": rng.choice(HOWS),
        "seed": 0,
    }
    return [first, second]


def _short(rng: random.Random) -> float:
    return round(rng.choice((0.05, 0.6, 2.0, 4.0)) * (0.3 + rng.random()), 4)


def _trap(rng: random.Random, replicas: int) -> Act:
    targets = TARGETS if rng.random() < 0.8 else MORE_TARGETS
    return {
        "on": rng.choice(targets),
        "how": rng.choice(HOWS),
        "host": rng.randrange(replicas) if rng.random() < 0.3 else -1,
        "seconds": _short(rng),
        "seed": rng.randrange(1 << 30),
    }


def _pause(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(replicas), "seconds": _short(rng)}


def _kill(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(replicas), "seconds": _short(rng)}


def _drain(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(replicas), "seconds": _short(rng)}


def _block(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(replicas), "seconds": _short(rng)}


def _away(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng)}


def _down(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng)}


def _slow(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng), "delay": rng.choice((0.02, 0.3, 1.5))}


def _full(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng), "share": rng.choice((0.1, 0.5, 1.0))}


def _failover(rng: random.Random, replicas: int) -> Act:
    lost = rng.choice((0, 1, 2, 5, 20))
    clock = round(rng.choice((0.0, 0.0, 0.01, 1.0)) * rng.uniform(-1, 1), 4)
    return {"lost": lost, "clock": clock, "seconds": _short(rng) if rng.random() < 0.6 else 0.0}


def _empty(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng) if rng.random() < 0.6 else 0.0}


def _flush(rng: random.Random, replicas: int) -> Act:
    return {}


def _clock(rng: random.Random, replicas: int) -> Act:
    return {"by": round(rng.choice((0.01, 1.0, 4.0)) * rng.uniform(-1, 1), 4)}


def _cut(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(-1, replicas)}


def _deafen(rng: random.Random, replicas: int) -> Act:
    return {"host": rng.randrange(-1, replicas)}


def _refuse(rng: random.Random, replicas: int) -> Act:
    return {"seconds": _short(rng)}


_KINDS: tuple[Callable[[random.Random, int], Act], ...] = (
    *(_trap,) * 6,
    *(_pause, _pause, _kill, _kill, _drain, _block, _away, _down, _slow, _full),
    *(_failover, _failover, _empty, _flush, _clock, _cut, _deafen, _refuse),
)


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return a schedule that still fails and has no act that it could do without."""
    size = max(1, len(schedule.acts) // 2)
    while True:
        start, smaller = 0, False
        while start < len(schedule.acts):
            candidate = schedule.without(set(range(start, start + size)))
            if fails(candidate):
                schedule, smaller = candidate, True
            else:
                start += size
        if size == 1 and not smaller:
            fewer = _fewer_streams(schedule)
            return fewer if fails(fewer) else schedule
        size = max(1, size // 2)


def _fewer_streams(schedule: Schedule) -> Schedule:
    used = {act["stream"] for act in schedule.acts if "stream" in act}
    return replace(schedule, streams=tuple(s for s in schedule.streams if s["name"] in used))

"""Permits: whether a subject may ask for one more completion, or begin one, and what is left then.

What runs has a slot in Redis, with what it may take: a lease on Redis's time, which the run's owner
prolongs. So whatever died holds nothing for longer than a lease, and a Redis that forgot learns of
what runs within one.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gateway.config.user_limits import BILLION, Bounds
from gateway.errors import Unavailable
from gateway.store.client import RedisClient, Script
from gateway.store.keys import SubjectKeys, subject_keys

_SOON = 60  # Seconds, the longest that is told where nobody knows.


class Taken(NamedTuple):
    """Tokens and cost of one stream, as expected before it ends; the cost in billionths."""

    tokens: int = 0
    cost: int = 0


class Slot(NamedTuple):
    """A stream that runs, and what it may take; or that is over, without a preset."""

    stream_id: str
    tokens: int = 0
    cost: int = 0
    preset: str = ""


class Left(NamedTuple):
    """What a subject has left, -1 where there is no bound; times in seconds."""

    minute: int  # Until there are more POSTs.
    day: int  # Until the day is over.
    posts: int
    streams: int
    tokens: int
    cost: int  # In billionths.
    today: int  # The day at hand since 1970, of UTC and by Redis's clock.

    def told(self) -> dict[str, int | float]:
        """Return what is bounded by the names of the limits."""
        values = {
            "posts_per_minute": self.posts,
            "streams": self.streams,
            "tokens_per_day": self.tokens,
            "cost_per_day": self.cost / BILLION if self.cost > 0 else self.cost,
        }
        return {name: value for name, value in values.items() if value >= 0}

    def headers(self, bounds: Bounds) -> dict[str, str]:
        """Return what draft-ietf-httpapi-ratelimit-headers tells, of POSTs and tokens."""
        most = {
            "posts": (_least(bounds, "posts_per_minute"), 60, self.posts, self.minute),
            "tokens": (_least(bounds, "tokens_per_day"), 86400, self.tokens, self.day),
        }
        bounded = {name: each for name, each in most.items() if each[0]}
        if not bounded:
            return {}
        policies = (f'"{name}";q={q};w={w}' for name, (q, w, _, _) in bounded.items())
        rests = (f'"{name}";r={max(0, r)};t={t}' for name, (_, _, r, t) in bounded.items())
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(rests)}


class Permits:
    """What Redis knows of subjects' slots and spending; `lease` is in seconds."""

    def __init__(self, store: RedisClient, bounds: Callable[[str], Bounds], lease: float) -> None:
        self.bounds = bounds
        self.lease = int(lease * 1000)
        self._store = store

    def to_ask(self, subject: str, stream_id: str, preset: str) -> Script:
        """Return the script that counts a POST, if it may be."""
        return self._script("post", subject, stream_id, preset, self.bounds(preset))

    def to_run(self, subject: str, stream_id: str, preset: str, taken: Taken) -> Script:
        """Return the script that gives a stream its slot, if there is one."""
        return self._script("run", subject, stream_id, preset, self.bounds(preset), taken)

    def held(self, subject: str, slots: Iterable[Slot]) -> Script:
        """Return the script that says anew what runs, and what does not any more."""
        args = [part for each in slots for part in each]
        return Script("permit", _of_runs(subject_keys(subject)), ["hold", self.lease, *args])

    async def before(self, permit: Script, claim: Script) -> list[Any]:
        """Run a permit, and a claim if it was given; return the replies; raises Unavailable."""
        if self._store.cluster is None:
            return await self._store.chain([permit, claim])
        reply = await self._store.script(*permit)  # A subject is on another server.
        return [reply, await self._store.script(*claim)] if reply[0] else [reply]

    async def left(self, subject: str, preset: str, bounds: Bounds) -> Left:
        """Return what is left of these bounds; raises Unavailable."""
        script = self._script("look", subject, "", preset, bounds)
        return left_of(await self._store.script(*script))

    def _script(
        self,
        kind: str,
        subject: str,
        stream_id: str,
        preset: str,
        bounds: Bounds,
        taken: Taken = Taken(),  # noqa: B008 (it is a tuple)
    ) -> Script:
        keys = subject_keys(subject)
        of = [*_of_runs(keys), keys.posts, keys.posts_of(preset)]
        return Script("permit", of, [kind, self.lease, stream_id, preset, *taken, *bounds.args])


def _of_runs(keys: SubjectKeys) -> list[str]:
    return [keys.slots, keys.leases, keys.today]


def left_of(reply: list[Any]) -> Left:
    """Return what the script says is left."""
    soon, night, *left = reply[3:]
    return Left(_seconds(soon), _seconds(night), *left)


def refused(reply: list[Any], bounds: Bounds) -> Unavailable | None:
    """Return why the script refused, None if it did not."""
    if reply[0]:
        return None
    left = left_of(reply)
    error = _REFUSALS[reply[1]]()
    spent = [name for name, value in left.told().items() if not value and name in _OF_A_DAY]
    if error.code == "quota_exhausted" and spent:
        error.detail += f" ({', '.join(spent)})"
    error.headers = {"Retry-After": str(_seconds(reply[2])), **left.headers(bounds)}
    return error


_OF_A_DAY = frozenset(("tokens_per_day", "cost_per_day"))
_REFUSALS: dict[bytes, Callable[[], Unavailable]] = {
    b"rate_limited": lambda: Unavailable("rate_limited", "Too many within a minute."),
    b"too_many_streams": lambda: Unavailable("too_many_streams", "Wait for one, or cancel one."),
    b"quota_exhausted": lambda: Unavailable("quota_exhausted", "What a day allows is spent"),
    b"quota_reserved": lambda: Unavailable("quota_exhausted", "What runs may take all the rest"),
}


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)


def _least(bounds: Bounds, name: str) -> int:
    return min((most for each in bounds.both if (most := getattr(each, name))), default=0)

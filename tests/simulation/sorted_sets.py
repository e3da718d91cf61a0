"""Sorted sets of the small Redis: members in the order of their scores, then of their bytes."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.redis import Redis

Pairs = list[tuple[float, bytes]]


class SortedSet(dict[bytes, float]):
    """Scores by member."""

    def ordered(self) -> Pairs:
        """Return scores and members, the least first."""
        return sorted((score, member) for member, score in self.items())


def _pairs(redis: "Redis", key: bytes) -> Pairs:
    return (redis.value(key, SortedSet) or SortedSet()).ordered()


def _number(text: bytes) -> float:
    number = float(text)
    if math.isnan(number):
        raise ValueError("not a valid float")
    return number


def told(score: float) -> bytes:
    """Return a score as Redis says it."""
    if score.is_integer() and abs(score) < 1 << 53:
        return b"%d" % score
    return repr(score).encode()


def _listed(pairs: Pairs, *, scores: bool) -> list[Any]:
    if scores:
        return [part for score, member in pairs for part in (member, told(score))]
    return [member for _, member in pairs]


def _by_score(pairs: Pairs, low: bytes, high: bytes) -> Pairs:
    least, most = (_number(each.removeprefix(b"(")) for each in (low, high))
    return [
        each
        for each in pairs
        if (each[0] > least or (each[0] == least and not low.startswith(b"(")))
        and (each[0] < most or (each[0] == most and not high.startswith(b"(")))
    ]


def _by_rank(pairs: Pairs, start: bytes, stop: bytes) -> Pairs:
    size = len(pairs)
    first, last = (int(each) + (size if int(each) < 0 else 0) for each in (start, stop))
    return pairs[max(0, first) : max(0, last + 1)]


def _limited(pairs: Pairs, words: list[bytes]) -> Pairs:
    if b"LIMIT" not in words:
        return pairs
    at = words.index(b"LIMIT")
    offset, count = int(words[at + 1]), int(words[at + 2])
    return pairs[offset:] if count < 0 else pairs[offset : offset + count]


def _zadd(redis: "Redis", key: bytes, *rest: bytes) -> Any:
    words, options = list(rest), set[bytes]()
    while words[0].upper() in {b"NX", b"XX", b"GT", b"LT", b"CH"}:
        options.add(words.pop(0).upper())
    scores = [_number(each) for each in words[::2]]
    found = redis.value(key, SortedSet)
    if found is None and b"XX" in options:
        return 0
    found = redis.make(key, SortedSet)
    added = changed = 0
    for score, member in zip(scores, words[1::2], strict=True):
        old = found.get(member)
        if _allows(options, old, score):
            added += old is None
            changed += old != score
            found[member] = score
    return changed if b"CH" in options else added


def _allows(options: set[bytes], old: float | None, score: float) -> bool:
    if old is None:
        return b"XX" not in options
    kept = b"NX" in options or (b"GT" in options and score <= old)
    return not kept and not (b"LT" in options and score >= old)


def _zrem(redis: "Redis", key: bytes, *members: bytes) -> Any:
    return redis.drop(key, redis.value(key, SortedSet), members)


def _zscore(redis: "Redis", key: bytes, member: bytes) -> Any:
    score = (redis.value(key, SortedSet) or {}).get(member)
    return None if score is None else told(score)


def _zcard(redis: "Redis", key: bytes) -> Any:
    return len(redis.value(key, SortedSet) or ())


def _zcount(redis: "Redis", key: bytes, low: bytes, high: bytes) -> Any:
    return len(_by_score(_pairs(redis, key), low, high))


def _zrange(redis: "Redis", key: bytes, start: bytes, stop: bytes, *rest: bytes) -> Any:
    words = [each.upper() for each in rest]
    if b"BYSCORE" in words:
        by_score = _zrevrangebyscore if b"REV" in words else _zrangebyscore
        return by_score(redis, key, start, stop, *rest)
    pairs = _pairs(redis, key)[:: -1 if b"REV" in words else 1]
    return _listed(_by_rank(pairs, start, stop), scores=b"WITHSCORES" in words)


def _zrevrange(redis: "Redis", key: bytes, start: bytes, stop: bytes, *rest: bytes) -> Any:
    return _zrange(redis, key, start, stop, b"REV", *rest)


def _zrangebyscore(redis: "Redis", key: bytes, low: bytes, high: bytes, *rest: bytes) -> Any:
    words = [each.upper() for each in rest]
    found = _limited(_by_score(_pairs(redis, key), low, high), words)
    return _listed(found, scores=b"WITHSCORES" in words)


def _zrevrangebyscore(redis: "Redis", key: bytes, high: bytes, low: bytes, *rest: bytes) -> Any:
    words = [each.upper() for each in rest]
    found = _limited(_by_score(_pairs(redis, key), low, high)[::-1], words)
    return _listed(found, scores=b"WITHSCORES" in words)


def _zremrangebyscore(redis: "Redis", key: bytes, low: bytes, high: bytes) -> Any:
    return _zrem(redis, key, *_listed(_by_score(_pairs(redis, key), low, high), scores=False))


def _zremrangebyrank(redis: "Redis", key: bytes, start: bytes, stop: bytes) -> Any:
    return _zrem(redis, key, *_listed(_by_rank(_pairs(redis, key), start, stop), scores=False))


COMMANDS: dict[bytes, Callable[..., Any]] = {
    b"ZADD": _zadd,
    b"ZCARD": _zcard,
    b"ZCOUNT": _zcount,
    b"ZRANGE": _zrange,
    b"ZRANGEBYSCORE": _zrangebyscore,
    b"ZREM": _zrem,
    b"ZREMRANGEBYRANK": _zremrangebyrank,
    b"ZREMRANGEBYSCORE": _zremrangebyscore,
    b"ZREVRANGE": _zrevrange,
    b"ZREVRANGEBYSCORE": _zrevrangebyscore,
    b"ZSCORE": _zscore,
}

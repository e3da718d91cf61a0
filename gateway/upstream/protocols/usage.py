"""Usage: what an upstream tells of the price, merged and bounded. Pure.

It goes into `end`, into the record and into every answer. It may come in one event or in each, and
each may add to it: so not only its members are bounded, but all of them together.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

_DEPTH, _WIDTH, _LONG = 6, 100, 1000
_HEAVY = 16 * 1024  # Bytes, above which only its numbers are kept.
_MOST = 1 << 53  # Tokens: beyond it a page's numbers are no longer whole.


class Usage:
    """What was told so far; the last word counts, key by key."""

    __slots__ = ("_since", "told")

    def __init__(self) -> None:
        self.told: dict[str, Any] | None = None
        self._since = 0  # Bytes of the events that told of it since its weight was looked at.

    def see(self, places: Iterable[Any], size: int) -> None:
        """Take note of what an event of this size tells in these places, the last one the most."""
        for usage in _usages(places):
            if told := _merged(self.told or {}, usage):
                self._since += size
                self.told = told if self._since <= _HEAVY else self._weighed(told)

    def _weighed(self, told: dict[str, Any]) -> dict[str, Any]:
        self._since = 0
        return told if len(json.dumps(told)) <= _HEAVY else _numbers(told)


def count_in(usage: dict[str, Any] | None, *paths: str) -> int | None:
    """Return the first of these members, as `a.b`, that is a number of tokens; None if none is."""
    for path in paths:
        found: Any = usage
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if type(found) in (int, float) and 0 <= found < _MOST and found == int(found):
            return int(found)
    return None


def sum_in(usage: dict[str, Any], *paths: str) -> int | None:
    """Return the sum of these members that are numbers of tokens, None if none is."""
    found = [count for path in paths if (count := count_in(usage, path)) is not None]
    return sum(found) if found and sum(found) < _MOST else None


def _usages(places: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for place in places:
        if isinstance(place, dict) and isinstance(place.get("usage"), dict):
            yield place["usage"]


def _merged(old: dict[str, Any], new: dict[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Return a usage with what was told since: key by key, and nothing takes a number back."""
    merged = dict(old)
    for key, value in new.items():
        if len(key) > _WIDTH or (key not in merged and len(merged) >= _WIDTH):
            continue
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and depth:
            merged[key] = _merged(before, value, depth - 1)
        elif (plain := _plain(value, depth)) is not None or key not in merged:
            merged[key] = plain
    return merged


def _plain(value: Any, depth: int) -> Any:
    """Return a value as JSON that any page can read, null for what would not be or is too large."""
    if isinstance(value, dict):
        return _merged({}, value, depth - 1) if depth > 0 else None
    if isinstance(value, list):
        return [_plain(each, depth - 1) for each in value[:_WIDTH]] if depth > 0 else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if isinstance(value, str) and len(value) > _LONG else value


def _numbers(usage: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in usage.items() if type(value) in (int, float)}
    return {key: value for key, value in found.items() if abs(value) < 1 << 63}

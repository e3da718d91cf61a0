"""SSE paths: where something is in the JSON of a declared API's events, and what marks their end.

Each has a gate: what must be among an event's bytes, so that those which have nothing of it are not
decoded. Pure.
"""

import json
import re
from typing import Any

from gateway.sse import Event, safe_name
from gateway.upstream.protocols.chat_chunks import decoded

_PLAIN = re.compile(r'[^"\\\x00-\x1f\x7f-\U0010ffff/]+')  # What no writer of JSON escapes.


class Path:
    """A path of names and, in lists, numbers."""

    def __init__(self, path: str) -> None:
        self._steps = path.split(".")
        names = [step for step in self._steps if not step.isdigit()]
        self._gate = [_quoted(name) for name in names if _PLAIN.fullmatch(name)]

    def may_be_in(self, data: bytes) -> bool:
        """Whether an event's data may have it."""
        return all(name in data for name in self._gate)

    def of(self, chunk: Any) -> Any:
        """Return what it leads to, None if that is nothing."""
        for step in self._steps:
            if isinstance(chunk, dict):
                chunk = chunk.get(step)
            elif isinstance(chunk, list) and step.isascii() and step.isdigit():
                chunk = chunk[int(step)] if len(step) < 10 and int(step) < len(chunk) else None
            else:
                return None
        return chunk


class Equal:
    """A path, and the value that is to be there."""

    def __init__(self, path: str, value: Any) -> None:
        self._path = Path(path)
        self._value = value
        plain = isinstance(value, str) and _PLAIN.fullmatch(value)
        self._gate = _quoted(value) if plain else b""

    def may_hold(self, data: bytes) -> bool:
        """Whether it may hold of an event with these data."""
        return self._gate in data and self._path.may_be_in(data)

    def holds(self, chunk: Any) -> bool:
        """Whether it does; 1 is not true, as in JSON."""
        found = self._path.of(chunk)
        alike = isinstance(found, bool) == isinstance(self._value, bool)
        return alike and bool(found == self._value)


class Pick:
    """A path, and what must hold of an event in which it counts."""

    def __init__(self, path: str, where: dict[str, Any] | None = None) -> None:
        self._path = Path(path)
        self._where = Equal(**where) if where else None

    def may_be_in(self, data: bytes) -> bool:
        """Whether an event's data may have it."""
        return self._path.may_be_in(data) and (self._where is None or self._where.may_hold(data))

    def of(self, chunk: Any) -> Any:
        """Return what it leads to, None if that is nothing or does not count."""
        counts = self._where is None or self._where.holds(chunk)
        return self._path.of(chunk) if counts else None


class End:
    """What proves an end: an event's name, its data, a value in them, or the close of the body."""

    def __init__(
        self,
        *,
        event: str = "",
        data: str = "",
        path: str = "",
        value: Any = None,
        close: bool = False,
    ) -> None:
        name = event.encode()
        self._names = {name, safe_name(name)} if name else set()  # A log has the latter.
        self._data = data.strip().encode()
        self._equal = Equal(path, value) if path else None
        self.close = close

    @property
    def is_data(self) -> bool:
        """Whether it is told by all of an event's data."""
        return bool(self._data)

    def may_be_at(self, event: Event) -> bool:
        """Whether an event may be it; asked for each one."""
        if self._equal is not None:
            return self._equal.may_hold(event.data)
        return event.name in self._names if self._names else self._is_in(event.data)

    def is_at(self, event: Event) -> bool:
        """Whether an event is it."""
        if not self.may_be_at(event):
            return False
        return self._equal is None or self._equal.holds(decoded(event.data))

    def _is_in(self, data: bytes) -> bool:
        return bool(self._data) and data.strip() == self._data


def _quoted(word: str) -> bytes:
    return json.dumps(word).encode()

"""Cookies: a request's, found in one pass, read when asked for, and all of a name.

The standard library takes the square of a quoted cookie's length (CVE-2024-7592), and of two
cookies of one name it keeps the last: whoever can set a second one could hide the first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from gateway.errors import GatewayError

_MOST = 1 << 16  # Characters that are looked at: no server that we know lets more through.
_PARTS = 1024  # Browsers keep fewer than 200 for one site.
_VALUES = 16  # Different ones of one name that are looked at.

_ESCAPED = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))", re.DOTALL)


class Crowded(GatewayError):
    """A cookie has more values than are looked at, and one of the others may name another user."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the cookie {name[:40]} is there too often")


class Cookies(Mapping[str, str]):
    """What `Cookie` lines say; of several values of a name the last, as Starlette has it."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._text = "; ".join(lines)[:_MOST]  # HTTP/2 has a line for each.
        self._chosen = -1
        self._doubled: set[str] = set()

    @cached_property
    def _raw(self) -> dict[str, list[str]]:
        """The different values of each name in their order, as they are written."""
        found: dict[str, list[str]] = {}
        for part in self._text.split(";", _PARTS)[:_PARTS]:
            name, sign, value = part.partition("=")
            values = found.setdefault(name.strip(" \t"), []) if sign else []
            if (value := value.strip(" \t")) not in values[-_VALUES:]:
                values.append(value)
        return found

    def values_of(self, name: str) -> list[str]:
        """Return the different values of a name in their order; raises Crowded."""
        return [_plain(each) for each in self._few(name, _VALUES)]

    def others(self, most: int) -> Iterator["Cookies"]:
        """Yield these again with the other values of what was asked for and is there twice.

        Raises Crowded where that takes more than `most` times.
        """
        turns = max((len(self._few(name, most + 1)) for name in self._doubled), default=0)
        for chosen in range(-2, -turns - 1, -1):
            other = Cookies([self._text])
            other._chosen = chosen
            yield other

    def lines(self, most: int) -> list[str]:
        """Return these as a request may have them; with one value of each name in each, if one is
        there twice. Raises Crowded where that takes more than `most` times."""
        turns = max((len(self._few(name, most)) for name in self._raw), default=0)
        if turns < 2:
            return [self._text] if self._raw else []
        return [
            "; ".join(
                f"{name}={values[-min(turn, len(values))]}"
                for name, values in self._raw.items()
                if values
            )
            for turn in range(1, turns + 1)
        ]

    def _few(self, name: str, most: int) -> Sequence[str]:
        values = self._raw.get(name, ())
        if len(values) > most:
            raise Crowded(name)
        return values

    def __getitem__(self, name: str) -> str:
        """Return a cookie's value; raises KeyError, Crowded."""
        values = self.values_of(name)
        if not values:
            raise KeyError(name)
        if len(values) > 1:
            self._doubled.add(name)
        return values[max(self._chosen, -len(values))]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._raw)

    def __len__(self) -> int:
        """Return how many names there are."""
        return len(self._raw)


def values_of(cookies: Mapping[str, str], name: str) -> Sequence[str]:
    """Return all values of a name, also of a mapping that knows only one; raises Crowded."""
    if isinstance(cookies, Cookies):
        return cookies.values_of(name)
    return [cookies[name]] if name in cookies else []


def _plain(value: str) -> str:
    """Return a value without its quotes, as the standard library writes them."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPED.sub(_character, value[1:-1])


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8)) if escaped[1] else escaped[2]

"""Body: a completion request as its caller wrote it. Pure.

A preset sees what the members mean; the upstream gets the text they came in, so that nothing grows
(an emoji that is escaped has three times its bytes) and no number is rewritten. What the preset has
set is written anew. Of a name that comes twice the last counts, as parsers have it, and the others
do not go on: an upstream that takes the first would be asked for what no preset has seen.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from gateway.errors import Rejected

_SPACE = re.compile(r"[ \t\n\r]*")
_MANY = 500  # No request has as many members; each costs more here than in a parser written in C.


class Asked(NamedTuple):
    """A request as it is sent, and what two share that ask for the same in other words."""

    text: bytes
    digest: str


class Body:
    """The members of a JSON object: what each means (`values`) and its text; raises Rejected."""

    def __init__(self, data: bytes) -> None:
        self.values: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        try:
            text = data.decode(json.detect_encoding(data), "surrogatepass")
            for number, (name, value, part) in enumerate(_members(text)):
                self.values[name], self._texts[name] = value, part
                if number > _MANY:
                    self.values, self._texts = _decoded(text), {}
                    break
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from None

    def made(self, prepare: Callable[[dict[str, Any]], dict[str, Any]]) -> Asked:
        """Return the request that a preset makes of it; raises Rejected."""
        asked = prepare(self.values)
        try:
            same = _utf8(_dumped(asked, sort_keys=True))
            parts = [f"{_dumped(name)}:{self._text(name, value)}" for name, value in asked.items()]
        except (ValueError, RecursionError) as error:  # 1e999 only looks like JSON.
            raise _no_json(error) from None
        return Asked(_utf8(f"{{{','.join(parts)}}}"), hashlib.sha256(same).hexdigest()[:32])

    def _text(self, name: str, value: Any) -> str:
        if name in self._texts and self.values[name] is value:
            return self._texts[name]
        return _dumped(value)


def _members(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and the value's text of each member; raises ValueError, Rejected."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        raise Rejected("not_an_object", f"It is a JSON {type(_decoded(text)).__name__}.")
    mark, at = "{", _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        mark, at = "}", at + 1
    while mark != "}":
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting a name in double quotes", text, at)
        name, at = _DECODER.raw_decode(text, at)
        _, at = _mark(text, at, ":")
        start = at
        value, end = _DECODER.raw_decode(text, start)
        mark, at = _mark(text, end, ",}")
        yield name, value, text[start:end]
    if _after_space(text, at) != len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _mark(text: str, at: int, allowed: str) -> tuple[str, int]:
    """Return the next mark, which must be one of these, and where to go on after it."""
    at = _after_space(text, at)
    mark = text[at : at + 1]
    if not mark or mark not in allowed:
        raise json.JSONDecodeError(f"Expecting one of {allowed}", text, at)
    return mark, at + 1 if mark == "}" else _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _decoded(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _dumped(value: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys, allow_nan=False
    )


def _utf8(text: str) -> bytes:
    # A lone half of a surrogate pair has no UTF-8. Only strings can hold one; its escape is it.
    return text.encode("utf-8", "backslashreplace")


def _no_json(error: Exception) -> Rejected:
    return Rejected("not_json", str(error)[:200])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)

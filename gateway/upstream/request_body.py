"""Request body: a completion request as its caller wrote it. Pure.

A preset sees what the members mean; the upstream gets the text they came in, so that nothing grows
(an emoji that is escaped has three times its bytes) and no number is rewritten. What the preset has
set is written anew. Of a name that comes twice the last counts, as parsers have it, and the others
do not go on: an upstream that takes the first would be asked for what no preset has seen.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.upstream.protocols.table import protocol_of

_SPACE = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")
_PLAIN = re.compile(r'"([^"\\\x00-\x1f]*)"' + _COLON.pattern)  # As nearly all names are.
_DEEP = 200  # Each Python has a bound of its own: a replica must be able to read what another took.
_MANY = 500  # No request has as many members; each costs more here than in a parser written in C.


class PreparedRequest(NamedTuple):
    """A request as it is sent, what two share that ask for the same in other words, and what else
    its record says."""

    text: bytes
    digest: str
    more: dict[str, Any] = {}  # noqa: RUF012 (it is a tuple, and nobody changes it)


class RequestBody:
    """The members of a JSON object: what each means (`values`) and its text; raises Rejected."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.values: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        try:
            text = data.decode(json.detect_encoding(data), "surrogatepass")
            for number, (name, value, part) in enumerate(_members(text)):
                self.values[name], self._texts[name] = value, part
                if number > _MANY:
                    self.values, self._texts = _decoded(text), {}
                    break
            if text.count("{") + text.count("[") > _DEEP and _is_deep(self.values):
                raise ValueError(f"it is nested more than {_DEEP} deep")
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from None

    def made(self, preset: Preset) -> PreparedRequest:
        """Return the request that a preset makes of it; raises Rejected."""
        asked = protocol_of(preset).prepare(preset, self.values)
        try:
            same = _utf8(_SORTED.encode(asked))
            parts = [f"{_ENCODER.encode(name)}:{self._text(name, asked[name])}" for name in asked]
        except (ValueError, RecursionError) as error:  # 1e999 only looks like JSON.
            raise _no_json(error) from None
        return PreparedRequest(
            _utf8(f"{{{','.join(parts)}}}"), hashlib.sha256(same).hexdigest()[:32]
        )

    def text_of(self, name: str) -> str:
        """Return a member as it was written, without half surrogate pairs; raises Rejected."""
        try:
            return _utf8(self._text(name, self.values[name])).decode()
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from None

    def changed(self, put: Mapping[str, Any], drop: Collection[str] = ()) -> "RequestBody":
        """Return the same with other members in the place of these, and without some."""
        kept = {name: self.values[name] for name in self.values if name not in drop} | {**put}
        try:
            parts = [f"{_ENCODER.encode(name)}:{self._text(name, kept[name])}" for name in kept]
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from None
        return RequestBody(_utf8(f"{{{','.join(parts)}}}"))

    def instead(self, preset: Preset) -> PreparedRequest:
        """Return the request that a fallback makes of it: of its own model, if it must."""
        if preset.models and self.values.get("model") not in preset.models:
            for told in (self.values, self._texts):
                told.pop("model", None)  # Then the preset names one; its template may know none.
        return self.made(preset)

    def _text(self, name: str, value: Any) -> str:
        if name in self._texts and self.values[name] is value:
            return self._texts[name]
        return _ENCODER.encode(value)


def _members(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and the value's text of each member; raises ValueError, Rejected."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        raise Rejected("not_an_object", f"It is a JSON {type(_decoded(text)).__name__}.")
    mark, at = "{", _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        mark, at = "}", at + 1
    while mark != "}":
        name, start = _named(text, at)
        value, end = _DECODER.raw_decode(text, start)
        following = _NEXT.match(text, end)
        if following is None:
            raise json.JSONDecodeError("Expecting , or }", text, end)
        mark, at = following[1], following.end()
        yield name, value, text[start:end]
    if _after_space(text, at) != len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _named(text: str, at: int) -> tuple[str, int]:
    """Return a member's name, and where its value begins; raises ValueError."""
    if plain := _PLAIN.match(text, at):
        return plain[1], plain.end()
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting a name in double quotes", text, at)
    name, at = _DECODER.raw_decode(text, at)
    colon = _COLON.match(text, at)
    if colon is None:
        raise json.JSONDecodeError("Expecting :", text, at)
    return name, colon.end()


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_DEEP):
        level = [
            each
            for parent in level
            for each in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(each, (dict, list))
        ]
        if not level:
            return False
    return True


def _decoded(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _utf8(text: str) -> bytes:
    # A lone half of a surrogate pair has no UTF-8. Only strings can hold one; its escape is it.
    return text.encode("utf-8", "backslashreplace")


def _no_json(error: Exception) -> Rejected:
    return Rejected("not_json", str(error)[:200])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER, _SORTED = (  # `json.dumps` would make one for each member.
    json.JSONEncoder(
        ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys, allow_nan=False
    )
    for sort_keys in (False, True)
)

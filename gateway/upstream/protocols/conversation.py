"""Conversation: what was said so far, in words that no provider has. Pure.

A protocol writes it into the members of a request, as its API takes them.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from gateway.errors import Rejected
from gateway.upstream.protocols.readings import Noted

Role = Literal["system", "user", "assistant", "tool"]


class Words(NamedTuple):
    """A piece of text."""

    text: str


class Picture(NamedTuple):
    """An image that a user shows."""

    media_type: str
    url: str

    @property
    def data(self) -> str:
        """Its bytes in Base64, "" where they are to be fetched."""
        head, _, data = self.url.partition(",")
        return data if head.startswith("data:") and head.endswith(";base64") else ""


class Mused(NamedTuple):
    """Thoughts that the model had, and what its provider noted with them."""

    text: str
    noted: Noted


class Use(NamedTuple):
    """A call of a tool."""

    call_id: str
    name: str
    given: Any
    noted: Noted


class Result(NamedTuple):
    """What a call came to."""

    call_id: str
    name: str
    value: Any
    failed: bool = False

    @property
    def text(self) -> str:
        """It as text."""
        return self.value if isinstance(self.value, str) else as_json(self.value)


Part = Words | Picture | Mused | Use | Result


class Turn(NamedTuple):
    """What one of them said before another spoke."""

    role: Role
    parts: Sequence[Part]

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(part.text for part in self.parts if isinstance(part, Words))

    @property
    def pictures(self) -> list[Picture]:
        """Its images."""
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def uses(self) -> list[Use]:
        """Its calls of tools."""
        return [part for part in self.parts if isinstance(part, Use)]

    @property
    def results(self) -> list[Result]:
        """What its calls came to."""
        return [part for part in self.parts if isinstance(part, Result)]


def above(turns: Iterable[Turn]) -> str:
    """Return all that is said by the system, where an API has one place for it."""
    return "\n\n".join(turn.text for turn in turns if turn.role == "system")


def as_json(value: Any) -> str:
    """Return a value as its JSON; half a surrogate pair stays what it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def no_chat() -> Rejected:
    """Return the refusal of a conversation by an API that completes one text."""
    return Rejected("not_a_chat", "Its upstream continues a text, and takes no messages.")


def fetched(picture: Picture) -> Rejected:
    """Return the refusal of an image that is elsewhere."""
    words = f'A "file" of {picture.media_type[:60]} has to come as a data: URL here.'
    return Rejected("part_not_supported", words)

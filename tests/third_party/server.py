"""A server of others as plays see it: which APIs it speaks, and what they ask it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Way(NamedTuple):
    """One API of a server, and the provider of whose API it makes it, if of any."""

    protocol: str
    provider: str = ""

    def __str__(self) -> str:
        return f"{self.protocol} of {self.provider}" if self.provider else self.protocol


class Question(NamedTuple):
    """A model, what it is asked, and what else the request says."""

    model: str
    prompt: str = "Why is the sky blue?"
    more: Mapping[str, Any] = MappingProxyType({})


class Server:
    """What is there to be asked: answers whose fate is `whole`, `slow` and whole, or a fault."""

    ways: tuple[Way, ...] = ()
    breaks: tuple[str, ...] = ()  # Faults by which an answer ends that has begun.
    early: tuple[str, ...] = ()  # Faults of a provider before its first piece.

    def __init__(self, base: str, key: str = "k") -> None:
        self.base = base
        self.key = key

    def question(self, way: Way, fate: str) -> Question:
        """Return what is to be asked for an answer of that fate."""
        raise NotImplementedError

    def provider(self, way: Way, fate: str) -> str | None:
        """Return the URL of the pretend upstream that is asked in the end, if one is."""
        return None

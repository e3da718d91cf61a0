"""What all providers of the pretend upstream have in common: a request, an answer, a refusal."""

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.demo.pretend.faults import Fault, parse_fault
from gateway.demo.pretend.text import Object, answer, text_of
from gateway.sse import lines

encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """How the pretend upstream answers where a request does not say."""

    interval: float = 0.05  # Seconds between chunks.
    tokens: int | None = None  # Chunks in an answer; None is the text's natural length.
    fault: str = ""
    api_key: str = ""  # Empty: any will do.
    attach_for: float = 300  # Seconds after which a background response is streamed to nobody new.
    script: str = ""  # Of the text: one of `SCRIPTS`, `prompt` for the prompt's; else all of them.


class Refused(Exception):
    """A request that gets no answer."""

    def __init__(self, status: int, words: str, member: str | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.member = member  # What of the request is to blame.


class Asked(NamedTuple):
    """One request as it came, its body a JSON object."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Object


class Terms(NamedTuple):
    """How one request is to be answered."""

    fault: Fault
    interval: float
    tokens: int | None
    attach_for: float
    script: str
    ask: str  # What the caller calls it.


class Told(NamedTuple):
    """What is said to some messages; tokens are counted as pieces."""

    pieces: list[str]
    whole: bool  # No limit cut it short.
    asked: int  # Tokens of the prompt.
    tokens: int

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class Event(NamedTuple):
    """One event of an answer, or one line of it."""

    data: str
    name: bytes = b""
    tells: bool = False  # Whether it has a piece of the text.
    last: bool = False


class Answer(typing.Protocol):
    """One answer in the words of its provider."""

    streams: bool  # Whether it was asked for as a stream.
    before_queue: int  # Events that come before it waits for its turn.

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events."""

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""


class Provider(typing.Protocol):
    """How one provider is asked, and what it says."""

    name: str
    media_type: str
    lacks: frozenset[str]  # Faults that make no sense here.
    waits: frozenset[int]  # Statuses that come with a Retry-After.

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key or none; an empty key is any."""

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far, in OpenAI's form; raises Refused as the provider would."""

    def answer(self, asked: Asked, terms: Terms) -> Answer:
        """Return the answer to a request of which `messages` had no complaint; raises Refused."""

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""


def terms_of(body: Object, options: UpstreamOptions, lacks: frozenset[str]) -> Terms:
    """Return how a request is to be answered, by itself or by the options; raises Refused."""
    pretend = body.get("pretend", {})
    if not isinstance(pretend, dict):
        raise Refused(400, "'pretend' must be an object.", "pretend")
    try:
        fault = parse_fault(str(pretend.get("fault", options.fault)))
    except ValueError as error:
        raise Refused(400, str(error)) from None
    if fault.name in lacks:
        raise Refused(400, f"There is no fault {fault.name!r} of this provider.")
    return Terms(
        fault,
        number(pretend, "interval", float(options.interval), 0, 60),
        number(pretend, "tokens", options.tokens, 0, 100_000),
        number(pretend, "attach_for", float(options.attach_for), 0, 3600),
        text_of(pretend.get("script", options.script)),
        text_of(pretend.get("ask"))[:100],
    )


def tell(messages: list[Object], terms: Terms, most: int | None, choice: int = 0) -> Told:
    """Return what is said to these messages."""
    natural = answer(messages, terms.tokens, choice, terms.script)
    pieces = natural[:most]
    asked = sum(len(text_of(message.get("content")).split()) + 4 for message in messages)
    told = Told(pieces, len(pieces) == len(natural), asked, len(pieces))
    if terms.fault.name == "big" and not choice:
        pieces.insert(3, "x" * int(terms.fault.number))
    return told


def number(given: Object, name: str, default: Any, low: int, high: int) -> Any:
    """Return a member that is a number of the default's type, or the default; raises Refused."""
    value = given.get(name)
    if value is None:
        return default
    if type(value) not in (int, type(default)) or not low <= value <= high:
        raise Refused(400, f"'{name}' must be a number from {low} to {high}.", name)
    return value


def objects(body: Object, name: str) -> list[Object]:
    """Return a member that is a list of objects, and not empty; raises Refused."""
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise Refused(400, f"Missing required parameter: '{name}'.", name)
    if not all(isinstance(each, dict) for each in value):
        raise Refused(400, f"Each of '{name}' must be an object.", name)
    return value


def model_of(body: Object) -> str:
    """Return the model that is asked for; raises Refused where none is."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "Missing required parameter: 'model'.", "model")
    return text_of(model)


def bearer(headers: Mapping[str, str]) -> str:
    """Return the bearer token of a request, "" if it has none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" else ""


def sse(event: Event) -> bytes:
    """Return an event as a block of an event stream."""
    return lines(event.data.encode("utf-8", "replace"), event.name) + b"\n"

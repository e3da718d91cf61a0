"""Api: what a provider's own clients expect of who answers in its place. Pure.

A protocol tells how an upstream is asked. An API is the other side of the same thing: the shape of
an error, what a whole answer looks like as one object, and with which events one ends.
"""

import json
import typing
from collections.abc import Sequence
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.problems import Problem


class Whole(typing.Protocol):
    """One answer as one object, put together from the events of its stream."""

    def see(self, event: Event) -> None:
        """Take note of one event, under the name that its upstream gave it."""

    def answer(self) -> dict[str, Any]:
        """Return the object, as far as it was told."""


class Api(typing.Protocol):
    """What one kind of SDK expects."""

    protocol: str  # What its presets speak.
    path: str
    needs: str  # The member that a request of another API has not.
    request_id: str  # The header by whose words its SDKs tell one request from others.

    def user(self, body: dict[str, Any]) -> Any:
        """Return whom a request says that it is for, None if it does not."""

    def wants_usage(self, body: dict[str, Any]) -> bool:
        """Whether a request asks for the event that tells what it took."""

    def is_usage(self, event: Event) -> bool:
        """Whether an event is there only because its usage was asked for."""

    def counts(self, event: Event) -> bool:
        """Whether an SDK hands an event on to who counts them."""

    def number(self, event: Event, place: int) -> int:
        """Return the number of an event that is the one at `place`, from 0."""

    def answer_id(self, event: Event) -> str:
        """Return the id by which the answer can be asked for, if this event tells one; else ""."""

    def whole(self) -> Whole:
        """Return what puts an answer together."""

    def end(self, closing: Event | None) -> Sequence[Event]:
        """Return the last events of a whole answer, whose upstream closed it so, or not at all."""

    def bad_end(self, closing: Event) -> Sequence[Event]:
        """Return what of an upstream's last event is no lie where the answer is not whole."""

    def raises(self, event: Event) -> bool:
        """Whether SDKs raise an error at this event, and read no further."""

    def error(self, problem: Problem) -> dict[str, Any]:
        """Return the members by which an answer's body is an error."""

    def error_event(self, problem: Problem, number: int) -> Event:
        """Return the event at which SDKs raise that error; `number` is that of the next event."""

    def ended(self, answer: dict[str, Any], problem: Problem | None) -> dict[str, Any]:
        """Return the object of an answer that is looked at, and came to a bad end or to none."""


def json_of(value: dict[str, Any]) -> bytes:
    """Return an object as the data of an event; half of a surrogate pair stays escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )

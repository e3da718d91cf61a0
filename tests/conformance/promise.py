"""Promise: one thing that the contract says, played by a function that is named after it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.conformance.events import Event
from tests.conformance.server import Options, Server
from tests.conformance.wire import Answer, Unkept

Play = Callable[[Server], Awaitable[None]]

ALL: list["Promise"] = []


class Skip(Exception):
    """A promise that cannot be played here, and why."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is promised, how it is played, and the options that this takes."""

    name: str
    play: Play
    needs: tuple[str, ...]

    def lacks(self, options: Options) -> str:
        """Return the options that it takes and that were not given."""
        missing = [each for each in self.needs if not getattr(options, each)]
        return " and ".join("--" + each.replace("_", "-") for each in missing)


def promise(*needs: str) -> Callable[[Play], Play]:
    """Add a function to what is played; `needs` are names of options."""

    def add(play: Play) -> Play:
        ALL.append(Promise(play.__name__.replace("_", " "), play, needs))
        return play

    return add


def equal(what: str, got: Any, wanted: Any) -> None:
    """Say what came instead where it is not what is promised."""
    if got != wanted:
        raise Unkept(f"{what}: {_short(got)}, promised {_short(wanted)}")


def has(what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Say what differs of an object's members; it may have more than those."""
    equal(what, {name: got[name] for name in wanted if name in got}, wanted)


def holds(condition: object, words: str) -> None:
    """Say that something does not hold."""
    if not condition:
        raise Unkept(words)


def same(what: str, got: Sequence[Event], wanted: Sequence[Event]) -> None:
    """Say which event is the first that differs."""
    for number, (one, other) in enumerate(zip_longest(got, wanted), 1):
        if one != other:
            found = f"{len(got)} event(s), promised {len(wanted)}; number {number} is"
            raise Unkept(f"{what}: {found} {_short(one)}, promised {_short(other)}")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Say what did not come in time."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unkept(f"{what}: not within {seconds:g} s") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]} … {text[-60:]}"


def refused(answer: Answer, status: int, *codes: str) -> None:
    """Say how a refusal differs from the promised one: a problem (RFC 9457) with a stable code."""
    if answer.status != status:
        raise Unkept(f"promised {status} {' or '.join(codes)}, got {answer}")
    kind = answer.headers.get("content-type", "").partition(";")[0]
    equal(f"the type of {status}", kind, "application/problem+json")
    equal(f"Cache-Control of {status}", answer.headers.get("cache-control"), "no-store")
    problem = answer.object
    holds(problem.get("code") in codes, f"{status} has {problem}, promised {' or '.join(codes)}")
    equal(f"the status in the body of {status}", problem.get("status"), status)
    holds(isinstance(problem.get("title"), str), f"{status} has no title: {problem}")

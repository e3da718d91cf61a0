"""Report: what a command has found at the Redis of the settings, in lines to read or to parse."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.config.settings import Settings
from gateway.errors import Unavailable, one_line, with_cause
from gateway.store.client import RedisClient

FAILED, BLIND = 1, 2  # Exit codes.

_WIDE = 32  # Characters of what somebody else has named; JSON has all of them.


class Report(NamedTuple):
    """Lines for stdout, remarks for stderr, and the exit code."""

    lines: Sequence[str]
    remarks: Sequence[str] = ()
    code: int = 0


async def asked(settings: Settings, ask: Callable[[RedisClient], Awaitable[Report]]) -> Report:
    """Return what is asked of the Redis of the settings, or why nothing can be."""
    if settings.embedded:
        words = "GATEWAY_REDIS_URL: missing; an embedded store is seen by its own process only"
        return Report((), [words], BLIND)
    store = RedisClient(settings.redis_url)
    try:
        return await ask(store)
    except Unavailable as error:
        return Report((), [with_cause(f"Redis: {error}", None)], FAILED)
    finally:
        await store.close()


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows, of which the first is the head, as lines with columns."""
    every = list(rows)
    wide = [max(map(len, column)) for column in zip(*every, strict=True)]
    return ["  ".join(map(str.ljust, row, wide)).rstrip() for row in every]


def short(words: str) -> str:
    """Return what somebody else has named, as a column may have it."""
    words = one_line(words)
    return words if len(words) <= _WIDE else words[: _WIDE - 1] + "…"

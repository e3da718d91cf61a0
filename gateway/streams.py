"""Streams: the command of that name: what runs on all replicas, in lines to read or to parse."""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.config.settings import Settings
from gateway.errors import Unavailable, one_line, with_cause
from gateway.runs.listing import Found, Listing, Owner, Stream
from gateway.store.client import RedisClient

_HEAD = ("ID", "SUBJECT", "PRESET", "AGE", "EVENTS", "VIEWERS", "OWNER")
_WIDE = 32  # Characters of a subject or a preset; JSON has all of them.
_FAILED, _BLIND = 1, 2  # Exit codes.


class Report(NamedTuple):
    """Lines for stdout, remarks for stderr, and the exit code."""

    lines: Sequence[str]
    remarks: Sequence[str] = ()
    code: int = 0


async def listed(settings: Settings, subject: str | None, *, as_json: bool) -> Report:
    """Report what runs, of one subject or of all."""

    async def ask(listing: Listing) -> Report:
        found = await listing.running(subject)
        lines = list(map(_json, found.streams)) if as_json else _table(found.streams)
        return Report(lines, _remarks(found), _FAILED if found.unread else 0)

    return await _asked(settings, ask)


async def cancelled(settings: Settings, stream_id: str) -> Report:
    """Cancel one, and report what came of it."""

    async def ask(listing: Listing) -> Report:
        outcome = await listing.cancel(stream_id)
        words = one_line(f"{stream_id}: {outcome.words}")
        return Report([words], code=0 if outcome.stored else _FAILED)

    return await _asked(settings, ask)


async def _asked(settings: Settings, ask: Callable[[Listing], Awaitable[Report]]) -> Report:
    if settings.embedded:
        words = "GATEWAY_REDIS_URL: missing; an embedded store is seen by its own process only"
        return Report((), [words], _BLIND)
    store = RedisClient(settings.redis_url)
    try:
        return await ask(Listing(store, settings))
    except Unavailable as error:
        return Report((), [with_cause(f"Redis: {error}", None)], _FAILED)
    finally:
        await store.close()


def _remarks(found: Found) -> list[str]:
    words = [f"{each} does not answer: its viewers are not counted" for each in found.silent]
    if found.unread:
        words.append(f"streams that cannot be read now, as their server is away: {found.unread}")
    return words


def _json(stream: Stream) -> str:
    """Return an object in ASCII: nothing in it can be taken for a terminal's command."""
    return json.dumps(stream._asdict())


def _table(streams: Iterable[Stream]) -> list[str]:
    rows = [_HEAD, *map(_row, streams)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, wide)).rstrip() for row in rows]


def _row(stream: Stream) -> tuple[str, ...]:
    state = "" if stream.owner_state is Owner.ANSWERS else f" ({stream.owner_state})"
    return (
        stream.id,
        _short(stream.subject),
        _short(stream.preset),
        _time(stream.age) + (" (cancelled)" if stream.cancelled else ""),
        _number(stream.events),
        _number(stream.viewers),
        stream.owner + state,
    )


def _short(words: str) -> str:
    words = one_line(words)
    return words if len(words) <= _WIDE else words[: _WIDE - 1] + "…"


def _time(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)

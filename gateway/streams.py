"""Streams: the command of that name: what runs on all replicas, in lines to read or to parse."""

import json

from gateway.config.settings import Settings
from gateway.errors import one_line
from gateway.report import FAILED, Report, asked, short, table
from gateway.runs.listing import Found, Listing, Owner, Stream
from gateway.store.client import RedisClient

_HEAD = ("ID", "SUBJECT", "PRESET", "AGE", "EVENTS", "VIEWERS", "OWNER")


async def listed(settings: Settings, subject: str | None, *, as_json: bool) -> Report:
    """Report what runs, of one subject or of all."""

    async def ask(store: RedisClient) -> Report:
        found = await Listing(store, settings).running(subject)
        lines = (
            list(map(_json, found.streams))
            if as_json
            else table([_HEAD, *map(_row, found.streams)])
        )
        return Report(lines, _remarks(found), FAILED if found.unread else 0)

    return await asked(settings, ask)


async def cancelled(settings: Settings, stream_id: str) -> Report:
    """Cancel one, and report what came of it."""

    async def ask(store: RedisClient) -> Report:
        outcome = await Listing(store, settings).cancel(stream_id)
        words = one_line(f"{stream_id}: {outcome.words}")
        return Report([words], code=0 if outcome.stored else FAILED)

    return await asked(settings, ask)


def _remarks(found: Found) -> list[str]:
    words = [f"{each} does not answer: its viewers are not counted" for each in found.silent]
    if found.unread:
        words.append(f"streams that cannot be read now, as their server is away: {found.unread}")
    return words


def _json(stream: Stream) -> str:
    """Return an object in ASCII: nothing in it can be taken for a terminal's command."""
    return json.dumps(stream._asdict())


def _row(stream: Stream) -> tuple[str, ...]:
    state = "" if stream.owner_state is Owner.ANSWERS else f" ({stream.owner_state})"
    return (
        stream.id,
        short(stream.subject),
        short(stream.preset),
        _time(stream.age) + (" (cancelled)" if stream.cancelled else ""),
        _number(stream.events),
        _number(stream.viewers),
        stream.owner + state,
    )


def _time(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)

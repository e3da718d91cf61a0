"""Statement: what a subject has spent, day by day, and what is left of its limits."""

import asyncio
import re
from datetime import date, timedelta
from typing import Any, NamedTuple

from gateway.config.preset_book import PresetBook
from gateway.config.user_limits import BILLION, Bounds
from gateway.errors import Rejected
from gateway.limits.ledger import KEPT, Ledger, Row
from gateway.limits.permits import Permits

_EPOCH = date(1970, 1, 1).toordinal()
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # Python knows more forms, and they may change.


class Line(NamedTuple):
    """What the streams of one day (UTC), preset and model took; the cost is of what had a price."""

    day: date
    preset: str
    model: str
    streams: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    estimated_tokens: int
    cost: float


class Account(NamedTuple):
    """The limits that are set, and what is left of each, by their names."""

    limits: dict[str, int | float]
    remaining: dict[str, int | float]


class Statement(NamedTuple):
    """What a subject has spent and has left; `presets` are those with limits of their own."""

    days: list[Line]
    limits: dict[str, int | float]
    remaining: dict[str, int | float]
    presets: dict[str, Account]

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        days = [{**each._asdict(), "day": each.day.isoformat()} for each in self.days]
        data: dict[str, Any] = {"days": days, "limits": self.limits, "remaining": self.remaining}
        if self.presets:
            data["presets"] = {name: each._asdict() for name, each in self.presets.items()}
        return data


class Statements:
    """Where statements are made, of what was booked and of what runs."""

    def __init__(self, ledger: Ledger, permits: Permits, presets: PresetBook) -> None:
        self._ledger = ledger
        self._permits = permits
        self._presets = presets

    async def of(
        self, subject: str, first: date | None = None, last: date | None = None
    ) -> Statement:
        """Return a subject's, of these days; today, by Redis's clock, where one is None.

        Raises Rejected `bad_range` and Unavailable.
        """
        if first and last:
            _days(first, last)  # Nobody has to be asked to know that it is wrong.
        every, limited = self._presets.bounds("").both[0], self._presets.limited()
        looks = [self._permits.left(subject, "", Bounds(every))]
        looks += [
            self._permits.left(subject, name, Bounds(here=here)) for name, here in limited.items()
        ]
        left, *others = await asyncio.gather(*looks)
        today = date.fromordinal(_EPOCH + left.today)
        rows = await self._ledger.rows(subject, _days(first or today, last or today))
        return Statement(
            [_line(each) for each in rows],
            *Account(every.told(), left.told()),
            {
                name: Account(here.told(), rest.told())
                for (name, here), rest in zip(limited.items(), others, strict=True)
            },
        )


def day_of(text: str) -> date:
    """Return the day that is written as 2026-11-28; raises Rejected `bad_range`."""
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # The 31st of February.
    raise Rejected("bad_range", "Write a day as 2026-11-28.")


def _days(first: date, last: date) -> list[int]:
    """Return the days from one to another, counted since 1970; raises Rejected."""
    if first > last:
        told = "The day in `from` is after that in `to`; which of them is not named is today."
        raise Rejected("bad_range", told)
    days = range(first.toordinal() - _EPOCH, last.toordinal() - _EPOCH + 1)
    if len(days) > KEPT:
        told = f"These are {len(days)} days, and at most {KEPT} are told, and kept: "
        raise Rejected("bad_range", f"{told}from={last - timedelta(KEPT - 1)} will do.")
    return list(days)


def _line(row: Row) -> Line:
    day = date.fromordinal(_EPOCH + row.day)
    tokens = row.prompt, row.completion, row.cached, row.estimated
    return Line(day, row.preset, row.model, row.streams, *tokens, row.cost / BILLION)

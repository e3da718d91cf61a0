"""Usage: the command of that name: what a user has spent and has left."""

import json
from collections.abc import Iterator
from datetime import date

from gateway.config.preset_book import PresetBook
from gateway.config.settings import Settings
from gateway.limits.ledger import Ledger
from gateway.limits.permits import Permits
from gateway.limits.statement import Account, Line, Statement, Statements
from gateway.report import Report, asked, short, table
from gateway.store.client import RedisClient

_DAYS = ["DAY", "PRESET", "MODEL", "STREAMS", "PROMPT", "COMPLETION", "CACHED", "ESTIMATED", "COST"]
_LIMITS = ["PRESET", "LIMIT", "OF", "LEFT"]


async def told(
    settings: Settings, subject: str, first: date | None, last: date | None, *, as_json: bool
) -> Report:
    """Report a subject's statement of these days; raises Rejected `bad_range`."""

    async def ask(store: RedisClient) -> Report:
        presets, lease = PresetBook(settings), settings.lease
        permits, ledger = Permits(store, presets.bounds, lease), Ledger(store, 2 * lease)
        statement = await Statements(ledger, permits, presets).of(subject, first, last)
        return Report([json.dumps(statement.told())] if as_json else _tables(statement))

    return await asked(settings, ask)


def _tables(statement: Statement) -> list[str]:
    days = table([_DAYS, *map(_row, statement.days)])
    accounts = {"(all)": Account(statement.limits, statement.remaining), **statement.presets}
    limits = [row for name, each in accounts.items() for row in _limits(short(name), each)]
    return [*days, "", *table([_LIMITS, *limits])] if limits else days


def _row(line: Line) -> tuple[str, ...]:
    day, preset, model, *counts, cost = line
    return (day.isoformat(), short(preset), short(model), *map(str, counts), _cost(cost))


def _limits(where: str, account: Account) -> Iterator[tuple[str, ...]]:
    for name, most in account.limits.items():
        amounts = most, account.remaining[name]
        yield (where, name, *map(_cost, amounts))


def _cost(amount: float) -> str:
    """Return a number to a billionth, without what says nothing."""
    return f"{amount:.9f}".rstrip("0").rstrip(".")

"""Booking: what a stream takes of what its subject may spend: expected, so far, and in the end."""

from collections.abc import Mapping
from typing import Any

from gateway.config.presets import Preset
from gateway.config.user_limits import BILLION, MOST_COST, MOST_TOKENS
from gateway.limits.ledger import Spent
from gateway.limits.permits import Taken
from gateway.runs.bill import Bill
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.demand import UNBOUNDED


def taken(estimate: str, preset: Preset, so_far: Tokens = Tokens()) -> Taken:  # noqa: B008
    """Return what a stream may take: what was expected of it, or what it took so far if more.

    Nothing was expected of what was asked for where nothing was bounded yet.
    """
    most = UNBOUNDED if preset.max_output_tokens is None else preset.max_output_tokens
    prompt, completion = map(int, estimate.split()) if estimate else (0, most)
    prompt, completion = max(prompt, so_far.prompt or 0), max(completion, so_far.completion or 0)
    cost = preset.price.cost(prompt, completion, None) if preset.price else None
    return Taken(min(prompt + completion, MOST_TOKENS), min(_billionths(cost), MOST_COST * BILLION))


def spent(fields: Mapping[str, Any], bill: Bill) -> Spent:
    """Return what an ended stream took; `fields` are its record's."""
    prompt, completion, cached, estimated = bill.total
    return Spent(
        bytes(fields["subject"]).decode(),
        int(fields["issued"]),
        bill.preset or fields["preset"],
        bill.model,
        *(prompt or 0, completion or 0, cached or 0, estimated),
        cost=_billionths(bill.total_cost),
    )


def _billionths(cost: float | None) -> int:
    return round((cost or 0) * BILLION)

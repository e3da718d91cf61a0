"""Prices: what may be one, and what tokens cost at it."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.presets import Preset
from gateway.config.price import Price

PRICE = Price(prompt=2, completion=8, cached=0.5)


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ((1_000_000, 0, None), 2),
        ((0, 1_000_000, 0), 8),
        ((1000, 100, 400), 0.0022),
        ((12, 40, None), 0.000344),
        ((0, 0, 0), 0),
        ((None, 40, None), 0.00032),
        ((12, None, 6), 0.000015),
    ],
)
def test_tokens_cost_their_part_of_a_million(counts: tuple[Any, ...], cost: float) -> None:
    assert PRICE.cost(*counts) == cost


def test_what_nobody_counted_has_no_cost() -> None:
    assert PRICE.cost(None, None, None) is None
    assert PRICE.cost(None, None, 7) is None


def test_cached_tokens_cost_as_the_others_where_nothing_else_is_said() -> None:
    assert Price(prompt=2, completion=8).cost(1000, 0, 400) == 0.002


def test_more_cached_tokens_than_a_prompt_has_give_nothing_back() -> None:
    assert PRICE.cost(1000, 0, 5000) == PRICE.cost(1000, 0, 1000) == 0.0005


def test_the_dearest_price_of_the_most_tokens_is_a_number_still() -> None:
    dearest = Price(prompt=1e9, completion=1e9)
    assert dearest.cost(1 << 53, 1 << 53, None) == pytest.approx(1.8e19, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"prompt": -0.1}, {"completion": float("inf")}, {"cached": float("nan")}),
        *({"prompt": "0.15"}, {"prompt": True}, {"completion": 1e10}, {"currency": "EUR"}),
    ],
)
def test_a_wrong_price_is_refused_when_its_preset_is_read(wrong: dict[str, Any]) -> None:
    price = {"prompt": 1, "completion": 2, **wrong}
    with pytest.raises(ValidationError, match=rf"price\.{next(iter(wrong))}"):
        Preset.model_validate({"price": price})


@pytest.mark.parametrize("left_out", ["prompt", "completion"])
def test_a_price_that_would_leave_tokens_for_nothing_is_refused(left_out: str) -> None:
    price = {"prompt": 1, "completion": 2}
    del price[left_out]
    with pytest.raises(ValidationError, match=rf"price\.{left_out}"):
        Preset.model_validate({"price": price})

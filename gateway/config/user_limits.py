"""User limits: what one user may ask for and spend, over all presets and in each."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

BILLION = 1_000_000_000
MOST_TOKENS = 1 << 50  # As much as any bound: so thousands of them are still a number to Redis.
MOST_COST = 1_000_000

Many = Annotated[int, Field(strict=True, ge=0, le=MOST_TOKENS)]
Cost = Annotated[float, Field(ge=0, le=MOST_COST, allow_inf_nan=False, strict=True)]


class UserLimits(BaseModel):
    """Most of each; 0 is no bound. A minute is any minute, a day one of UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    posts_per_minute: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 0
    streams: Many = 0  # That run at once, on all replicas.
    tokens_per_day: Many = 0  # Of prompts and completions.
    cost_per_day: Cost = 0.0  # In the currency of the presets' prices.

    def told(self) -> dict[str, int | float]:
        """Return those that are set, by their names."""
        return {name: most for name, most in self.model_dump().items() if most}


NONE = UserLimits()


class Bounds:
    """What holds for a user of a preset: over all presets, and in this one. Made once, asked often.

    `any`: whether anything is bounded; `of_runs`: whether what runs has to be counted;
    `of_spending`: whether it has to be known what a stream may take, before it is asked for.
    """

    def __init__(self, every: UserLimits = NONE, here: UserLimits = NONE) -> None:
        self.both = every, here
        spending = [each.tokens_per_day or each.cost_per_day for each in self.both]
        self.of_spending = any(spending)
        self.of_runs = self.of_spending or any(each.streams for each in self.both)
        self.any = self.of_runs or any(each.posts_per_minute for each in self.both)
        self.args = [part for each in self.both for part in _args(each)]  # Of the script `permit`.


def _args(limits: UserLimits) -> list[Any]:
    cost = _billionths(limits.cost_per_day)
    return [limits.posts_per_minute, limits.streams, limits.tokens_per_day, cost]


def _billionths(cost: float) -> int:
    return max(1, round(cost * BILLION)) if cost else 0


UNBOUNDED = Bounds()

"""User limits: what one user may ask for and spend, over all presets and in each."""

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

BILLION = 1_000_000_000

Many = Annotated[int, Field(strict=True, ge=0, le=1 << 50)]
Cost = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False, strict=True)]


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


class Bounds(NamedTuple):
    """What holds for a user of a preset: over all presets, and in this one."""

    every: UserLimits = NONE
    here: UserLimits = NONE

    @property
    def any(self) -> bool:
        """Whether anything is bounded."""
        return self != (NONE, NONE)

    @property
    def of_runs(self) -> bool:
        """Whether what runs has to be counted."""
        return any(each.streams or each.tokens_per_day or each.cost_per_day for each in self)

    @property
    def of_spending(self) -> bool:
        """Whether it has to be known what a stream may take, before it is asked for."""
        return any(each.tokens_per_day or each.cost_per_day for each in self)

    @property
    def args(self) -> list[Any]:
        """Return them as the script `permit` takes them."""
        return [
            part
            for each in self
            for part in (
                each.posts_per_minute,
                each.streams,
                each.tokens_per_day,
                _billionths(each.cost_per_day),
            )
        ]


def _billionths(cost: float) -> int:
    return max(1, round(cost * BILLION)) if cost else 0


UNBOUNDED = Bounds()

"""Price: what a preset's tokens cost, in its operator's currency."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_MILLION = 1_000_000

Rate = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]


class Price(BaseModel):
    """What a million tokens cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Rate
    completion: Rate
    cached: Rate | None = None  # Of a prompt's tokens that came from a cache; None = as the others.

    def cost(self, prompt: int | None, completion: int | None, cached: int | None) -> float | None:
        """Return what these cost, to a billionth, None if none are known; `cached` ones are some of
        the prompt's."""
        if prompt is None and completion is None:
            return None
        from_cache = min(cached or 0, prompt or 0)
        rate = self.prompt if self.cached is None else self.cached
        whole = ((prompt or 0) - from_cache) * self.prompt + from_cache * rate
        return round((whole + (completion or 0) * self.completion) / _MILLION, 9)

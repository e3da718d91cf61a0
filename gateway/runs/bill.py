"""Bill: what an answer took, and whose it is, as its end tells it. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.config.presets import Preset
from gateway.runs.settlement import with_prompt
from gateway.upstream.protocols.base import CompletionState, Tokens
from gateway.upstream.protocols.demand import model_of

_NONE = Tokens()


class Bill(NamedTuple):
    """Tokens and cost of one answer, None where nobody knows them, and the preset that gave it."""

    preset: str | None = None  # None if nobody was asked.
    tokens: Tokens = _NONE
    cost: float | None = None
    tried: Sequence[str] = ()  # The presets that were asked in turn, if there was more than one.
    model: str = ""  # As it was asked for.
    earlier: Tokens = _NONE  # Of answers that were lost with a replica, and asked for again.
    total_cost: float | None = None  # With those.

    @classmethod
    def of(
        cls,
        completion: CompletionState,
        name: str,
        preset: Preset | None,
        tried: Sequence[str] = (),
        *,
        request: bytes = b"",
        read: bool = False,
        earlier: Tokens = _NONE,
    ) -> "Bill":
        """Return the bill of an answer as far as it came; its preset may be here no more.

        Of a request that may have been `read` the prompt is estimated, where nobody told it.
        """
        tokens = with_prompt(completion.tokens, request) if read else completion.tokens
        if tokens.prompt is not None and tokens.cached is not None:
            tokens = tokens._replace(cached=min(tokens.cached, tokens.prompt))
        price = preset.price if preset else None
        cost = price.cost(*tokens[:3]) if price else None
        chain = tried if len(tried) > 1 else ()
        total = price.cost(*tokens.plus(earlier)[:3]) if price else None
        return cls(name, tokens, cost, chain, model_of(preset, request), earlier, total)

    @property
    def total(self) -> Tokens:
        """What all answers took."""
        return self.tokens.plus(self.earlier)

    def members(self) -> dict[str, Any]:
        """Return what `end` and `/completion` tell of it."""
        cost = {} if self.cost is None else {"cost": self.cost}
        tried = {"presets": [*self.tried]} if self.tried else {}
        return {"tokens": told(self.tokens), **cost, "preset": self.preset, **tried}

    def __str__(self) -> str:
        """Say how much it was, for operators: numbers only, whatever the upstream told."""
        prompt, completion, cached, estimated = self.tokens
        words = f"{_number(prompt)}+{_number(completion)} tokens"
        words += f" ({cached} cached)" if cached else ""
        words += " (estimated)" if estimated else ""
        cost = "" if self.cost is None else f"{self.cost:.9f}".rstrip("0").rstrip(".")
        return f"{words}, cost {cost}" if cost else words


def told(tokens: Tokens) -> dict[str, Any] | None:
    """Return tokens as pages get them; None if none are known."""
    if not tokens.known:
        return None
    prompt, completion, cached, estimated = tokens
    counts = {"prompt": prompt, "completion": completion, "cached": cached}
    return {**counts, "estimated": True} if estimated else counts


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)

"""Dialects: what a preset tells of its upstream's answers, beside the name of their protocol.

A path leads through JSON by names and, in lists, numbers: `choices.0.text`.
"""

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)

_FORMS = 'give one of event = "…", data = "…", path = "…" with value = …, or close = true'

Path = Annotated[str, StringConstraints(pattern=r"^[^.]+(\.[^.]+)*$", max_length=200)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]
Scalar = StrictStr | StrictBool | StrictInt | StrictFloat

# Members of a preset that belong to one protocol.
OF = {
    **dict.fromkeys(("end", "text", "usage", "error", "reason"), "sse"),
    **dict.fromkeys(("strict_end", "broken_off"), "openai"),
}


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Where(_Told):
    """What holds of an event in which a path counts."""

    path: Path
    value: Scalar


class Pick(_Told):
    """A path, and the events in which it counts."""

    path: Path
    where: Where | None = None


class End(_Told):
    """What proves the end of an answer."""

    event: Word | None = None
    data: Word | None = None
    path: Path | None = None
    value: Scalar | None = None
    close: StrictBool = False

    @model_validator(mode="after")
    def _is_one(self) -> "End":
        if (self.path is None) != (self.value is None):
            raise ValueError("path and value go together")
        if [self.event, self.data, self.path].count(None) + (not self.close) != 3:
            raise ValueError(_FORMS)
        if self.event == "message":
            raise ValueError('event = "message" is every event without a name')
        return self


def _as_pick(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Picked = Annotated[Pick, BeforeValidator(_as_pick)]


def _lower(words: list[str]) -> list[str]:
    return sorted({word.lower() for word in words})


Words = Annotated[list[Word], Field(max_length=50), AfterValidator(_lower)]


def check(protocol: str, given: set[str], end: End | None) -> None:
    """Raise ValueError where what is given of a dialect is not of this protocol, or too little."""
    for name in sorted(given & OF.keys()):
        if OF[name] != protocol:
            raise ValueError(f'{name} is for protocol = "{OF[name]}" alone')
    if protocol == "sse" and end is None:
        raise ValueError(f'end is missing, which protocol = "sse" cannot know: {_FORMS}')


def dialect(protocol: str, told: dict[str, Any]) -> str:
    """Return the protocol and what was told beside it as a text that tells the same everywhere."""
    if not told:
        return protocol
    return f"{protocol} {json.dumps(told, separators=(',', ':'), sort_keys=True)}"

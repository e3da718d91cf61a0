"""Templates: messages with places, and the variables that a page fills them with. Pure.

A place is `${name}` in any string of a message; `$$` is a dollar, and a `$` before anything else
stays. What is filled in is text, once: a place inside a value is none.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_PLACE = re.compile(r"\$(?:(\$)|\{([^{}]*)\})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

Messages = list[dict[str, Any]]
Many = Annotated[int, Field(strict=True, ge=1)]


class Variable(BaseModel):
    """What a page may fill in: a text, or the name of one of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_chars: Many | None = Field(None, description="longest text")
    choices: dict[str, str] = Field({}, description="texts of ours; a page gives the name of one")
    default: str | None = Field(None, description="taken where a page gives none")


def filled(value: Any, texts: Mapping[str, str]) -> Any:
    """Return a template, or a part of it, with texts in its places."""
    if isinstance(value, str):
        return _PLACE.sub(lambda place: place[1] or texts[place[2]], value)
    if isinstance(value, dict):
        return {name: filled(each, texts) for name, each in value.items()}
    return [filled(each, texts) for each in value] if isinstance(value, list) else value


def places(value: Any) -> Iterator[str]:
    """Yield the name of each place of a template, or of a part of it."""
    if isinstance(value, str):
        yield from (place[2] for place in _PLACE.finditer(value) if not place[1])
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from places(each)


def template_faults(template: Messages, variables: Mapping[str, Variable]) -> Iterator[str]:
    """Yield what is wrong with a template and its variables, each as `key: reason`."""
    if variables and not template:
        yield "variables: there is no template that they could fill"
        return
    named = list(dict.fromkeys(places(template)))
    if template and not named:
        yield "template: it names no ${variable}: a page could say nothing; use system"
    unknown = [each for each in named if each not in variables]
    yield from (f"template: ${{{each}}} is no variable of it" for each in unknown)
    yield from (f"template: {each}" for each in _message_faults(template))
    for name, variable in variables.items():
        if not _NAME.fullmatch(name):
            yield f"variables.{name}: a name has letters, digits, _ and -"
        elif name not in named:
            yield f"variables.{name}: the template does not name it"
        yield from (f"variables.{name}.{each}" for each in _variable_faults(variable))


def _message_faults(template: Messages) -> Iterator[str]:
    for number, message in enumerate(template, 1):
        if not isinstance(message.get("role"), str):
            yield f"message {number} has no role"
        for name in ("content", "parts"):
            if not _is_content(message.get(name, "")):
                yield f"{name} of message {number} is no text and no list of tables"


def _is_content(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, dict) for each in value)
    return isinstance(value, str)


def _variable_faults(variable: Variable) -> Iterator[str]:
    default, longest = variable.default, variable.max_chars
    if variable.choices and longest is not None:
        yield "max_chars: its choices are our own texts, of any length"
    elif longest is not None and default is not None and len(default) > longest:
        yield "default: it is longer than max_chars"
    if variable.choices and default is not None and default not in variable.choices:
        yield f"default: {default} is none of its choices"

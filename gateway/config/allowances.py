"""Allowances: what a preset lets a page ask, in words for an operator. No prompt is among them."""

from collections.abc import Iterator

from gateway.config.presets import Preset
from gateway.config.templates import Variable
from gateway.config.user_limits import UserLimits


def allowance(preset: Preset) -> str:
    """Return in one line what a page may ask of a preset."""
    told = [*_members(preset), *_bounds(preset), *_chain(preset)]
    return "; ".join([f"{preset.protocol}, {_reach(preset)}", *told])


def bounds_of(limits: UserLimits) -> str:
    """Return in one line what limits allow one user, "" if nothing is bounded."""
    words = {
        "posts_per_minute": "requests a minute",
        "streams": "streams at once",
        "tokens_per_day": "tokens a day",
        "cost_per_day": "a day of what it costs",
    }
    told = limits.told()
    bounds = ", ".join(f"{told[name]:.15g} {what}" for name, what in words.items() if name in told)
    return f"each user at most {bounds}" if bounds else ""


def _reach(preset: Preset) -> str:
    return "for pages" if preset.public else "for no page"


def _members(preset: Preset) -> Iterator[str]:
    listed = ", ".join(preset.fields or ())
    if preset.template:
        told = [_variable(name, each) for name, each in preset.variables.items()]
        more = f" and the fields {listed}" if listed else ""
        yield f"a role that takes {', '.join(told)}{more}"
    elif preset.fields is None:
        yield "any field"
    else:
        yield f"the fields {listed}" if listed else "no field but model, messages and stream"
    yield f"models {', '.join(preset.models)}" if preset.models else "any model"
    if preset.system:
        yield "our system prompt" + (", then the page's" if preset.allow_system else " alone")
    elif preset.allow_system is False:
        yield "no system prompt"


def _variable(name: str, variable: Variable) -> str:
    if variable.choices:
        told = f"one of {', '.join(variable.choices)}"
    elif variable.max_chars is not None:
        told = f"to {variable.max_chars} characters"
    else:
        told = "a text"
    return f"{name} ({told}{', or none' if variable.default is not None else ''})"


def _bounds(preset: Preset) -> Iterator[str]:
    bounds = {
        "tokens of output": preset.max_output_tokens,
        "messages": preset.max_messages,
        "characters": preset.max_chars,
    }
    told = [f"{most} {what}" for what, most in bounds.items() if most is not None]
    yield f"at most {', '.join(told)}" if told else "no bound of tokens, messages or characters"


def _chain(preset: Preset) -> Iterator[str]:
    if preset.fallback:
        yield f"where it refuses, {', then '.join(preset.fallback)}"

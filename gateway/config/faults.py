"""Faults: what pydantic says of wrong settings, as lines for an operator.

A line has the file if it is of a preset, then table, key and reason.
"""

import difflib
import re
from collections.abc import Collection, Iterator

from pydantic import ValidationError

from gateway.config.dialects import End
from gateway.config.presets import Preset
from gateway.config.price import Price
from gateway.config.templates import Variable
from gateway.config.user_limits import UserLimits
from gateway.errors import redacted

_KEYED = re.compile(r"[\w.-]+: ")  # What a preset says of its own members begins so.
_TABLES: dict[str, Collection[str]] = {
    "variables": Variable.model_fields,
    "price": Price.model_fields,
    "end": End.model_fields,
    "limits": UserLimits.model_fields,
}
_WORDS = {  # What pydantic says of these is said to who writes Python.
    "missing": "is missing",
    "list_type": "must be a list, as […]",
    "tuple_type": "must be a list, as […]",
    "frozen_set_type": "must be a list, as […]",
    "dict_type": "must be a table, as {name = …}",
    "model_type": "must be a table, as {name = …}",
}
_OF_PRESET = [
    *(*Preset.model_fields, "api_key_file", "api_key_env"),
    *("webhook_secret_file", "webhook_secret_env"),
]


def fault_lines(error: ValidationError, names: Collection[str], prefix: str, path: str) -> str:
    """Return what is wrong, a line each; `names` are the settings, `path` is that of the file."""
    lines: list[str] = []
    for fault in error.errors(include_url=False, include_context=False):
        where = tuple(str(part) for part in fault["loc"])
        reason = _WORDS.get(fault["type"]) or redacted(fault["msg"].removeprefix("Value error, "))
        reason = reason.replace("Input should be", "must be", 1)
        if fault["type"] == "extra_forbidden":
            lines.append(_unknown(where, names))
        else:
            lines += _told(where, reason, prefix)
    return "\n".join(f"{path}: {each}" if path and _is_of_file(each) else each for each in lines)


def _told(where: tuple[str, ...], reason: str, prefix: str) -> Iterator[str]:
    name = ".".join(where)
    for line in reason.splitlines():
        if not where:
            yield line
        elif len(where) == 1 and name not in ("presets", "limits"):
            yield f"{prefix}{name.upper()}: {line}"
        elif len(where) == 2 and _KEYED.match(line):
            yield f"{name}.{line}"
        else:
            yield f"{name}: {line}"


def _unknown(where: tuple[str, ...], names: Collection[str]) -> str:
    known: Collection[str] = ()
    if len(where) == 1:
        known = names
    elif len(where) == 3:
        known = _OF_PRESET
    elif len(where) == 2:
        known = UserLimits.model_fields
    else:
        known = _TABLES.get(where[2], ())
    near = difflib.get_close_matches(where[-1], known, n=1)
    if near:
        return f"{'.'.join(where)} is no setting; did you mean {near[0]}?"
    all_told = f"; there are {', '.join(known)}" if len(where) > 3 and known else ""
    return f"{'.'.join(where)} is no setting{all_told}"


def _is_of_file(line: str) -> bool:
    return line.startswith(("presets", "limits"))

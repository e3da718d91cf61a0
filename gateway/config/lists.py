"""Lists: several values in one string, between commas; or a JSON list, where one has a comma."""

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

_MEANT = re.compile(r"""\s*\[\s*(?:["']|\]\s*\Z)""")


def listed(value: Any) -> Any:
    """Return what a string lists, anything else as it is; raises ValueError, which quotes none."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, SecretStr) else value
    parts = _in_json(value) if meant_as_json(value) else value.split(",")
    if not _is_text(parts):
        raise ValueError("has a character that is none in UTF-8")
    return tuple(part.strip() for part in parts if part.strip())


def meant_as_json(text: str) -> bool:
    """Whether a text begins as a JSON list of strings.

    Split at its commas or lines, one with a comma too many would be secrets that anybody guesses,
    as "[" is.
    """
    return _MEANT.match(text) is not None


def _in_json(text: str) -> list[str]:
    try:
        found = json.loads(text)
        "".join(found)  # Fails where one is no string.
    except (ValueError, TypeError, RecursionError):
        raise ValueError("begins as a JSON list of strings, and is none") from None
    return list(found)


def _is_text(parts: Sequence[str]) -> bool:
    """Whether these can be encoded: of bytes that are no text, Python makes half characters."""
    return not any("\ud800" <= each <= "\udfff" for part in parts for each in part)


def joined(parts: Sequence[str]) -> str:
    """Return a string that lists these."""
    if any("," in each or each.startswith("[") for each in parts):
        return json.dumps(list(parts))
    return ",".join(parts)

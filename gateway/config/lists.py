"""Lists: several values in one string, between commas; or a JSON list, where one has a comma."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr


def listed(value: Any) -> Any:
    """Return what a string lists, anything else as it is; raises ValueError, which quotes none."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, SecretStr) else value
    parts = in_json(value)
    if parts is None:
        if value.lstrip().startswith('["'):  # Split at its commas, it would be nobody's secrets.
            raise ValueError("begins as a JSON list of strings, and is none")
        parts = value.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def in_json(text: str) -> list[str] | None:
    """Return the strings of a JSON list, None if a text is no such list."""
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return found
    return None


def joined(parts: Sequence[str]) -> str:
    """Return a string that lists these."""
    if any("," in each or each.startswith("[") for each in parts):
        return json.dumps(list(parts))
    return ",".join(parts)

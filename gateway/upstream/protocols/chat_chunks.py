"""Chunks of a streamed chat completion: their JSON, whatever it is. Pure."""

import json
from typing import Any

DONE = b"[DONE]"

_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN would not be JSON for a page.
_PATIENT = json.JSONDecoder(
    parse_constant=lambda _: None, parse_int=lambda digits: int(digits) if len(digits) < 20 else 0
)


def decoded(data: bytes) -> dict[str, Any]:
    """Return a JSON object, {} for whatever else the bytes are."""
    text = data.decode("utf-8", "replace")
    try:
        chunk = _DECODER.decode(text)
    except RecursionError:
        return {}
    except ValueError:  # It may be a number with more digits than Python reads.
        try:
            chunk = _PATIENT.decode(text)
        except (ValueError, RecursionError):
            return {}
    return chunk if isinstance(chunk, dict) else {}


def is_whole(data: bytes) -> bool:
    """Whether nothing can be missing at the end of an event's data."""
    return data.strip() == DONE or bool(decoded(data))


def written(value: Any) -> str:
    """Return what a model wrote where it is told as JSON and not as text; "" for nothing."""
    if value in (None, "", [], {}):
        return ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""


def choices_of(chunk: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the choices of an event with their numbers; a number that is none is their place."""
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return []
    found = [each for each in choices if isinstance(each, dict)]
    return [(_index(each.get("index"), place), each) for place, each in enumerate(found)]


def _index(index: Any, place: int) -> int:
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    if isinstance(index, float) and index.is_integer():
        return int(index)
    return index if isinstance(index, int) and not isinstance(index, bool) else place

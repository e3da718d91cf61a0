"""Text: what an answer says, by the chunks of a chat completion or by `format=text`."""

import json
from collections.abc import Iterable
from typing import Any

from tests.conformance.events import OURS, Event


def deltas(events: Iterable[Event]) -> str | None:
    """Return the text of choice 0; None where a chunk is of a shape that is not judged here."""
    said = ""
    for event in events:
        if event.name == "reset":
            said = ""
        if event.name in OURS or event.data.strip() == "[DONE]":
            continue
        try:
            chunk = json.loads(event.data)
        except ValueError:
            return None
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
            return None
        for choice in chunk["choices"]:
            if (text := _of(choice)) is None:
                return None
            said += text
    return said


def _of(choice: Any) -> str | None:
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict) or delta.get("refusal") or type(choice.get("index")) is not int:
        return None
    content = delta.get("content")
    if content is not None and not isinstance(content, str):
        return None
    return (content or "") if choice["index"] == 0 else ""


def joined(events: Iterable[Event]) -> str:
    """Return what a stream of `format=text` says."""
    said = ""
    for event in events:
        said = "" if event.name == "reset" else said + ("" if event.name in OURS else event.data)
    return said


def plain(text: str) -> str:
    """Return a text with whole surrogate pairs, and the line ends of an event stream."""
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")

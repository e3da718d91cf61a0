"""Readings: what the events of an answer say, in words that no provider has. Pure.

For a client that knows none of them. A protocol reads its own events; what becomes of the readings
is for who shows them. Of several answers in one stream they tell the one whose text is the text.
"""

import typing
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import written

Key = int | str | tuple[int | str, ...]
Finish = Literal["stop", "length", "content-filter", "tool-calls", "other"]
Noted = dict[str, dict[str, Any]]  # By provider: what it wants back with what it said.

_FINISHES: dict[str, Finish] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed", "complete"), "stop"),
    **dict.fromkeys(("done", "eos", "eos_token", "end", "finished", "success"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "max_length", "incomplete"), "length"),
    **dict.fromkeys(("content_filter", "refusal", "safety", "recitation"), "content-filter"),
    **dict.fromkeys(("blocklist", "prohibited_content", "spii", "language"), "content-filter"),
    **dict.fromkeys(("image_safety", "blocked", "error_toxic"), "content-filter"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool-calls"),
}


class Said(NamedTuple):
    """A piece of the text; another block is another part of it."""

    text: str
    block: Key = 0


class Thought(NamedTuple):
    """A piece of what was thought, and not said."""

    text: str
    block: Key = 0


class ThoughtOver(NamedTuple):
    """A block of thoughts is whole; it may have no text that is shown."""

    block: Key
    noted: Noted


class Called(NamedTuple):
    """A call of a tool of the caller's begins; `call_id` is "" where the upstream gives none."""

    key: Key
    name: str
    call_id: str = ""


class Given(NamedTuple):
    """A piece of the JSON that a tool is called with."""

    key: Key
    text: str


class CallOver(NamedTuple):
    """A tool's input is whole."""

    key: Key
    noted: Noted


class Source(NamedTuple):
    """A page that the answer refers to; "" is no title."""

    url: str
    title: str = ""


Reading = Said | Thought | ThoughtOver | Called | Given | CallOver | Source


class Readings(typing.Protocol):
    """Reads one answer, event by event from its start."""

    def of(self, event: Event) -> Iterable[Reading]:
        """Return what an event adds to the answer. Total, whatever it is."""


def finish_of(reason: str | None) -> Finish:
    """Return why an answer that is whole has ended, of an upstream's word for it."""
    return "stop" if reason is None else _FINISHES.get(reason.lower(), "other")


def whole_call(key: Key, called: Called, given: Any, noted: Noted) -> list[Reading]:
    """Return the readings of a call that comes in one piece, its input as text or as JSON."""
    text = given if isinstance(given, str) else written(given)
    return [called, *([Given(key, text)] if text else []), CallOver(key, noted)]


def source_in(place: Any, url: str = "url") -> list[Reading]:
    """Return the source that an object tells, if it tells one."""
    found = string(place.get(url)) if isinstance(place, dict) else ""
    if not found.startswith(("http://", "https://")):
        return []
    return [Source(found, string(place.get("title")))]


def string(value: Any) -> str:
    """Return a text, "" for whatever else."""
    return value if isinstance(value, str) else ""


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, of whatever else none."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []

"""Responses readings: what the events of a response say, item by item. Pure.

An item may come in pieces, or whole with its end, or only in the last snapshot of all.
"""

from collections.abc import Iterable
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.readings import (
    Called,
    CallOver,
    Given,
    Reading,
    Said,
    Thought,
    ThoughtOver,
    objects,
    source_in,
    string,
)
from gateway.upstream.protocols.responses_events import end_of
from gateway.upstream.protocols.responses_text import ResponsesText

_THOUGHTS = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
_ADDED, _DONE = "response.output_item.added", "response.output_item.done"
_GIVEN = "response.function_call_arguments.delta"
_NOTED = "response.output_text.annotation.added"


class ResponsesReadings:
    """Text, thoughts, calls of functions and cited pages."""

    def __init__(self) -> None:
        self._text = ResponsesText()
        self._inputs: dict[int, bool] = {}  # Calls, and whether any of their input has come.
        self._whole: set[int] = set()

    def of(self, event: Event) -> list[Reading]:
        """Return what an event adds to an item."""
        told = decoded(event.data)
        kind, index = told.get("type"), told.get("output_index")
        place = index if isinstance(index, int) else 0
        text = self._text.text_of(event)
        found: list[Reading] = [Said(text, place)] if text else []
        if kind in _THOUGHTS and (thought := string(told.get("delta"))):
            found.append(Thought(thought, (place, *_number(told))))
        elif kind in (_ADDED, _DONE) and isinstance(told.get("item"), dict):
            found += self._item(place, told["item"], whole=kind == _DONE)
        elif kind == _GIVEN and place in self._inputs:
            self._inputs[place] = True
            found.append(Given(place, string(told.get("delta"))))
        elif kind == _NOTED:
            found += source_in(told.get("annotation"))
        elif end := end_of(told):
            found += self._rest(objects(end.response.get("output")))
        return found

    def _item(self, place: int, item: dict[str, Any], *, whole: bool) -> Iterable[Reading]:
        if item.get("type") == "function_call" and place not in self._whole:
            if place not in self._inputs:
                self._inputs[place] = False
                yield Called(place, string(item.get("name")), string(item.get("call_id")))
            if whole:
                self._whole.add(place)
                if not self._inputs[place] and (text := string(item.get("arguments"))):
                    yield Given(place, text)
                yield CallOver(place, {})
        elif item.get("type") == "reasoning" and whole and item.get("encrypted_content"):
            told = {"itemId": item.get("id")}
            kept = {**told, "reasoningEncryptedContent": item["encrypted_content"]}
            yield ThoughtOver((place, "whole"), {"openai": kept})

    def _rest(self, items: list[dict[str, Any]]) -> Iterable[Reading]:
        for place, item in enumerate(items):
            if item.get("type") == "function_call":
                yield from self._item(place, item, whole=True)


def _number(told: dict[str, Any]) -> tuple[int, ...]:
    """Return which of an item's thoughts it is, as far as that is told."""
    numbers = (told.get("summary_index"), told.get("content_index"))
    return tuple(each for each in numbers if isinstance(each, int))

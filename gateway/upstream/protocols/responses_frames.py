"""Frames of a streamed response: its events without those that are logged, or without our prompt.

A snapshot repeats what was asked. Where a preset has a prompt of its own, the page does not get it
back: nowhere else, but in Ollama's `context`, are the bytes of an answer changed. Pure.
"""

from gateway.sse import Event, Parser
from gateway.upstream.protocols.base import NONE
from gateway.upstream.protocols.responses_events import is_large, is_logged, without_echo


class ResponsesFrames(Parser):
    """The events after number `last`, those that echo a prompt without it if it `hides` one."""

    def __init__(self, limit: int, noise: int | None, last: int, *, hides: bool) -> None:
        super().__init__(limit, noise, is_large)
        self._last = last
        self._hides = hides

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        return self._shown(super().feed(chunk))

    def rest(self) -> list[Event]:
        """Return the last event of a whole body, where the blank line after it is missing."""
        return self._shown(super().rest())

    def _shown(self, events: list[Event]) -> list[Event]:
        if self._last != NONE:
            events = [each for each in events if not is_logged(each.data, self._last)]
        if self._hides:
            events = [each._replace(data=without_echo(each.data)) for each in events]
        return events

"""Ollama readings: what the lines of an answer say. Pure."""

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.readings import (
    Called,
    Reading,
    Said,
    Thought,
    objects,
    string,
    whole_call,
)


class OllamaReadings:
    """Thoughts, text and calls; of a call its input comes in one piece."""

    def __init__(self) -> None:
        self._calls = 0

    def of(self, event: Event) -> list[Reading]:
        """Return what a line adds."""
        chunk = decoded(event.data)
        message = chunk.get("message")
        message = message if isinstance(message, dict) else chunk
        thought = string(message.get("thinking"))
        text = string(message.get("content" if message is not chunk else "response"))
        found: list[Reading] = [Thought(thought)] if thought else []
        found += [Said(text)] if text else []
        for call in objects(message.get("tool_calls")):
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            key, self._calls = self._calls, self._calls + 1
            called = Called(key, string(function.get("name")), string(call.get("id")))
            found += whole_call(key, called, function.get("arguments"), {})
        return found

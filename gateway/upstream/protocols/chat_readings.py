"""Chat readings: what the chunks of a chat completion say, in all the ways of the field. Pure."""

from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import choices_of, decoded, written
from gateway.upstream.protocols.chat_text import ChatText
from gateway.upstream.protocols.readings import (
    Called,
    Given,
    Key,
    Reading,
    Said,
    Thought,
    objects,
    source_in,
    string,
)

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # The same, where two are there.


class ChatReadings:
    """The choice whose text is the answer's."""

    def __init__(self) -> None:
        self._text = ChatText()
        self._keys: dict[Any, Key] = {}  # Of the call that an index stands for now.
        self._ids: dict[Key, str] = {}
        self._has_deltas = False

    def of(self, event: Event) -> list[Reading]:
        """Return thoughts, then text, then calls, then sources."""
        text, chunk = self._text.text_of(event), decoded(event.data)
        mine = [choice for index, choice in choices_of(chunk) if index == self._text.index]
        messages = [self._message(choice) for choice in mine]
        found: list[Reading] = [Thought(t) for message in messages if (t := _thoughts(message))]
        if text:
            found.append(Said(text, self._text.index or 0))
        for message in messages:
            found += self._calls(message)
            for each in objects(message.get("annotations")):
                found += source_in(each.get("url_citation", each))
        for each in objects(chunk.get("search_results")):
            found += source_in(each)
        cited = chunk.get("citations")  # Perplexity's, in every chunk.
        for url in cited if isinstance(cited, list) else ():
            found += source_in({"url": url})
        return found

    def _message(self, choice: dict[str, Any]) -> dict[str, Any]:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._has_deltas = True
            return delta
        whole = choice.get("message")  # Beside or after deltas it repeats them.
        return whole if isinstance(whole, dict) and not self._has_deltas else {}

    def _calls(self, message: dict[str, Any]) -> list[Reading]:
        found: list[Reading] = []
        for place, call in enumerate(objects(message.get("tool_calls"))):
            index, call_id = call.get("index", place), string(call.get("id"))
            found += self._call(index, call_id, call.get("function"))
        if isinstance(message.get("function_call"), dict):
            found += self._call("function", "", message["function_call"])
        return found

    def _call(self, index: Any, call_id: str, function: Any) -> list[Reading]:
        """Return what a piece of a call says; some number all calls alike, and only ids differ."""
        if not isinstance(function, dict) or not isinstance(index, int | str):
            return []
        found: list[Reading] = []
        key = self._keys.get(index)
        if key is None or (call_id and self._ids[key] and call_id != self._ids[key]):
            key = self._keys[index] = (index, len(self._ids))
            found.append(Called(key, string(function.get("name")), call_id))
        self._ids[key] = call_id or self._ids.get(key, "")
        given = function.get("arguments")
        text = given if isinstance(given, str) else written(given)
        return [*found, Given(key, text)] if text else found


def _thoughts(message: dict[str, Any]) -> str:
    named = next(filter(None, (string(message.get(name)) for name in _THOUGHTS)), "")
    if named:
        return named
    parts = [each.get("thinking") for each in objects(message.get("content"))]  # Mistral's.
    return "".join(
        part if isinstance(part, str) else "".join(string(e.get("text")) for e in objects(part))
        for part in parts
    )

"""Anthropic readings: what the events of a message say, block by block. Pure."""

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
    whole_call,
)


class AnthropicReadings:
    """Text, thoughts and calls; of tools that Anthropic itself runs only the sources."""

    def __init__(self) -> None:
        self._signed: dict[int, str] = {}  # The thoughts that are not whole, and their signatures.
        self._calls: set[int] = set()  # The calls that are not.

    def of(self, event: Event) -> list[Reading]:
        """Return what an event adds to a block, or that it is whole."""
        told = decoded(event.data)
        kind, index = told.get("type", event.name.decode("utf-8", "replace")), told.get("index")
        if not isinstance(index, int):
            return []
        if kind == "content_block_start" and isinstance(told.get("content_block"), dict):
            return self._begun(index, told["content_block"])
        if kind == "content_block_delta" and isinstance(told.get("delta"), dict):
            return self._added(index, told["delta"])
        return self._over(index) if kind == "content_block_stop" else []

    def _begun(self, index: int, block: dict[str, Any]) -> list[Reading]:
        kind = block.get("type")
        if kind == "text":
            return _piece(Said, block.get("text"), index)
        if kind == "thinking":
            self._signed[index] = string(block.get("signature"))
            return _piece(Thought, block.get("thinking"), index)
        if kind == "redacted_thinking":
            return [ThoughtOver(index, {"anthropic": {"redactedData": string(block.get("data"))}})]
        if kind == "tool_use":
            return self._called(index, block)
        results = objects(block.get("content"))  # Of a search that was made there.
        return [source for each in results for source in source_in(each)]

    def _called(self, index: int, block: dict[str, Any]) -> list[Reading]:
        called = Called(index, string(block.get("name")), string(block.get("id")))
        if block.get("input"):  # Some servers tell it at once.
            return whole_call(index, called, block["input"], {})
        self._calls.add(index)
        return [called]

    def _added(self, index: int, delta: dict[str, Any]) -> list[Reading]:
        kind = delta.get("type")
        if kind == "text_delta":
            return _piece(Said, delta.get("text"), index)
        if kind == "thinking_delta":
            self._signed.setdefault(index, "")
            return _piece(Thought, delta.get("thinking"), index)
        if kind == "signature_delta":
            self._signed[index] = self._signed.get(index, "") + string(delta.get("signature"))
        elif kind == "input_json_delta" and index in self._calls:
            text = string(delta.get("partial_json"))
            return [Given(index, text)] if text else []
        elif kind == "citations_delta":
            return source_in(delta.get("citation"))
        return []

    def _over(self, index: int) -> list[Reading]:
        if index in self._calls:
            self._calls.discard(index)
            return [CallOver(index, {})]
        signature = self._signed.pop(index, None)
        if signature is None:
            return []
        return [ThoughtOver(index, {"anthropic": {"signature": signature}} if signature else {})]


def _piece(kind: type[Said] | type[Thought], text: Any, index: int) -> list[Reading]:
    return [kind(piece, index)] if (piece := string(text)) else []

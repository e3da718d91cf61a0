"""Anthropic whole: the events of a streamed message as the message that they are of. Pure."""

from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.chat_chunks import decoded

_TEXTS = {  # Deltas whose text is joined: where it is, and where it goes.
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("partial_json", "input"),
}
_MOST = 10_000  # Blocks.


class AnthropicWhole:
    """A message, from its events."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}

    def see(self, event: Event) -> None:
        """Take note of one event."""
        told = decoded(event.data)
        kind, index = told.get("type", event.name.decode("utf-8", "replace")), told.get("index")
        if kind == "message_start" and isinstance(told.get("message"), dict):
            self._message = dict(told["message"])
        elif kind == "message_delta":
            self._end(told)
        elif isinstance(index, int) and len(self._blocks) < _MOST:
            self._note(kind, index, told)

    def answer(self) -> dict[str, Any]:
        """Return the message."""
        content = [self._block(index) for index in sorted(self._blocks)]
        return {**self._message, "content": content} if self._message else {}

    def _note(self, kind: str, index: int, told: dict[str, Any]) -> None:
        block, delta = told.get("content_block"), told.get("delta")
        if kind == "content_block_start" and isinstance(block, dict):
            self._blocks[index] = dict(block)
        elif kind == "content_block_delta" and isinstance(delta, dict) and index in self._blocks:
            self._add(index, delta)

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        kind, block = delta.get("type"), self._blocks[index]
        if not isinstance(kind, str):
            return
        if kind in _TEXTS:
            source, target = _TEXTS[kind]
            self._texts.setdefault((index, target), []).append(str(delta.get(source) or ""))
        elif kind == "citations_delta":
            known = block.get("citations")
            known = known if isinstance(known, list) else []
            block["citations"] = [*known, delta.get("citation")]
        else:  # A signature, and what there may be some day.
            block |= {name: value for name, value in delta.items() if name != "type"}

    def _end(self, told: dict[str, Any]) -> None:
        for name, value in told.items():
            if name in ("delta", "usage") and isinstance(value, dict):
                more = {key: each for key, each in value.items() if each is not None}
                known = self._message if name == "delta" else self._message.get(name)
                more = {**known, **more} if isinstance(known, dict) else more
                self._message |= more if name == "delta" else {name: more}
            elif name not in ("type", "delta", "usage"):
                self._message[name] = value

    def _block(self, index: int) -> dict[str, Any]:
        block = dict(self._blocks[index])
        for name in ("text", "thinking"):
            if texts := self._texts.get((index, name)):
                block[name] = str(block.get(name) or "") + "".join(texts)
        if (index, "input") in self._texts:
            text = "".join(self._texts[index, "input"])
            if text:
                block["input"] = decoded(text.encode("utf-8", "replace"))
        return block

"""Anthropic: its Messages, `POST /v1/messages`. Pure.

`message_stop` is the end. The reason comes before it, in `message_delta`, which also tells what the
answer took; the prompt's part of the price is in `message_start`, beside a first count of the
answer's that is no more than a beginning.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols.anthropic_readings import AnthropicReadings
from gateway.upstream.protocols.base import HttpRequest, Tokens
from gateway.upstream.protocols.chat_chunks import DONE, decoded
from gateway.upstream.protocols.conversation import Turn
from gateway.upstream.protocols.conversations import for_messages
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.requests import EVENTS, Framed, headers_of
from gateway.upstream.protocols.terminal_state import TerminalState
from gateway.upstream.protocols.usage import count_in, sum_in

_VERSION = (b"anthropic-version", b"2023-06-01")
_FORM = Form(system="system", system_as="blocks", copies=(), needed=frozenset(("max_tokens",)))

_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_GENERATED = ("text", "thinking", "partial_json", "name")
_TELLING = frozenset({b"message_start", b"message_delta", b"message_stop"})
_tells = re.compile(rb'"(?:message_(?:start|delta|stop)|usage|\w*error)"').search


class Anthropic(Framed):
    """Messages, streamed as server-sent events."""

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request to send; raises Rejected where it is not allowed."""
        return ruled(preset, body, _FORM)

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return _FORM

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key and the version in headers of their own."""
        key = preset.api_key.get_secret_value()
        more = [_VERSION, *([(b"x-api-key", key.encode())] if key else [])]
        return HttpRequest("POST", preset.url, headers_of(preset, EVENTS, *more), body)

    def completion(self, body: bytes = b"") -> "AnthropicState":
        """Return the state of an answer."""
        return AnthropicState()

    def closes(self, event: Event) -> bool:
        """Whether it is `message_stop`, or `[DONE]` as some servers send it."""
        if event.data.strip() == DONE:
            return True
        return bool(_is_telling(event)) and _kind(decoded(event.data), event) == "message_stop"

    def readings(self) -> AnthropicReadings:
        """Return what reads an answer from its start."""
        return AnthropicReadings()

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far."""
        return for_messages(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return [_said(decoded(event.data))]

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> "AnthropicText":
        """Return the text of an answer."""
        return AnthropicText()


class AnthropicState(TerminalState):
    """What the events of a message have told so far."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = False  # Whether `message_delta` told what the answer took.

    def _tells(self, event: Event) -> bool:
        return _is_telling(event)

    def _is_piece(self, data: bytes) -> bool:
        return b'"content_block_delta"' in data

    def _begins(self, data: bytes) -> bool:
        return b'"content_block_start"' in data

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        usage, kind = chunk.get("usage"), _kind(chunk, event)
        self.note_usage([chunk.get("message"), chunk], len(event.data))
        delta = chunk.get("delta")
        if kind == "message_delta":
            self._counted |= isinstance(usage, dict) and usage.get(self.counts) is not None
            self.note_reason(delta.get("stop_reason") if isinstance(delta, dict) else None)
        elif kind == "message_stop":
            self.finish()

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        cached = count_in(usage, "cache_read_input_tokens")
        return Tokens(sum_in(usage, *_PROMPT), count_in(usage, "output_tokens"), cached)

    def _is_counted(self, usage: dict[str, Any]) -> bool:
        return self._counted


class AnthropicText:
    """The text of a message: that of its text blocks, one after the other."""

    anew = False

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds; thoughts and calls of tools are none."""
        if b'"text"' not in event.data:
            return ""
        chunk = decoded(event.data)
        kind = _kind(chunk, event)
        if kind == "content_block_delta":
            return _text(chunk.get("delta"), "text_delta")
        if kind == "content_block_start":
            return _text(chunk.get("content_block"), "text")
        return ""


def _is_telling(event: Event) -> bool:
    return event.name in _TELLING or _tells(event.data) is not None


def _kind(chunk: dict[str, Any], event: Event) -> str:
    """Return an event's type: what its data say, else its name, as Anthropic's SDKs take it."""
    kind = chunk.get("type", event.name.decode("utf-8", "replace"))
    return kind if isinstance(kind, str) else ""


def _said(chunk: dict[str, Any]) -> str:
    """Return all that an event has of a message, as one text."""
    parts = [chunk.get(name) for name in ("delta", "content_block")]
    texts = [part.get(name) for part in parts if isinstance(part, dict) for name in _GENERATED]
    return "".join([text for text in texts if isinstance(text, str)])


def _text(part: Any, kind: str) -> str:
    if not isinstance(part, dict) or part.get("type") != kind:
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""

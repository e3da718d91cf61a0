"""Ollama: its own API, `/api/chat` and `/api/generate`: a JSON object a line. Pure.

`"done": true` is the end. Some backends tell a `done_reason` without it: that is no end as long as
more follows, and proves a body whole that HTTP says ends there.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols.base import NONE, HttpRequest, Tokens
from gateway.upstream.protocols.chat_chunks import decoded, is_whole, written
from gateway.upstream.protocols.conversation import Turn, no_chat
from gateway.upstream.protocols.conversations import for_ollama
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.ndjson import JsonLines
from gateway.upstream.protocols.ollama_readings import OllamaReadings
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.requests import Lost, bearer, headers_of
from gateway.upstream.protocols.terminal_state import TerminalState
from gateway.upstream.protocols.usage import count_in

_CHAT = Form(caps=("options.num_predict",), copies=())
_GENERATE = _CHAT._replace(messages="prompt", system="system")
_ANSWERS = ("content", "thinking", "tool_calls", "images")  # Members of a message.

_tells = re.compile(
    rb'"(?:done"\s*:\s*[^f\s]|done_reason"|\w*error"|(?:prompt_)?eval_count")'
).search
# In a text a quote is escaped, so this is a member; its tokens are numbers.
_context = re.compile(rb'("context"\s*:\s*)\[[^\]]*\]').sub


class Ollama(Lost):
    """Ollama's chat and generate, streamed as lines of JSON."""

    types = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
    starts: tuple[bytes, ...] = (b"{",)

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request to send; raises Rejected where it is not allowed."""
        return ruled(preset, body, self.form(preset))

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return _GENERATE if _generates(preset) else _CHAT

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent; a key is for a proxy, or for Ollama's own cloud."""
        key = preset.api_key.get_secret_value()
        headers = headers_of(preset, b"application/x-ndjson", *([bearer(key)] if key else []))
        return HttpRequest("POST", preset.url, headers, body)

    def frames(
        self, preset: Preset, limit: int, noise: int | None = None, last: int = NONE
    ) -> JsonLines:
        """Return what cuts lines; of a preset with a prompt of its own, without its tokens."""
        hides = preset.hides and _generates(preset)
        return _LinesWithoutPrompt(limit, noise) if hides else JsonLines(limit, noise)

    def completion(self, body: bytes = b"") -> "OllamaState":
        """Return the state of an answer."""
        return OllamaState()

    def is_whole(self, event: Event) -> bool:
        """Whether it is JSON to its last brace."""
        return is_whole(event.data)

    def closes(self, event: Event) -> bool:
        """Whether it is done."""
        return bool(_tells(event.data)) and decoded(event.data).get("done") is True

    def readings(self) -> OllamaReadings:
        """Return what reads an answer from its start."""
        return OllamaReadings()

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far; raises Rejected where a text is completed."""
        if _generates(preset):
            raise no_chat()
        return for_ollama(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return [_said(decoded(event.data))]

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> "OllamaText":
        """Return the text of an answer."""
        return OllamaText()


class _LinesWithoutPrompt(JsonLines):
    """Lines whose `context` is null: the last of `/api/generate` has all that was asked in it."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        return [_without_context(each) for each in super().feed(chunk)]

    def rest(self) -> list[Event]:
        """Return the last line of a whole body, where the newline after it is missing."""
        return [_without_context(each) for each in super().rest()]


class OllamaState(TerminalState):
    """What the lines of an answer have told so far."""

    counts: ClassVar[str] = "eval_count"

    def __init__(self) -> None:
        super().__init__()
        self._went_on = False  # Whether more came after a reason.

    def _tells(self, event: Event) -> bool:
        return self.finish_reason is not None or _tells(event.data) is not None

    def _is_piece(self, data: bytes) -> bool:
        return b'"message"' in data or b'"response"' in data

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        numbers = {key: value for key, value in chunk.items() if type(value) in (int, float)}
        self.note_usage([{"usage": numbers}], len(event.data))
        if self.note_reason(chunk.get("done_reason")):
            self._went_on = False
        elif _says_something(chunk):
            self._went_on = True
        if chunk.get("done") is True:
            self.finish()

    def _is_whole(self, *, framed: bool) -> bool:
        reasoned = framed and self.finish_reason is not None and not self._went_on
        return super()._is_whole(framed=framed) or reasoned

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        # A prompt that was cached as a whole is not counted at all.
        return Tokens(count_in(usage, "prompt_eval_count"), count_in(usage, "eval_count"))


class OllamaText:
    """The text of an answer."""

    anew = False

    def text_of(self, event: Event) -> str:
        """Return the text that a line adds; thoughts and calls of tools are none."""
        chunk = decoded(event.data)
        message = chunk.get("message")
        said = message.get("content") if isinstance(message, dict) else chunk.get("response")
        return said if isinstance(said, str) else ""


def _generates(preset: Preset) -> bool:
    return urlsplit(preset.url).path.rstrip("/").endswith("/generate")


def _without_context(event: Event) -> Event:
    return event._replace(data=_context(rb"\1null", event.data))


def _said(chunk: dict[str, Any]) -> str:
    """Return all that a line has of an answer, as one text."""
    message = chunk.get("message")
    message = message if isinstance(message, dict) else chunk
    texts = [message.get(name) for name in ("content", "response", "thinking")]
    calls = message.get("tool_calls")
    return "".join([each for each in texts if isinstance(each, str)]) + written(calls)


def _says_something(chunk: dict[str, Any]) -> bool:
    message = chunk.get("message")
    if isinstance(message, dict) and any(message.get(name) for name in _ANSWERS):
        return True
    return bool(chunk.get("response") or chunk.get("thinking"))

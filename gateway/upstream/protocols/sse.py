"""SSE: any other API that streams server-sent events, as a preset declares it. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols.base import HttpRequest
from gateway.upstream.protocols.chat_chunks import DONE
from gateway.upstream.protocols.conversation import Turn
from gateway.upstream.protocols.conversations import for_chat
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.requests import EVENTS, Framed, bearer, headers_of
from gateway.upstream.protocols.sse_paths import End, Pick
from gateway.upstream.protocols.sse_state import (
    Declaration,
    DeclaredReadings,
    DeclaredState,
    DeclaredText,
)


class Declared(Framed):
    """An API of which is known what proves an end, and where text, price and errors are."""

    def __init__(self, *, end: dict[str, Any], **paths: dict[str, Any]) -> None:
        self._declared = Declaration(End(**end), **{name: Pick(**paths[name]) for name in paths})

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request to send; raises Rejected where it is not allowed."""
        return ruled(preset, body, self.form(preset))

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return Form()

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key as a bearer token, unless the preset's headers say more."""
        key = preset.api_key.get_secret_value()
        headers = headers_of(preset, EVENTS, *([bearer(key)] if key else []))
        return HttpRequest("POST", preset.url, headers, body)

    def completion(self, body: bytes = b"") -> DeclaredState:
        """Return the state of an answer."""
        return DeclaredState(self._declared)

    def closes(self, event: Event) -> bool:
        """Whether it is the declared end, or `[DONE]`."""
        return event.data.strip() == DONE or self._declared.end.is_at(event)

    def readings(self) -> DeclaredReadings:
        """Return what reads an answer from its start."""
        return DeclaredReadings(self._declared)

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far, as most APIs take it."""
        return for_chat(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return [DeclaredText(self._declared).text_of(event)]

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> DeclaredText:
        """Return the text of an answer."""
        return DeclaredText(self._declared)

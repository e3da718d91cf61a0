"""Responses: OpenAI's Responses API, as its servers speak it. Pure.

With `background` the upstream keeps the answer and goes on without us: what is left of it can be
asked for by its id and the number of the last event, and it is to be told to stop.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event, Parser
from gateway.upstream.protocols.base import NONE, HttpRequest, Rest
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.conversation import Turn
from gateway.upstream.protocols.conversations import for_responses
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.requests import EVENTS, Framed, bearer, headers_of
from gateway.upstream.protocols.responses_events import (
    ECHOED,
    closes,
    id_in,
    is_large,
    place_in,
)
from gateway.upstream.protocols.responses_frames import ResponsesFrames
from gateway.upstream.protocols.responses_readings import ResponsesReadings
from gateway.upstream.protocols.responses_state import ResponsesState
from gateway.upstream.protocols.responses_text import ResponsesText, said_in

_FORM = Form(
    messages="input",
    system="instructions",
    caps=("max_output_tokens", "max_tokens", "max_completion_tokens"),
    copies=(),
    own=frozenset(("background", "store")),
)
_KEPT = {"background": True, "store": True}


class Responses(Framed):
    """Responses, streamed as server-sent events."""

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request to send; raises Rejected where it is not allowed."""
        request = ruled(preset, body, _FORM)
        if preset.background:
            return request | _KEPT
        if request.get("background") and body.get("background"):
            raise Rejected("field_not_allowed", '"background" is for the preset to say.')
        return request

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return _FORM

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key as a bearer token, unless the preset's headers say more."""
        return HttpRequest("POST", preset.url, _headers(preset, EVENTS), body)

    def frames(
        self, preset: Preset, limit: int, noise: int | None = None, last: int = NONE
    ) -> Parser:
        """Return the parser of an event stream, of one that is gone on with after `last`."""
        hides = preset.hides or not ECHOED.isdisjoint({*preset.defaults, *preset.force})
        if last == NONE and not hides:
            return Parser(limit, noise, is_large)
        return ResponsesFrames(limit, noise, last, hides=hides)

    def completion(self, body: bytes = b"") -> ResponsesState:
        """Return the state of an answer with nothing seen."""
        return ResponsesState()

    def closes(self, event: Event) -> bool:
        """Whether it is the last snapshot, or `[DONE]`."""
        return closes(event.data)

    def readings(self) -> ResponsesReadings:
        """Return what reads an answer from its start."""
        return ResponsesReadings()

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far."""
        return for_responses(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return said_in(decoded(event.data))

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> ResponsesText:
        """Return the text of an answer that began so: with which pieces it comes in."""
        return ResponsesText(begun)

    def keeps(self, preset: Preset) -> bool:
        """Whether the preset asks for background responses."""
        return preset.background

    def rest(self, preset: Preset, seen: Iterable[Event]) -> Rest | None:
        """Return what asks a background response for what follows its last event."""
        place = place_in(seen) if preset.background else None
        if place is None:
            return None
        name, last = place
        url = _url(preset, name, query=f"stream=true&starting_after={last}")
        return Rest(HttpRequest("GET", url, _headers(preset, EVENTS)), last)

    def look(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return what asks how a background response is."""
        return _about(preset, seen, "GET")

    def goes_on(self, body: bytes) -> bool:
        """Whether it waits to be begun, or is under way."""
        return decoded(body).get("status") in ("queued", "in_progress")

    def stop(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return what cancels a background response; others end with their connection."""
        return _about(preset, seen, "POST", "cancel")


def _about(preset: Preset, seen: Iterable[Event], method: str, *path: str) -> HttpRequest | None:
    name = id_in(seen) if preset.background else ""
    if not name:
        return None
    return HttpRequest(method, _url(preset, name, *path), _headers(preset, b"application/json"))


def _headers(preset: Preset, accept: bytes) -> tuple[tuple[bytes, bytes], ...]:
    key = preset.api_key.get_secret_value()
    return headers_of(preset, accept, *([bearer(key)] if key else []))


def _url(preset: Preset, *path: str, query: str = "") -> str:
    """Return a URL under the preset's, with its query: Azure's has a version there."""
    parts = urlsplit(preset.url)
    under = "/".join((parts.path.rstrip("/"), *path))
    queries = "&".join(filter(None, (parts.query, query)))
    return urlunsplit((parts.scheme, parts.netloc, under, queries, ""))

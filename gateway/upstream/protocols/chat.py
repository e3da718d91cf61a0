"""Chat: OpenAI's chat completions, and what the field has made of them. Pure."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import FRAMES, Event, Parser
from gateway.upstream.protocols.base import NONE, HttpRequest, Refusal, Rest
from gateway.upstream.protocols.chat_chunks import DONE, is_whole
from gateway.upstream.protocols.chat_state import ChatState
from gateway.upstream.protocols.chat_text import ChatText
from gateway.upstream.protocols.complaints import ERROR_NAMES
from gateway.upstream.protocols.refusals import judged

_HEADERS = (
    (b"Content-Type", b"application/json"),
    (b"Accept", b"text/event-stream"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", b"sse-ticket-gateway"),
)


class Chat:
    """Chat completions, streamed as server-sent events."""

    types = frozenset({"text/event-stream"})
    starts: tuple[bytes, ...] = FRAMES

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the completion request to send; raises Rejected where it is not allowed."""
        request = {**preset.defaults, **_as_seen(preset, body), **preset.force}
        if request.setdefault("stream", True) is not True:
            raise Rejected("stream_required", 'Leave "stream" out, or set it to true.')
        if preset.models and request.get("model") not in preset.models:
            allowed = ", ".join(preset.models)
            raise Rejected("model_not_allowed", f"Allowed are: {allowed}.")
        if preset.include_usage:
            options = request.get("stream_options")
            options = {} if options is None else options
            if not isinstance(options, dict):
                raise Rejected("not_an_object", '"stream_options" must be an object.')
            request["stream_options"] = {"include_usage": True, **options}
        return request

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key as a bearer token, unless the preset's headers say more."""
        ours = list(_HEADERS)
        if key := preset.api_key.get_secret_value():
            ours.append((b"Authorization", f"Bearer {key}".encode()))
        given = [(name.encode(), value.encode("latin-1")) for name, value in preset.headers.items()]
        names = {name.lower() for name, _ in given}
        kept = [each for each in ours if each[0].lower() not in names]
        return HttpRequest("POST", preset.url, (*kept, *given), body)

    def frames(
        self, preset: Preset, limit: int, noise: int | None = None, last: int = NONE
    ) -> Parser:
        """Return the parser of an event stream."""
        return Parser(limit, noise)

    def completion(self, body: bytes = b"") -> ChatState:
        """Return the state of an answer with as many choices as were asked for."""
        wanted = json.loads(body or b"{}").get("n")
        return ChatState(wanted if isinstance(wanted, int) and wanted > 0 else 1)

    def is_whole(self, event: Event) -> bool:
        """Whether it is `[DONE]`, or JSON to its last brace, or an error by its name."""
        return is_whole(event.data) or event.name.lower() in ERROR_NAMES

    def closes(self, event: Event) -> bool:
        """Whether it is `[DONE]`."""
        return event.data.strip() == DONE

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> ChatText:
        """Return the text of choice 0, or of the lowest that such a beginning shows."""
        return ChatText.after(begun, choices)

    def refused(
        self, preset: Preset, status: int, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Refusal:
        """Judge by the status, by what OpenAI's headers add to it, and by an error in the body."""
        return judged(preset, status, headers, body)

    def rest(self, preset: Preset, seen: Iterable[Event]) -> Rest | None:
        """Return None: a chat completion is lost with its connection."""
        return None

    def look(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return None: who is silent for too long is lost."""
        return None

    def goes_on(self, body: bytes) -> bool:
        """Return False: nobody is asked."""
        return False

    def stop(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return None: a closed connection stops it."""
        return None


def _as_seen(preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
    """Leave out other spellings of what is checked or forced here.

    Upstreams written in Go take `MODEL` for `model`, the later of the two: what was allowed would
    not be what is asked for.
    """
    ours = {"stream", "stream_options", "model", *preset.force}
    folded = {name.casefold() for name in ours}
    return {k: v for k, v in body.items() if k in ours or k.casefold() not in folded}

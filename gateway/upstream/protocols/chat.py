"""Chat: OpenAI's chat completions, and what the field has made of them. Pure."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import HttpRequest
from gateway.upstream.protocols.chat_chunks import DONE
from gateway.upstream.protocols.chat_state import ChatState
from gateway.upstream.protocols.chat_text import ChatText
from gateway.upstream.protocols.reasons import BROKEN_OFF
from gateway.upstream.protocols.requests import EVENTS, Framed, as_seen, bearer, check, headers_of

_OURS = {"stream", "stream_options", "model"}


class Chat(Framed):
    """Chat completions, streamed as server-sent events; what is given is a dialect's."""

    def __init__(self, *, strict_end: bool = False, broken_off: Sequence[str] = ()) -> None:
        self._strict_end = strict_end
        self._breaks_off = BROKEN_OFF.union(broken_off) if broken_off else BROKEN_OFF

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the completion request to send; raises Rejected where it is not allowed."""
        request = {**preset.defaults, **as_seen(preset, body, _OURS), **preset.force}
        check(preset, request)
        if preset.include_usage:
            options = request.get("stream_options")
            options = {} if options is None else options
            if not isinstance(options, dict):
                raise Rejected("not_an_object", '"stream_options" must be an object.')
            request["stream_options"] = {"include_usage": True, **options}
        return request

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key as a bearer token, unless the preset's headers say more."""
        key = preset.api_key.get_secret_value()
        headers = headers_of(preset, EVENTS, *([bearer(key)] if key else []))
        return HttpRequest("POST", preset.url, headers, body)

    def completion(self, body: bytes = b"") -> ChatState:
        """Return the state of an answer with as many choices as were asked for."""
        wanted = json.loads(body or b"{}").get("n")
        state = ChatState(wanted if isinstance(wanted, int) and wanted > 0 else 1)
        if self._strict_end:  # Nothing is kept of it for the streams of all others.
            state.strict_end = True
        if self._breaks_off is not BROKEN_OFF:
            state.breaks_off = self._breaks_off
        return state

    def closes(self, event: Event) -> bool:
        """Whether it is `[DONE]`."""
        return event.data.strip() == DONE

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> ChatText:
        """Return the text of choice 0, or of the lowest that such a beginning shows."""
        return ChatText.after(begun, choices)

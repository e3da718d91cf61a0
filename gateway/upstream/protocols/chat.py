"""Chat: OpenAI's chat completions, and what the field has made of them. Pure."""

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import HttpRequest
from gateway.upstream.protocols.chat_chunks import DONE, decoded
from gateway.upstream.protocols.chat_readings import ChatReadings
from gateway.upstream.protocols.chat_state import ChatState
from gateway.upstream.protocols.chat_text import ChatText, said_in
from gateway.upstream.protocols.conversation import Turn, no_chat
from gateway.upstream.protocols.conversations import for_chat
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.reasons import BROKEN_OFF
from gateway.upstream.protocols.requests import EVENTS, Framed, bearer, headers_of

_CAPS = ("max_tokens", "max_completion_tokens")  # The newer of both is refused by older servers.
_OTHER_CAPS = ("max_output_tokens", "max_new_tokens", "n_predict", "num_predict")
_FORM = Form(caps=_CAPS + _OTHER_CAPS)
_NEWER = Form(caps=_CAPS[::-1] + _OTHER_CAPS)
_LEGACY = Form(messages="prompt", caps=_CAPS + _OTHER_CAPS)
_NEW_HOSTS = ("openai.com", "openai.azure.com")


class Chat(Framed):
    """Chat completions, streamed as server-sent events; what is given is a dialect's."""

    def __init__(self, *, strict_end: bool = False, broken_off: Sequence[str] = ()) -> None:
        self._strict_end = strict_end
        self._breaks_off = BROKEN_OFF.union(broken_off) if broken_off else BROKEN_OFF

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the completion request to send; raises Rejected where it is not allowed."""
        request = ruled(preset, body, self.form(preset))
        if preset.include_usage:
            options = request.get("stream_options")
            options = {} if options is None else options
            if not isinstance(options, dict):
                raise Rejected("not_an_object", '"stream_options" must be an object.')
            request["stream_options"] = {"include_usage": True, **options}
        return request

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return _form_of(preset)

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

    def readings(self) -> ChatReadings:
        """Return what reads an answer from its start."""
        return ChatReadings()

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far; raises Rejected where a text is completed."""
        if _form_of(preset) is _LEGACY:
            raise no_chat()
        return for_chat(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return said_in(decoded(event.data))

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> ChatText:
        """Return the text of choice 0, or of the lowest that such a beginning shows."""
        return ChatText.after(begun, choices)


def _form_of(preset: Preset) -> Form:
    url = urlsplit(preset.url)
    path = url.path.rstrip("/")
    if path.endswith("/completions") and not path.endswith("/chat/completions"):
        return _LEGACY
    if named := [name for name in _CAPS if name in preset.force or name in preset.defaults]:
        return _FORM if named[0] == _CAPS[0] else _NEWER
    host = f".{url.hostname or ''}"
    return _NEWER if host.endswith(tuple(f".{each}" for each in _NEW_HOSTS)) else _FORM

"""Gemini: Google's `…/models/{model}:streamGenerateContent?alt=sse`. Pure.

Two things of a request are not in its body, which may have no members that Google does not know:
that it streams is in the URL, and so is the model. Until then the model is kept as the body's first
member.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import HttpRequest, Refusal
from gateway.upstream.protocols.chat_chunks import DONE, decoded
from gateway.upstream.protocols.conversation import Turn
from gateway.upstream.protocols.conversations import for_contents
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.gemini_readings import GeminiReadings
from gateway.upstream.protocols.gemini_state import GeminiState
from gateway.upstream.protocols.gemini_text import GeminiText, said_in
from gateway.upstream.protocols.policy import ruled
from gateway.upstream.protocols.requests import EVENTS, Framed, headers_of

_ELSEWHERE = {"stream", "stream_options", "model"}
_FORM = Form(
    messages="contents",
    system="systemInstruction",
    system_as="parts",
    parts=True,
    caps=("generationConfig.maxOutputTokens",),
    copies=("generationConfig.candidateCount",),
)
_PLACE = "{model}"  # In a preset's URL.
_METHOD = ":streamGenerateContent"

_MODEL = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)  # Nothing that leads to another place.
_FIRST = re.compile(rb'\{"model":("(?:[^"\\]|\\.)*")(?:,|(?=\}))')
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)


class Gemini(Framed):
    """Generated content, streamed as server-sent events."""

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request to send, the model first; raises Rejected where it is not allowed."""
        given = ruled(preset, body, _FORM)
        request = {name: value for name, value in given.items() if name not in _ELSEWHERE}
        if "model" not in given and _PLACE not in preset.url:
            return request
        if (model := given.get("model")) is None:
            raise Rejected("model_not_allowed", '"model" is missing.')
        if not isinstance(model, str) or not _MODEL.fullmatch(model):
            words = "has letters, digits, and _ - . after the first"
            raise Rejected(
                "model_not_allowed", f'"model" goes into a URL: it is a text and {words}.'
            )
        return {"model": model, **request}

    def form(self, preset: Preset) -> Form:
        """Return where a request has what is ruled over."""
        return _FORM

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent: the key in a header of its own, the model in the URL."""
        key = preset.api_key.get_secret_value()
        headers = headers_of(preset, EVENTS, *([(b"x-goog-api-key", key.encode())] if key else []))
        model = next(iter(preset.models), "model")
        if first := _FIRST.match(body):
            model = json.loads(first[1])
            body = b"{" + body[first.end() :]
        return HttpRequest("POST", _streaming(preset.url.replace(_PLACE, model)), headers, body)

    def completion(self, body: bytes = b"") -> GeminiState:
        """Return the state of an answer with as many candidates as were asked for."""
        asked = json.loads(body or b"{}")
        told = asked.get("generationConfig", asked.get("generation_config"))
        config = told if isinstance(told, dict) else {}
        wanted = config.get("candidateCount", config.get("candidate_count"))
        return GeminiState(wanted if type(wanted) is int and wanted > 0 else 1)

    def closes(self, event: Event) -> bool:
        """Whether it is `[DONE]`, as servers in between send it; usage may follow a reason."""
        return event.data.strip() == DONE

    def readings(self) -> GeminiReadings:
        """Return what reads an answer from its start."""
        return GeminiReadings()

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return what was said so far."""
        return for_contents(turns)

    def said(self, event: Event) -> list[str]:
        """Return what an event adds to all that was generated."""
        return said_in(decoded(event.data))

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> GeminiText:
        """Return the text of the first candidate, or of the lowest that such a beginning shows."""
        return GeminiText.after(begun, choices)

    def refused(
        self, preset: Preset, status: int, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Refusal:
        """Judge as others do; how long to wait is told in the body rather than in a header."""
        refusal = super().refused(preset, status, headers, body)
        if refusal.retry_after is not None:
            return refusal
        return refusal._replace(retry_after=_retry_delay(body))


def _streaming(url: str) -> str:
    """Return a URL that asks for events: without `alt` its answer is one array of JSON."""
    address, _, query = url.partition("#")[0].partition("?")
    told = {pair.partition("=")[0] for pair in query.split("&")}
    if address.endswith(_METHOD) and "alt" not in told:
        query = f"{query}&alt=sse" if query else "alt=sse"
    return f"{address}?{query}" if query else address


def _retry_delay(body: bytes) -> float | None:
    """Return the seconds of a RetryInfo, None if there is none."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    first = told[0] if isinstance(told, list) and told else told
    error = first.get("error") if isinstance(first, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for each in details if isinstance(details, list) else ():
        delay = each.get("retryDelay") if isinstance(each, dict) else None
        if isinstance(delay, str) and (found := _DELAY.fullmatch(delay)):
            return float(found[1])
    return None

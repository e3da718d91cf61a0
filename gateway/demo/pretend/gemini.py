"""Gemini's generateContent."""

import re
import secrets
from collections.abc import Iterator

from gateway.demo.pretend.base import (
    Asked,
    Event,
    Refused,
    Terms,
    encoded,
    number,
    objects,
    sse,
    tell,
)
from gateway.demo.pretend.text import Object, text_of

_KNOWN = re.compile(  # What a request may say.
    "contents|systemInstruction|system_instruction|generationConfig|generation_config|"
    "safetySettings|safety_settings|tools|toolConfig|tool_config|cachedContent|"
    "cached_content|serviceTier|service_tier|store|labels|pretend"
)
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_STREAM = "streamGenerateContent"


def gemini_error(refused: Refused) -> Object:
    """Return an error in Google's shape, its wait in the body."""
    status = _STATUSES.get(refused.status, "UNKNOWN")
    error: Object = {"code": refused.status, "message": refused.words, "status": status}
    if refused.status == 429:
        info = "type.googleapis.com/google.rpc.RetryInfo"
        error["details"] = [{"@type": info, "retryDelay": "1s"}]
    return {"error": error}


class GeminiAnswer:
    """One answer, its model named by the path."""

    before_queue = 0

    def __init__(self, asked: Asked, messages: list[Object], terms: Terms) -> None:
        config = _config(asked.body)
        most = number(config, "maxOutputTokens", None, 1, 1 << 30)
        most = number(config, "max_output_tokens", most, 1, 1 << 30)
        self._model, _, method = asked.path.rpartition("/")[2].partition(":")
        self._listed = method == _STREAM and asked.query.get("alt") != "sse"
        self.streams = method == _STREAM and not self._listed
        self._told = tell(messages, terms, most)
        self._id = secrets.token_urlsafe(12)

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        yield from (Event(encoded(chunk), tells=True) for chunk in self._pieces())
        yield Event(encoded(self._chunk("", self._told.tokens, end=True)), last=True)

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events."""
        return [Event(encoded(gemini_error(Refused(500, "An internal error has occurred."))))]

    def whole(self) -> str:
        """Return it in one piece: an object, or a list of them where no `alt=sse` was asked for."""
        if self._listed:
            return encoded([*self._pieces(), self._chunk("", self._told.tokens, end=True)])
        return encoded(self._chunk(self._told.text, self._told.tokens, end=True))

    def _pieces(self) -> Iterator[Object]:
        for told, piece in enumerate(self._told.pieces, 1):
            yield self._chunk(piece, told)

    def _chunk(self, text: str, told: int, *, end: bool = False) -> Object:
        content = {"parts": [{"text": text}], "role": "model"}
        reason = {"finishReason": "STOP" if self._told.whole else "MAX_TOKENS"} if end else {}
        usage = {
            "promptTokenCount": self._told.asked,
            "candidatesTokenCount": told,
            "totalTokenCount": self._told.asked + told,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": self._told.asked}],
        }
        return {
            "candidates": [{"content": content, **reason, "index": 0}],
            "usageMetadata": usage,
            "modelVersion": self._model,
            "responseId": self._id,
        }


class Gemini:
    """Gemini, asked at /v1beta/models/MODEL:streamGenerateContent?alt=sse."""

    name = "gemini"
    media_type = "text/event-stream"
    lacks = frozenset({"failed"})
    waits: frozenset[int] = frozenset()  # What it waits for is in the body.

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key or none."""
        given = asked.headers.get("x-goog-api-key") or asked.query.get("key")
        if not given:
            raise Refused(403, "Method doesn't allow unregistered callers.")
        if key and given != key:
            raise Refused(400, "API key not valid. Please pass a valid API key.")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far; raises Refused as Gemini would."""
        if asked.path.rpartition(":")[2] not in (_STREAM, "generateContent"):
            raise Refused(404, "There is no such method of a model.")
        for name in (each for each in asked.body if not _KNOWN.fullmatch(each)):
            words = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
            raise Refused(400, words)
        contents = objects(asked.body, "contents")
        return [
            {"role": each.get("role") or "user", "content": each.get("parts")} for each in contents
        ]

    def answer(self, asked: Asked, terms: Terms) -> GeminiAnswer:
        """Return the answer; raises Refused."""
        return GeminiAnswer(asked, self.messages(asked), terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        return sse(event)

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        return gemini_error(Refused(refused.status, text_of(refused.words)))


def _config(body: Object) -> Object:
    config = body.get("generationConfig") or body.get("generation_config") or {}
    if not isinstance(config, dict):
        raise Refused(400, "'generationConfig' must be an object.")
    return config

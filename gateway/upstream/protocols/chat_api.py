"""Chat API: chat completions, as OpenAI's SDKs expect them. Pure."""

import re
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.api import json_of
from gateway.upstream.protocols.chat_chunks import DONE, choices_of, decoded
from gateway.upstream.protocols.chat_whole import ChatWhole
from gateway.upstream.protocols.problems import Problem

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "not_authenticated": "invalid_api_key",
    "model_not_found": "model_not_found",
    "quota_exhausted": "insufficient_quota",
    "rate_limited": "rate_limit_exceeded",
}
_has_no_choices = re.compile(rb'"choices"\s*:\s*\[\s*\]').search


class ChatApi:
    """`POST /v1/chat/completions`."""

    protocol = "openai"
    path = "/v1/chat/completions"
    needs = "messages"
    request_id = "x-request-id"

    def user(self, body: dict[str, Any]) -> Any:
        """Return its `user`, or the newer name of it."""
        user = body.get("user")
        return body.get("safety_identifier") if user in (None, "") else user

    def wants_usage(self, body: dict[str, Any]) -> bool:
        """Whether its `stream_options` ask for it."""
        options = body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def is_usage(self, event: Event) -> bool:
        """Whether it has a usage and no choice: loops that never asked for it take `choices[0]`."""
        if not _has_no_choices(event.data):
            return False
        chunk = decoded(event.data)
        return isinstance(chunk.get("usage"), dict) and not choices_of(chunk)

    def counts(self, event: Event) -> bool:
        """Whether it is another than `[DONE]`."""
        return event.data.strip() != DONE

    def number(self, event: Event, place: int) -> int:
        """Return its place."""
        return place

    def answer_id(self, event: Event) -> str:
        """Return "": a completion is not asked for again."""
        return ""

    def whole(self) -> ChatWhole:
        """Return what puts a completion together."""
        return ChatWhole()

    def end(self, closing: Event | None) -> list[Event]:
        """Return `[DONE]`, which some upstreams leave out."""
        return [closing or Event(DONE)]

    def bad_end(self, closing: Event) -> list[Event]:
        """Return nothing: `[DONE]` is a good end to every client."""
        return []

    def raises(self, event: Event) -> bool:
        """Whether it has an `error`."""
        return bool(decoded(event.data).get("error"))

    def error(self, problem: Problem) -> dict[str, Any]:
        """Return an error in OpenAI's shape."""
        return {"error": openai_error(problem)}

    def error_event(self, problem: Problem, number: int) -> Event:
        """Return the same as an event."""
        return Event(json_of(self.error(problem)))

    def ended(self, answer: dict[str, Any], problem: Problem | None) -> dict[str, Any]:
        """Return a completion as it is."""
        return answer


def openai_error(problem: Problem) -> dict[str, Any]:
    """Return what OpenAI tells of an error."""
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    return {
        "message": problem.message,
        "type": _KINDS.get(problem.status, kind),
        "param": None,
        "code": _CODES.get(problem.code, problem.code),
    }

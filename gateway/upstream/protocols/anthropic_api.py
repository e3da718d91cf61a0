"""Anthropic API: messages, as Anthropic's SDKs expect them. Pure."""

from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.anthropic_whole import AnthropicWhole
from gateway.upstream.protocols.api import json_of
from gateway.upstream.protocols.problems import Problem

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ERROR = b"error"


class AnthropicApi:
    """`POST /v1/messages`."""

    protocol = "anthropic"
    path = "/v1/messages"
    needs = "messages"
    request_id = "request-id"

    def user(self, body: dict[str, Any]) -> Any:
        """Return the `user_id` of its metadata."""
        metadata = body.get("metadata")
        return metadata.get("user_id") if isinstance(metadata, dict) else None

    def wants_usage(self, body: dict[str, Any]) -> bool:
        """Return True: it comes with events that tell more."""
        return True

    def is_usage(self, event: Event) -> bool:
        """Return False."""
        return False

    def counts(self, event: Event) -> bool:
        """Whether it is no `ping`, which SDKs keep to themselves."""
        return event.name != b"ping"

    def number(self, event: Event, place: int) -> int:
        """Return its place."""
        return place

    def answer_id(self, event: Event) -> str:
        """Return "": a message is not asked for again."""
        return ""

    def whole(self) -> AnthropicWhole:
        """Return what puts a message together."""
        return AnthropicWhole()

    def end(self, closing: Event | None) -> list[Event]:
        """Return `message_stop`."""
        return [] if closing is None else [closing]

    def bad_end(self, closing: Event) -> list[Event]:
        """Return nothing: `message_stop` is a good end."""
        return []

    def raises(self, event: Event) -> bool:
        """Whether it has the name at which SDKs raise."""
        return event.name == _ERROR

    def error(self, problem: Problem) -> dict[str, Any]:
        """Return an error in Anthropic's shape."""
        other = "api_error" if problem.status >= 500 else "invalid_request_error"
        kind = _KINDS.get(problem.status, other)
        return {"type": "error", "error": {"type": kind, "message": problem.message}}

    def error_event(self, problem: Problem, number: int) -> Event:
        """Return the same as an event."""
        return Event(json_of(self.error(problem)), _ERROR)

    def ended(self, answer: dict[str, Any], problem: Problem | None) -> dict[str, Any]:
        """Return a message as it is."""
        return answer

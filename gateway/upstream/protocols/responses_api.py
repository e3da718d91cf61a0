"""Responses API: responses, as OpenAI's SDKs expect them. Pure.

The object that an answer is comes with its last event, and what there is of it with the first ones.
"""

from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols.api import json_of
from gateway.upstream.protocols.chat_api import openai_error
from gateway.upstream.protocols.chat_chunks import DONE, decoded
from gateway.upstream.protocols.problems import Problem
from gateway.upstream.protocols.responses_events import (
    end_of,
    id_in,
    may_end,
    number_of,
    snapshot_in,
)

_BAD_ENDS = ("failed", "cancelled")


class ResponsesApi:
    """`POST /v1/responses`."""

    protocol = "responses"
    path = "/v1/responses"
    needs = "input"
    request_id = "x-request-id"

    def user(self, body: dict[str, Any]) -> Any:
        """Return its `user`, or the newer name of it."""
        user = body.get("user")
        return body.get("safety_identifier") if user in (None, "") else user

    def wants_usage(self, body: dict[str, Any]) -> bool:
        """Return True: it comes with the last event."""
        return True

    def is_usage(self, event: Event) -> bool:
        """Return False."""
        return False

    def counts(self, event: Event) -> bool:
        """Whether it is another than the `[DONE]` of some servers."""
        return event.data.strip() != DONE

    def number(self, event: Event, place: int) -> int:
        """Return its number, or its place where a server numbers nothing."""
        number = number_of(event.data)
        return place if number is None else number

    def answer_id(self, event: Event) -> str:
        """Return the response's, which is in its first event."""
        return id_in([event])

    def whole(self) -> "ResponsesWhole":
        """Return what finds the response."""
        return ResponsesWhole()

    def end(self, closing: Event | None) -> list[Event]:
        """Return the last snapshot, and nothing of ours."""
        return [] if closing is None else [closing]

    def bad_end(self, closing: Event) -> list[Event]:
        """Return the snapshot of what failed: its own clients look at it."""
        end = end_of(decoded(closing.data)) if may_end(closing.data) else None
        return [closing] if end is not None and end.kind in _BAD_ENDS else []

    def raises(self, event: Event) -> bool:
        """Whether it has an `error`: at `response.failed` and at their own `error` none raises."""
        return bool(decoded(event.data).get("error"))

    def error(self, problem: Problem) -> dict[str, Any]:
        """Return an error in OpenAI's shape."""
        return {"error": openai_error(problem)}

    def error_event(self, problem: Problem, number: int) -> Event:
        """Return an event `error`, and beside its own members the one that SDKs raise."""
        told = {"code": problem.code, "message": problem.message, "param": None}
        numbered = {"type": "error", "sequence_number": number, **told}
        return Event(json_of({**numbered, **self.error(problem)}), b"error")

    def ended(self, answer: dict[str, Any], problem: Problem | None) -> dict[str, Any]:
        """Return a response that says that it was cancelled, or has failed, if it is not whole."""
        if problem is None or answer.get("status") in _BAD_ENDS:
            return answer
        if problem.code == "cancelled":
            return {**answer, "status": "cancelled"}
        error = {"code": "server_error", "message": problem.message}
        return {**answer, "status": "failed", "error": error}


class ResponsesWhole:
    """A response, as the last snapshot of it tells."""

    def __init__(self) -> None:
        self._last = b""

    def see(self, event: Event) -> None:
        """Keep an event that has a snapshot."""
        if snapshot_in(event.data):
            self._last = event.data

    def answer(self) -> dict[str, Any]:
        """Return the response."""
        whole = decoded(self._last).get("response")
        return whole if isinstance(whole, dict) else {}

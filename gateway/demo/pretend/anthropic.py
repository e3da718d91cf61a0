"""Anthropic's messages."""

import re
import secrets
from collections.abc import Iterator

from gateway.demo.pretend.base import (
    Asked,
    Event,
    Refused,
    Terms,
    bearer,
    encoded,
    model_of,
    number,
    objects,
    sse,
    tell,
)
from gateway.demo.pretend.text import Object

_KNOWN = re.compile(  # What a request may say.
    "cache_control|container|context_management|diagnostics|inference_geo|max_tokens|"
    "mcp_servers|messages|metadata|model|output_config|service_tier|speed|stop_sequences|"
    "stream|system|temperature|thinking|tool_choice|tools|top_k|top_p|user_profile_id|"
    "pretend"
)
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Message:
    """One message."""

    before_queue = 0

    def __init__(self, asked: Asked, terms: Terms) -> None:
        self.streams = asked.body.get("stream") is True
        most = number(asked.body, "max_tokens", None, 1, 1 << 30)
        self._told = tell(asked.body["messages"], terms, most)
        self._model = model_of(asked.body)
        self._id = f"msg_{secrets.token_hex(12)}"

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        yield _event("message_start", message=self._message([], None, 1))
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield _event("ping")
        for piece in self._told.pieces:
            delta = {"type": "text_delta", "text": piece}
            yield _event("content_block_delta", index=0, delta=delta)._replace(tells=True)
        yield _event("content_block_stop", index=0)
        end = {"stop_reason": self._reason, "stop_sequence": None}
        yield _event("message_delta", delta=end, usage={"output_tokens": self._told.tokens})
        yield _event("message_stop")._replace(last=True)

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events."""
        return [_event("error", error={"type": "overloaded_error", "message": "Overloaded"})]

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""
        content = [{"type": "text", "text": self._told.text}]
        return encoded(self._message(content, self._reason, self._told.tokens))

    @property
    def _reason(self) -> str:
        return "end_turn" if self._told.whole else "max_tokens"

    def _message(self, content: list[Object], reason: str | None, told: int) -> Object:
        usage = {
            "input_tokens": self._told.asked,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": told,
            "service_tier": "standard",
        }
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        end = {"stop_reason": reason, "stop_sequence": None}
        return {**head, "content": content, **end, "usage": usage}


def _event(kind: str, **members: object) -> Event:
    return Event(encoded({"type": kind, **members}), kind.encode())


class Anthropic:
    """Anthropic, asked at /v1/messages."""

    name = "anthropic"
    media_type = "text/event-stream"
    lacks = frozenset({"failed"})
    waits = frozenset({429})

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key or none."""
        given = asked.headers.get("x-api-key") or bearer(asked.headers)
        if not given:
            raise Refused(401, "x-api-key header is required")
        if key and given != key:
            raise Refused(401, "invalid x-api-key")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far; raises Refused as Anthropic would."""
        if not asked.headers.get("anthropic-version"):
            raise Refused(400, "anthropic-version: header is required")
        for name in (each for each in asked.body if not _KNOWN.fullmatch(each)):
            raise Refused(400, f"{name}: Extra inputs are not permitted")
        model_of(asked.body)
        if asked.body.get("max_tokens") is None:
            raise Refused(400, "max_tokens: Field required")
        messages = objects(asked.body, "messages")
        for index, message in enumerate(messages):
            if message.get("role") not in ("user", "assistant"):
                raise Refused(400, f"messages.{index}.role: must be 'user' or 'assistant'")
        return messages

    def answer(self, asked: Asked, terms: Terms) -> Message:
        """Return the message; raises Refused."""
        return Message(asked, terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        return sse(event)

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        other = "invalid_request_error" if refused.status < 500 else "api_error"
        error = {"type": _KINDS.get(refused.status, other), "message": refused.words}
        return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}

"""Cohere's chat, for upstreams whose events have names and whose end is one of them."""

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


class CohereAnswer:
    """One answer."""

    before_queue = 0

    def __init__(self, asked: Asked, terms: Terms) -> None:
        self.streams = asked.body.get("stream") is True
        most = number(asked.body, "max_tokens", None, 1, 1 << 30)
        self._told = tell(asked.body["messages"], terms, most)
        self._id = secrets.token_hex(16)

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        empty = {"content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        start = {"message": {"role": "assistant", **empty}}
        yield _event("message-start", id=self._id, delta=start)
        yield _event("content-start", index=0, delta=_content({"type": "text", "text": ""}))
        for piece in self._told.pieces:
            delta = _content({"text": piece})
            yield _event("content-delta", index=0, delta=delta)._replace(tells=True)
        yield _event("content-end", index=0)
        yield _event("message-end", delta=self._end())._replace(last=True)

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events: it is in the last one."""
        delta = {"error": "internal server error", "finish_reason": "ERROR"}
        return [_event("message-end", delta=delta)]

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""
        content = [{"type": "text", "text": self._told.text}]
        message = {"role": "assistant", "content": content}
        return encoded({"id": self._id, "message": message, **self._end()})

    def _end(self) -> Object:
        tokens = {"input_tokens": self._told.asked, "output_tokens": self._told.tokens}
        reason = "COMPLETE" if self._told.whole else "MAX_TOKENS"
        return {"finish_reason": reason, "usage": {"billed_units": tokens, "tokens": tokens}}


def _event(kind: str, **members: object) -> Event:
    return Event(encoded({"type": kind, **members}), kind.encode())


def _content(content: Object) -> Object:
    return {"message": {"content": content}}


class Cohere:
    """Cohere, asked at /v2/chat."""

    name = "cohere"
    media_type = "text/event-stream"
    lacks = frozenset({"failed"})
    waits = frozenset({429})

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key."""
        if key and bearer(asked.headers) != key:
            raise Refused(401, "invalid api token")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far; raises Refused as Cohere would."""
        model_of(asked.body)
        return objects(asked.body, "messages")

    def answer(self, asked: Asked, terms: Terms) -> CohereAnswer:
        """Return the answer; raises Refused."""
        return CohereAnswer(asked, terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        return sse(event)

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        return {"id": secrets.token_hex(16), "message": refused.words}

"""OpenAI's responses; those that are kept in the background are in `kept`."""

import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from gateway.demo.pretend.base import (
    Asked,
    Event,
    Refused,
    Terms,
    Told,
    bearer,
    encoded,
    model_of,
    number,
    sse,
    tell,
)
from gateway.demo.pretend.chat import openai_error
from gateway.demo.pretend.text import Object

OVER = frozenset({"completed", "incomplete", "failed", "cancelled"})
_KNOWN = re.compile(  # What a request may say.
    "access_programs|background|background_options|context_management|conversation|image|"
    "include|input|instructions|max_output_tokens|max_tool_calls|metadata|model|moderation|"
    "parallel_tool_calls|previous_response_id|prompt|prompt_cache_key|prompt_cache_options|"
    "prompt_cache_retention|reasoning|safety_identifier|service_tier|store|stream|"
    "stream_options|temperature|text|tool_choice|tools|top_logprobs|top_p|truncation|user|"
    "pretend"
)
_ECHOED = ("model", "instructions", "previous_response_id", "user")
_PADDED = 16  # Characters of a delta and its obfuscation together.


class Response:
    """One response; its status changes as its events are told."""

    def __init__(self, asked: Asked, messages: list[Object], terms: Terms) -> None:
        body = asked.body
        self.streams = body.get("stream") is True
        self.background = body.get("background") is True
        self.before_queue = 2 if self.background else 1
        self.id = f"resp_{secrets.token_hex(24)}"
        self.status = "queued" if self.background else "in_progress"
        self.attach_for = terms.attach_for
        self._error: Object | None = None
        self._body = body
        self._told = tell(messages, terms, number(body, "max_output_tokens", None, 16, 1 << 30))
        self._said: list[str] = []
        self._item_id = f"msg_{secrets.token_hex(24)}"
        self._created = int(time.time())
        options = body.get("stream_options") or {}
        self._padded = options.get("include_obfuscation") is not False
        self._numbered = 0

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        yield self._snapshot("response.created")
        if self.background:
            yield self._snapshot("response.queued")
        self.status = "in_progress"
        yield self._snapshot("response.in_progress")
        yield self._event(
            "response.output_item.added", {"output_index": 0, "item": self._message()}
        )
        where = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", {**where, "part": _part("")})
        for piece in self._told.pieces:
            self._said.append(piece)
            delta = {**where, "delta": piece, "logprobs": []}
            if self._padded:
                delta["obfuscation"] = secrets.token_hex(8)[: max(0, _PADDED - len(piece))]
            yield self._event("response.output_text.delta", delta, tells=True)
        text = self._told.text
        yield self._event("response.output_text.done", {**where, "text": text, "logprobs": []})
        yield self._event("response.content_part.done", {**where, "part": _part(text)})
        self.status = "completed" if self._told.whole else "incomplete"
        yield self._item("done")
        yield self._snapshot(f"response.{self.status}", last=True)

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events; from now on it is failed."""
        self.status = "failed"
        self._numbered = seen
        self._error = {"code": "server_error", "message": "The server had an error."}
        if fault == "failed":
            return [self._snapshot("response.failed", last=True)]
        return [self._event("error", {**self._error, "param": None}, last=True)]

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""
        if not self.background:
            self._said = self._told.pieces
            self.status = "completed" if self._told.whole else "incomplete"
        return encoded(self.object())

    def object(self) -> Object:
        """Return it as it is now."""
        limited = self.status == "incomplete"
        echoed = {name: self._body.get(name) for name in _ECHOED}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": self.background,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if limited else None,
            **echoed,
            "max_output_tokens": self._body.get("max_output_tokens"),
            "output": [self._message()] if self.status in OVER and self._said else [],
            "parallel_tool_calls": True,
            "store": self._body.get("store") is not False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "usage": _usage(self._told) if self.status in ("completed", "incomplete") else None,
        }

    def _message(self) -> Object:
        status = self.status if self.status in ("completed", "incomplete") else "in_progress"
        content = [_part("".join(self._said))] if self._said else []
        message = {"id": self._item_id, "type": "message", "role": "assistant", "content": content}
        return {**message, "status": status}

    def _item(self, what: str) -> Event:
        item = {"output_index": 0, "item": self._message()}
        return self._event(f"response.output_item.{what}", item)

    def _snapshot(self, kind: str, *, last: bool = False) -> Event:
        return self._event(kind, {"response": self.object()}, last=last)

    def _event(
        self, kind: str, members: dict[str, Any], *, tells: bool = False, last: bool = False
    ) -> Event:
        data = {"type": kind, "sequence_number": self._numbered, **members}
        self._numbered += 1
        return Event(encoded(data), kind.encode(), tells, last)


def _part(text: str) -> Object:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _usage(told: Told) -> Object:
    return {
        "input_tokens": told.asked,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": told.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told.asked + told.tokens,
    }


class Responses:
    """OpenAI, asked at /v1/responses."""

    name = "responses"
    media_type = "text/event-stream"
    lacks: frozenset[str] = frozenset()
    waits = frozenset({429, 503})

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key."""
        if key and bearer(asked.headers) != key:
            raise Refused(401, "Incorrect API key provided.")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far; raises Refused as OpenAI would."""
        body = asked.body
        for name in (each for each in body if not _KNOWN.fullmatch(each)):
            raise Refused(400, f"Unknown parameter: {name!r}.", name)
        model_of(body)
        for name in _ECHOED:
            if not isinstance(body.get(name), str | None):
                raise Refused(400, f"Invalid type for {name!r}: expected a string.", name)
        options = body.get("stream_options")
        if options is not None:
            if not isinstance(options, dict) or body.get("stream") is not True:
                raise Refused(400, "'stream_options' goes with 'stream' only.", "stream_options")
            for name in options.keys() - {"include_obfuscation"}:
                member = f"stream_options.{name}"
                raise Refused(400, f"Unknown parameter: {member!r}.", member)
        if body.get("background") is True and body.get("store") is False:
            raise Refused(400, "Background mode requires 'store'.", "store")
        return _said(body.get("input"))

    def answer(self, asked: Asked, terms: Terms) -> Response:
        """Return the response; raises Refused."""
        return Response(asked, _said(asked.body.get("input")), terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        return sse(event)

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        return openai_error(refused)


def _said(given: Any) -> list[Object]:
    """Return the messages of an `input`, a text or a list; raises Refused."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Refused(400, "Missing required parameter: 'input'.", "input")
    if not all(isinstance(each, dict) for each in given):
        raise Refused(400, "Each of 'input' must be an object.", "input")
    return given

"""OpenAI's chat completions."""

import secrets
import time
from collections.abc import Iterator
from itertools import zip_longest

from gateway.demo.pretend.base import (
    Asked,
    Event,
    Refused,
    Terms,
    bearer,
    encoded,
    number,
    objects,
    sse,
    tell,
)
from gateway.demo.pretend.text import Object, text_of

_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def openai_error(refused: Refused) -> Object:
    """Return an error in OpenAI's shape."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    code = _CODES.get(refused.status)
    if refused.status == 400 and refused.words.startswith("Unknown parameter"):
        code = "unknown_parameter"
    error = {"message": refused.words, "type": kind, "param": refused.member, "code": code}
    return {"error": error}


class ChatAnswer:
    """One completion, of one choice or several."""

    before_queue = 0

    def __init__(self, asked: Asked, terms: Terms) -> None:
        body = asked.body
        self.streams = body.get("stream") is True
        most = number(body, "max_tokens", None, 1, 1 << 30)
        most = number(body, "max_completion_tokens", most, 1, 1 << 30)
        choices = range(number(body, "n", 1, 1, 128))
        self._told = [tell(body["messages"], terms, most, choice) for choice in choices]
        self._reason = "stop" if all(each.whole for each in self._told) else "length"
        prompt, told = self._told[0].asked, sum(each.tokens for each in self._told)
        usage = {"prompt_tokens": prompt, "completion_tokens": told, "total_tokens": prompt + told}
        wanted = body.get("stream_options") if self.streams else {"include_usage": True}
        counted = isinstance(wanted, dict) and wanted.get("include_usage") is True
        self._usage = {"usage": usage} if counted else {}
        self._head: Object = {  # The members that all chunks of this answer share.
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": text_of(body.get("model") or "pretend-1"),
            "system_fingerprint": "fp_pretend",
            **dict.fromkeys(self._usage),
        }

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        for index, _ in enumerate(self._told):
            yield Event(self._chunk(index, {"role": "assistant", "content": ""}))
        for pieces in zip_longest(*(each.pieces for each in self._told)):
            for index, piece in enumerate(pieces):
                if piece is not None:
                    yield Event(self._chunk(index, {"content": piece}), tells=True)
        for index, _ in enumerate(self._told):
            yield Event(self._chunk(index, {}, self._reason))
        if self._usage:
            yield Event(encoded({**self._head, "choices": [], **self._usage}))
        yield Event("[DONE]", last=True)

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return encoded({**self._head, "choices": [choice]})

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events."""
        return [Event(encoded(openai_error(Refused(500, "The server had an error."))))]

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""
        said = [{"role": "assistant", "content": each.text} for each in self._told]
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._reason}
            for index, message in enumerate(said)
        ]
        head = {**self._head, "object": "chat.completion", "choices": choices}
        return encoded({**head, **self._usage})


class Chat:
    """OpenAI, asked at /v1/chat/completions."""

    name = "openai"
    media_type = "text/event-stream"
    lacks = frozenset({"failed"})
    waits = frozenset({429, 503})

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key."""
        if key and bearer(asked.headers) != key:
            raise Refused(401, "Incorrect API key provided.")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far; raises Refused as OpenAI would."""
        return objects(asked.body, "messages")

    def answer(self, asked: Asked, terms: Terms) -> ChatAnswer:
        """Return the completion; raises Refused."""
        return ChatAnswer(asked, terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        return sse(event)

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        return openai_error(refused)

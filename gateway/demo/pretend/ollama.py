"""Ollama's chat and generate: one JSON object a line."""

from collections.abc import Iterator
from datetime import UTC, datetime

from gateway.demo.pretend.base import (
    Asked,
    Event,
    Refused,
    Terms,
    bearer,
    encoded,
    model_of,
    number,
    tell,
)
from gateway.demo.pretend.text import Object

_SECOND = 1_000_000_000  # In its unit, nanoseconds.


class OllamaAnswer:
    """One answer, of /api/chat or of /api/generate."""

    before_queue = 0

    def __init__(self, asked: Asked, messages: list[Object], terms: Terms) -> None:
        options = asked.body.get("options") or {}
        if not isinstance(options, dict):
            raise Refused(400, "options must be an object")
        self.streams = asked.body.get("stream") is not False  # Streaming is what it does unasked.
        most = number(options, "num_predict", -1, -2, 1 << 30)
        self._told = tell(messages, terms, most if most >= 0 else None)
        self._loads = not messages  # Nothing was said: the model is loaded, that is all.
        self._chats = asked.path.endswith("/api/chat")
        self._model = model_of(asked.body)

    def events(self) -> Iterator[Event]:
        """Yield all of it, once."""
        for piece in [] if self._loads else self._told.pieces:
            yield Event(encoded(self._line(piece, done=False)), tells=True)
        yield Event(encoded({**self._line("", done=True), **self._end()}), last=True)

    def broken(self, fault: str, seen: int) -> list[Event]:
        """Return what tells of an error after so many events."""
        return [Event(encoded({"error": "an error was encountered while running the model"}))]

    def whole(self) -> str:
        """Return it in one piece, as it is where no stream was asked for."""
        text = "" if self._loads else self._told.text
        return encoded({**self._line(text, done=True), **self._end()})

    def _line(self, text: str, *, done: bool) -> Object:
        message = {"message": {"role": "assistant", "content": text}}
        said: Object = message if self._chats else {"response": text}
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat()}
        return {**head, **said, "done": done}

    def _end(self) -> Object:
        if self._loads:
            return {"done_reason": "load"}
        return {
            "done_reason": "stop" if self._told.whole else "length",
            "total_duration": 2 * _SECOND,
            "load_duration": _SECOND // 10,
            "prompt_eval_count": self._told.asked,
            "prompt_eval_duration": _SECOND // 2,
            "eval_count": self._told.tokens,
            "eval_duration": _SECOND,
        }


class Ollama:
    """Ollama, asked at /api/chat and at /api/generate."""

    name = "ollama"
    media_type = "application/x-ndjson"
    lacks = frozenset({"failed", "comments", "named"})  # A line is neither named nor a comment.
    waits: frozenset[int] = frozenset()

    def admit(self, asked: Asked, key: str) -> None:
        """Raise Refused where a request brings the wrong key."""
        if key and bearer(asked.headers) != key:
            raise Refused(401, "unauthorized")

    def messages(self, asked: Asked) -> list[Object]:
        """Return what is said so far, of either endpoint; raises Refused as Ollama would."""
        if not asked.body.get("model"):
            raise Refused(400, "model is required")
        if not asked.path.endswith("/api/chat"):
            prompt = asked.body.get("prompt")
            if not isinstance(prompt, str | None):
                raise Refused(400, "prompt must be a string")
            return [{"role": "user", "content": prompt}] if prompt else []
        messages = asked.body.get("messages") or []
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            raise Refused(400, "messages must be a list of objects")
        return messages

    def answer(self, asked: Asked, terms: Terms) -> OllamaAnswer:
        """Return the answer; raises Refused."""
        return OllamaAnswer(asked, self.messages(asked), terms)

    def framed(self, event: Event) -> bytes:
        """Return an event as it is sent."""
        data = event.data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")  # As Go does.
        return data.encode("utf-8", "replace") + b"\n"

    def refusal(self, refused: Refused) -> Object:
        """Return the body of an answer that is a refusal."""
        return {"error": refused.words}

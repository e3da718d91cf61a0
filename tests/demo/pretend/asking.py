"""How each provider is asked, and what it said, read without anything of ours."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx

from gateway.demo.upstream import answer
from tests.demo.serving import objects

PROMPT = "Why is the sky blue?"
MESSAGES = [{"role": "user", "content": PROMPT}]
KEY = "sk-right"

Body = dict[str, Any]


class Way(NamedTuple):
    """How one provider is asked, and where its events have text."""

    path: str
    key: str  # The header that has it.
    body: Body
    limit: str  # The member that limits its tokens.
    text: Callable[[Any], str]
    kind: str = "text/event-stream"

    def headers(self, key: str = KEY) -> dict[str, str]:
        """Return those of a request, with a key."""
        return {self.key: f"Bearer {key}" if self.key == "authorization" else key, **VERSION}


VERSION = {"anthropic-version": "2023-06-01"}


def _chat(event: Any) -> str:
    choices = event.get("choices") or [{"delta": {}}]
    return str(choices[0]["delta"].get("content", ""))


def _response(event: Any) -> str:
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


def _message(event: Any) -> str:
    return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""


def _gemini(event: Any) -> str:
    return (
        str(event["candidates"][0]["content"]["parts"][0]["text"]) if "error" not in event else ""
    )


def _cohere(event: Any) -> str:
    delta = event["type"] == "content-delta"
    return str(event["delta"]["message"]["content"]["text"]) if delta else ""


_LINES = "application/x-ndjson"
_SAID: Body = {"model": "m", "messages": MESSAGES}
WAYS = {
    "openai": Way(
        "/v1/chat/completions", "authorization", {**_SAID, "stream": True}, "max_tokens", _chat
    ),
    "responses": Way(
        "/v1/responses",
        "authorization",
        {"model": "m", "input": PROMPT, "stream": True},
        "max_output_tokens",
        _response,
    ),
    "anthropic": Way(
        "/v1/messages",
        "x-api-key",
        {**_SAID, "stream": True, "max_tokens": 4000},
        "max_tokens",
        _message,
    ),
    "ollama": Way(
        "/api/chat",
        "authorization",
        _SAID,
        "options.num_predict",
        lambda line: str(line.get("message", {}).get("content", "")),
        _LINES,
    ),
    "ollama generate": Way(
        "/api/generate",
        "authorization",
        {"model": "m", "prompt": PROMPT},
        "options.num_predict",
        lambda line: str(line.get("response", "")),
        _LINES,
    ),
    "gemini": Way(
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        "x-goog-api-key",
        {"contents": [{"parts": [{"text": PROMPT}]}]},
        "generationConfig.maxOutputTokens",
        _gemini,
    ),
    "cohere": Way("/v2/chat", "authorization", {**_SAID, "stream": True}, "max_tokens", _cohere),
}


def body(way: Way, fault: str = "", tokens: int | None = 30, **pretend: Any) -> Body:
    """Return a request that says how it is to be answered."""
    return {**way.body, "pretend": {"fault": fault, "tokens": tokens, "interval": 0, **pretend}}


def limited(way: Way, most: int) -> Body:
    """Return a request for an answer of so many tokens at most."""
    outer, _, inner = way.limit.partition(".")
    return {**body(way), outer: {inner: most} if inner else most}


async def asked(client: httpx.AsyncClient, way: Way, fault: str = "", **more: Any) -> str:
    """Return the whole stream of one answer."""
    response = await client.post(way.path, json=body(way, fault, **more), headers=way.headers())
    assert response.status_code == 200, response.text
    return response.text


def pieces(way: Way, text: str) -> list[str]:
    """Return the pieces of the answer that a stream tells."""
    return [piece for piece in map(way.text, objects(text)) if piece]


def expected(tokens: int | None = 30) -> list[str]:
    """Return the pieces of the answer to PROMPT."""
    return answer(MESSAGES, tokens)


def members(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every member of a body, at any depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, each in pairs:
        yield (*path, name)
        if isinstance(each, dict | list):
            yield from members(each, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a body with another value at a path."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = new
    return copy

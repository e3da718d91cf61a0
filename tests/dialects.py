"""What a gateway before each provider's API is asked, in tests of upstreams that others wrote."""

from typing import Any, NamedTuple

from tests.support import Served, Transcript


class Dialect(NamedTuple):
    """One protocol: where it is spoken, its reason for a good end, what its preset needs."""

    path: str
    reason: str
    preset: dict[str, Any] | None = None


COHERE = {
    "protocol": "sse",
    "end": {"event": "message-end"},
    "text": "delta.message.content.text",
    "usage": "delta.usage.tokens",
    "reason": "delta.finish_reason",
}
DIALECTS = {
    "openai": Dialect("/v1/chat/completions", "stop"),
    "responses": Dialect("/v1/responses", "completed"),
    "anthropic": Dialect("/v1/messages", "end_turn", {"defaults": {"max_tokens": 1000}}),
    "ollama": Dialect("/api/chat", "stop"),
    "gemini": Dialect("/v1beta/models/{model}:streamGenerateContent?alt=sse", "STOP"),
    "cohere": Dialect("/v2/chat", "COMPLETE", COHERE),
}


def preset(protocol: str, base: str, **changes: Any) -> dict[str, Any]:
    """Return the preset of a server that speaks this protocol."""
    dialect = DIALECTS[protocol]
    where = {"protocol": protocol, "url": base + dialect.path, "api_key": "k"}
    return where | (dialect.preset or {}) | changes


def asked(protocol: str, prompt: str, model: str = "m") -> dict[str, Any]:
    """Return what a page asks."""
    if protocol == "responses":
        return {"model": model, "input": prompt}
    if protocol == "gemini":
        return {"model": model, "contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def some(number: int) -> Any:
    """Return what is enough of a stream: so many events."""
    return lambda got: len(got.events) >= number


async def said(gateway: Served, url: str) -> str:
    """Return the text of a stream as `format=text` tells it."""
    return b"".join((await gateway.read(f"{url}&format=text")).data).decode()


async def resumed(gateway: Served, url: str) -> Transcript:
    """Return what a viewer got of a stream that left it twice, after five events each."""
    seen = await gateway.read(url, enough=some(5))
    seen.events = seen.events[:5]
    seen.extend(await gateway.read(url, last_id=seen.last_id, enough=some(5)))
    seen.events = seen.events[:10]
    seen.extend(await gateway.read(url, last_id=seen.last_id))
    return seen

"""The official SDKs before a gateway, or before the upstream itself: the same calls to both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.sdks import sdk
from tests.support import Served, running, served

TOKEN = "a-service-token-of-the-tests"
PROMPT = "Hello?"
_RANDOM = frozenset({"id", "created", "created_at", "item_id", "obfuscation"})
_OWN = frozenset({"model"})  # A preset's name on one side, the model's on the other.


@dataclass
class Sdk:
    """One API as its SDK speaks it."""

    protocol: str
    path: str
    events: int  # Beside the pieces of the text.
    before: int  # Of those, before the first piece.
    body: dict[str, Any] = field(default_factory=dict)

    def client(self, url: str, key: str = TOKEN, **options: Any) -> Any:
        """Return a client; nothing but URL and key is told."""
        module = sdk("anthropic") if self.protocol == "anthropic" else openai
        base = url if self.protocol == "anthropic" else f"{url}/v1"
        http = module.DefaultAsyncHttpxClient(trust_env=False)
        made = module.AsyncAnthropic if self.protocol == "anthropic" else module.AsyncOpenAI
        return made(api_key=key, base_url=base, http_client=http, **options)

    def calls(self, client: Any) -> Any:
        """Return what has `create`."""
        resource = {"openai": "chat", "responses": "responses", "anthropic": "messages"}
        found = getattr(client, resource[self.protocol])
        return found.completions if self.protocol == "openai" else found

    async def stream(self, client: Any, **more: Any) -> list[dict[str, Any]]:
        """Return the events of a streamed answer, each without what is random."""
        got: list[dict[str, Any]] = []
        await self.into(got, client, **more)
        return got

    async def into(self, got: list[dict[str, Any]], client: Any, **more: Any) -> None:
        """Read a streamed answer into a list, which has what came before an error."""
        stream = await self.calls(client).create(**self.body, **more, stream=True)
        async for each in stream:
            got.append(bare(each.model_dump(mode="json")))

    async def whole(self, client: Any, **more: Any) -> dict[str, Any]:
        """Return an answer that is not streamed, without what is random."""
        answer = await self.calls(client).create(**self.body, **more)
        return dict(bare(answer.model_dump(mode="json")))


SAID = [{"role": "user", "content": PROMPT}]
CHAT = Sdk("openai", "/v1/chat/completions", 2, 1, {"model": "any", "messages": SAID})
RESPONSES = Sdk("responses", "/v1/responses", 8, 4, {"model": "resp", "input": PROMPT})
MESSAGES = Sdk(
    "anthropic", "/v1/messages", 5, 2, {"model": "claude", "messages": SAID, "max_tokens": 999}
)
SDKS = {each.protocol: each for each in (CHAT, RESPONSES, MESSAGES)}


def bare(value: Any) -> Any:
    """Return what an SDK made of an answer without ids, times and the model's name.

    Nor has it what is null: a usage is, in each chunk, where one was asked for.
    """
    if isinstance(value, list):
        return [bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    told = {k: v for k, v in value.items() if v is not None}
    return {k: bare(v) for k, v in told.items() if k not in _RANDOM | _OWN}


def presets(base: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Return a preset for each API of an upstream: chats are the default's."""
    named = {"default": CHAT, "resp": RESPONSES, "claude": MESSAGES}
    model = {"defaults": {"model": "m"}}
    return {
        name: {
            "protocol": each.protocol,
            "url": base + each.path,
            "api_key": "k",
            **({} if name == "default" else model),
            **more,
        }
        for name, each in named.items()
    }


@asynccontextmanager
async def pretended(**options: Any) -> AsyncIterator[str]:
    """Run the pretend upstream; yields its URL."""
    given = {"interval": 0.0, "tokens": 12, **options}
    async with served(upstream(UpstreamOptions(**given))) as url:
        yield url


@asynccontextmanager
async def before(base: str, **changes: Any) -> AsyncIterator[Served]:
    """Run a gateway whose presets lead to an upstream at this URL; `preset` is for all of them."""
    of_presets = changes.pop("preset", {})
    times = {"heartbeat": 15, "grace": 20, "lease": 10}  # A slow machine must change nothing.
    given = {"presets": presets(base, **of_presets), "service_tokens": [TOKEN], **times, **changes}
    async with running(**given) as gateway:
        yield gateway


async def asked(base: str) -> int:
    """Return how many answers the pretend upstream was asked for."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return int((await http.get(f"{base}/calls")).json()["count"])


def bearer(key: str = TOKEN, **more: str) -> dict[str, str]:
    """Return the headers of a caller who has a key."""
    return {"Authorization": f"Bearer {key}", **more}

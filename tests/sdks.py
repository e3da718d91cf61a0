"""The providers' own SDKs: what they make of a server's stream, for tests to compare with."""

from importlib import import_module
from typing import Any

import httpx
import openai

from tests.support import missing

GEMINI = "/v1beta/models/m:streamGenerateContent?alt=sse"


def sdk(name: str) -> Any:
    """Return the module of an SDK that not every machine has."""
    try:
        return import_module(name)
    except ImportError:
        return missing(f"the SDK {name}")


async def chat_text(url: str, prompt: str) -> str:
    """Return the text of a completion as OpenAI's SDK reads it."""
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": prompt}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def responses_text(url: str, prompt: str) -> str:
    """Return the text of a response as OpenAI's SDK reads it."""
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        stream = await client.responses.create(model="m", input=prompt, stream=True)
        events = [event async for event in stream]
    return "".join(e.delta for e in events if e.type == "response.output_text.delta")


async def anthropic_text(url: str, prompt: str) -> str:
    """Return the text of a message as Anthropic's SDK reads it."""
    said = [{"role": "user", "content": prompt}]
    async with sdk("anthropic").AsyncAnthropic(api_key="k", base_url=url) as client:
        asked = {"model": "m", "messages": said, "max_tokens": 4000}
        async with client.messages.stream(**asked) as stream:
            return str(await stream.get_final_text())


async def ollama_text(url: str, prompt: str) -> str:
    """Return the text of an answer as Ollama's SDK reads it."""
    client = sdk("ollama").AsyncClient(host=url)
    said = [{"role": "user", "content": prompt}]
    try:
        stream = await client.chat(model="m", messages=said, stream=True)
        return "".join([part.message.content async for part in stream])
    finally:
        http: httpx.AsyncClient = client._client
        await http.aclose()


TEXTS = {
    "openai": chat_text,
    "responses": responses_text,
    "anthropic": anthropic_text,
    "ollama": ollama_text,
}

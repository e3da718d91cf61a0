"""The providers' own SDKs: what they make of a server's stream, for tests to compare with."""

from importlib import import_module
from typing import Any, NamedTuple

import httpx
import openai

from tests.support import missing


class Heard(NamedTuple):
    """What an SDK made of one answer."""

    text: str
    tokens: tuple[int, int]  # Of the prompt and of the answer.


def sdk(name: str) -> Any:
    """Return the module of an SDK that not every machine has."""
    try:
        return import_module(name)
    except ImportError:
        return missing(f"the SDK {name}")


async def chat(url: str, prompt: str, model: str = "m", key: str = "k") -> Heard:
    """Return a completion as OpenAI's SDK reads it."""
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1") as client:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = next(chunk.usage for chunk in reversed(chunks) if chunk.usage)
    return Heard(text, (usage.prompt_tokens, usage.completion_tokens))


async def responses(url: str, prompt: str, model: str = "m", key: str = "k") -> Heard:
    """Return a response as OpenAI's SDK reads it."""
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1") as client:
        stream = await client.responses.create(model=model, input=prompt, stream=True)
        events = [event async for event in stream]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    (end,) = [e for e in events if e.type == "response.completed"]
    usage = end.response.usage
    assert usage
    return Heard(text, (usage.input_tokens, usage.output_tokens))


async def anthropic(url: str, prompt: str, model: str = "m", key: str = "k") -> Heard:
    """Return a message as Anthropic's SDK reads it."""
    said = [{"role": "user", "content": prompt}]
    async with (
        sdk("anthropic").AsyncAnthropic(api_key=key, base_url=url) as client,
        client.messages.stream(model=model, messages=said, max_tokens=4000) as stream,
    ):
        text = await stream.get_final_text()
        usage = (await stream.get_final_message()).usage
    return Heard(text, (usage.input_tokens, usage.output_tokens))


async def ollama(url: str, prompt: str, model: str = "m", key: str = "k") -> Heard:
    """Return an answer as Ollama's SDK reads it."""
    client = sdk("ollama").AsyncClient(host=url, headers={"Authorization": f"Bearer {key}"})
    said = [{"role": "user", "content": prompt}]
    http: httpx.AsyncClient = client._client
    async with http:
        parts = [part async for part in await client.chat(model=model, messages=said, stream=True)]
    text = "".join(part.message.content for part in parts)
    return Heard(text, (parts[-1].prompt_eval_count, parts[-1].eval_count))


async def gemini(url: str, prompt: str, model: str = "m", key: str = "k") -> Heard:
    """Return an answer as Google's SDK reads it."""
    http = httpx.AsyncClient(timeout=60)  # Else it takes aiohttp if it can, and warns.
    where = {"base_url": url, "api_version": "v1beta", "httpx_async_client": http}
    client = sdk("google.genai").Client(api_key=key, http_options=where).aio
    async with http, client:
        stream = await client.models.generate_content_stream(model=model, contents=prompt)
        parts = [part async for part in stream]
    usage = parts[-1].usage_metadata
    text = "".join(part.text or "" for part in parts)
    return Heard(text, (usage.prompt_token_count, usage.candidates_token_count))


SDKS = {
    "openai": chat,
    "responses": responses,
    "anthropic": anthropic,
    "ollama": ollama,
    "gemini": gemini,
}

"""The pretend upstream on a socket, without the gateway's own server."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from tests.support import until


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the app on a free port of the loopback; yields a client of it."""
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    await server.startup([listener])  # Not `serve`: that takes the signals, and stops in ticks.
    try:
        async with httpx.AsyncClient(base_url=base, timeout=5, verify=False) as client:
            yield client
    finally:
        await server.shutdown([listener])


async def told(client: httpx.AsyncClient, **wanted: Any) -> dict[str, Any]:
    """Wait until `GET /calls` says what is wanted, and return it."""

    async def as_wanted() -> Any:
        calls = (await client.get("/calls")).json()
        return calls if calls.items() >= wanted.items() else None

    calls: dict[str, Any] = await until(as_wanted, f"calls: {wanted}")
    return calls


def data(text: str) -> list[str]:
    """Return the data of every event with one line of it; U+2028 is no line break here."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def objects(text: str) -> list[Any]:
    """Return the JSON of every event, or of every line where lines are all there is."""
    found = data(text) or [line for line in text.split("\n") if line.strip()]
    return [json.loads(each) for each in found if each != "[DONE]"]


async def keep(chunks: AsyncIterator[bytes], got: list[bytes]) -> None:
    """Put what comes where it is found even if the last of it is an error."""
    async for chunk in chunks:
        got.append(chunk)

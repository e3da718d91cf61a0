"""The same relay on sse-starlette's EventSourceResponse."""

import os
from collections.abc import AsyncIterator

import httpx
from sse_starlette.sse import EventSourceResponse  # type: ignore[import-not-found]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

UPSTREAM = os.environ["UPSTREAM_URL"]
client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None))


async def completions(request: Request) -> EventSourceResponse:
    body = await request.body()

    async def events() -> AsyncIterator[dict[str, str]]:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", UPSTREAM, content=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield {"data": line[6:]}

    return EventSourceResponse(events())


app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])

"""What one writes first: a Starlette route that hands an httpx stream on, line by line."""

import os
from collections.abc import AsyncIterator

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

UPSTREAM = os.environ["UPSTREAM_URL"]
client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None))


async def completions(request: Request) -> StreamingResponse:
    body = await request.body()

    async def events() -> AsyncIterator[str]:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", UPSTREAM, content=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line:
                    yield line + "\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])

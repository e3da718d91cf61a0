"""Plain: what an app does without a gateway: its server asks the upstream, and pipes the answer.

The answer is nowhere but on its way, so it goes with the connection and with the process.
"""

from collections.abc import AsyncIterator
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PLAIN: Final = "/demo/plain"


def plain(url: str) -> Route:
    """Return the route that asks the upstream at a URL."""

    async def endpoint(request: Request) -> Response:
        http = httpx.AsyncClient(timeout=None, trust_env=False)
        asked = http.build_request("POST", url, content=await request.body())
        try:
            answer = await http.send(asked, stream=True)
        except httpx.TransportError:
            await http.aclose()
            return Response(status_code=502)
        media_type = answer.headers.get("content-type")
        return StreamingResponse(_piped(http, answer), answer.status_code, media_type=media_type)

    return Route(PLAIN, endpoint, methods=["POST"])


async def _piped(http: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    finally:
        await answer.aclose()
        await http.aclose()

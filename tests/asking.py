"""What the tests of an upstream's answers stand on: one request, its answer, how it fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.errors import UpstreamFailure
from gateway.upstream.client import Upstream
from tests.support import OK, Call, Script, scripted

KEY = "sk-very-secret-key"


def preset(url: str, **members: Any) -> Preset:
    """Return a preset for an upstream at this URL."""
    return Preset.model_validate({"url": url, "api_key": KEY, "connect": 5, **members})


@asynccontextmanager
async def asking() -> AsyncIterator[Upstream]:
    """Run an Upstream for the length of the block."""
    upstream = Upstream()
    try:
        yield upstream
    finally:
        await upstream.close()


async def body_of(upstream: Upstream, to: Preset, request: bytes = b"{}") -> bytes:
    """Return the whole body of one answer."""
    async with upstream.ask(to, request) as chunks:
        return b"".join([part async for part in chunks])


async def failure_of(script: Script, **members: Any) -> UpstreamFailure:
    """Return how asking a scripted upstream fails; it is asked once."""
    async with scripted(script) as server, asking() as upstream:
        with pytest.raises(UpstreamFailure) as caught:
            await body_of(upstream, preset(server.url, **members))
        assert len(server.calls) == 1
    return caught.value


def answering(status: str, body: bytes = b"", *headers: str) -> Script:
    """Return the script of an answer in one piece."""

    async def script(call: Call) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        await call.send("\r\n".join(lines).encode(), body)

    return script


def streamed(*headers: str) -> bytes:
    """Return the head of an event stream with more headers."""
    return OK.removesuffix(b"\r\n") + "".join(f"{each}\r\n" for each in headers).encode() + b"\r\n"

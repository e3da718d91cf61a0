"""What the tests of all providers begin with."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.demo.serving import serving


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the pretend upstream."""
    async with serving(upstream(UpstreamOptions(interval=0))) as client:
        yield client

"""The embedded store that several processes share: what goes over its socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import NoScriptError, ResponseError

from gateway.store.embedded import encoded, served_at
from tests.support import running, scripted, whole


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A store at a socket file."""
    async with served_at(tmp_path / "store") as url:
        yield url


async def test_two_gateways_share_it_and_one_answer(url: str) -> None:
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, redis_url=url, lease=10) as first,
        running(upstream_url=upstream.url, redis_url=url, lease=10) as second,
    ):
        ticket = await first.ticket()
        seen = [(await each.read(ticket)).events for each in (first, second)]
        assert seen[0] == seen[1]
        assert (await second.completion(ticket))["state"] == "done"
        assert len(upstream.calls) == 1


async def test_a_client_that_goes_in_mid_command_harms_nobody(url: str) -> None:
    path = url.removeprefix("unix://")
    _, gone = await asyncio.open_unix_connection(path)
    gone.write(b"*2\r\n$4\r\nPI")
    gone.transport.abort()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")
    assert await reader.readexactly(15) == b"$4\r\nPONG\r\n$-1\r\n"
    writer.write(b"*3\r\n$7\r\nEVALSHA\r\n$4\r\nnone\r\n$1\r\n0\r\n")
    assert (await reader.readline()).startswith(b"-NOSCRIPT ")
    writer.close()
    await writer.wait_closed()


async def test_its_socket_is_no_more_when_it_ends(tmp_path: Path) -> None:
    async with served_at(tmp_path / "store"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "store")
        writer.write(b"*1\r\n$4\r\nPING\r\n")
        assert await reader.readline() == b"$4\r\n"
    assert await reader.read() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(tmp_path / "store")


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        (None, b"$-1\r\n"),
        (7, b":7\r\n"),
        ("OK", b"$2\r\nOK\r\n"),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n"),
        ([1, [b"x"], None], b"*3\r\n:1\r\n*1\r\n$1\r\nx\r\n$-1\r\n"),
        (NoScriptError("No matching script."), b"-NOSCRIPT No matching script.\r\n"),
        (ResponseError("WRONGTYPE Operation"), b"-WRONGTYPE Operation\r\n"),
        (ResponseError("unknown command"), b"-ERR unknown command\r\n"),
    ],
    ids=["nothing", "number", "word", "bytes", "list", "no script", "coded", "uncoded"],
)
def test_replies_are_what_redis_would_write(reply: object, sent: bytes) -> None:
    assert encoded(reply) == sent

"""What holds for the answers of all providers: their text, and what goes wrong on the way."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.demo.pretend.asking import WAYS, Way, asked, body, expected, limited, pieces
from tests.demo.serving import keep, objects, told

SILENT = 0.2

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


async def broken_off(client: httpx.AsyncClient, way: Way, fault: str) -> bytes:
    """Return what came of a stream whose connection broke."""
    got: list[bytes] = []
    given: Any = {"json": body(way, fault), "headers": way.headers()}
    async with client.stream("POST", way.path, **given) as response:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await keep(response.aiter_raw(), got)
    return b"".join(got)


def whole_pieces(way: Way, got: bytes) -> list[str]:
    """Return the pieces of the events that came whole."""
    end = b"\n" if way.kind.endswith("ndjson") else b"\n\n"
    return pieces(way, got[: got.rindex(end)].decode())


@every_way
async def test_a_stream_has_the_exact_text_and_its_own_type(
    client: httpx.AsyncClient, way: Way
) -> None:
    response = await client.post(way.path, json=body(way, tokens=None), headers=way.headers())
    assert response.headers["content-type"].partition(";")[0] == way.kind
    assert pieces(way, response.text) == expected(None)


@every_way
async def test_a_limit_of_tokens_cuts_the_answer_short(client: httpx.AsyncClient, way: Way) -> None:
    response = await client.post(way.path, json=limited(way, 17), headers=way.headers())
    assert pieces(way, response.text) == expected(17)


@every_way
@pytest.mark.parametrize("fault", ["cut:4", "cuts:4"])
async def test_cut_breaks_off_inside_an_event(
    client: httpx.AsyncClient, way: Way, fault: str
) -> None:
    got = await broken_off(client, way, fault)
    assert whole_pieces(way, got) == expected()[:4]
    assert not got.endswith(b"\n")


@every_way
async def test_close_ends_cleanly_without_saying_so(client: httpx.AsyncClient, way: Way) -> None:
    short, whole = await asked(client, way, "close:4"), await asked(client, way)
    assert pieces(way, short) == expected()[:4]
    assert len(objects(short)) < len(objects(whole)) - 26


@every_way
async def test_no_done_leaves_out_only_the_last_event(client: httpx.AsyncClient, way: Way) -> None:
    short, whole = await asked(client, way, "no-done"), await asked(client, way)
    assert pieces(way, short) == expected()
    separator = "\n" if way.kind.endswith("ndjson") else "\n\n"
    assert short.count(separator) == whole.count(separator) - 1


@every_way
@pytest.mark.parametrize("fault", ["stall:3", "queued:60"])
async def test_an_answer_stops_with_its_connection(
    client: httpx.AsyncClient, way: Way, fault: str
) -> None:
    async def ask() -> None:
        await client.post(way.path, json=body(way, fault), headers=way.headers())

    task = asyncio.create_task(ask())
    await told(client, open=1, creates=1)
    task.cancel()
    [call] = (await told(client, open=0))["calls"]
    assert call["closed"] == "client"


@every_way
async def test_queued_is_silent_before_it_begins(client: httpx.AsyncClient, way: Way) -> None:
    begun = time.monotonic()
    assert pieces(way, await asked(client, way, f"queued:{SILENT}")) == expected()
    assert time.monotonic() - begun >= SILENT


@every_way
async def test_big_crlf_and_gzip_change_nothing_else(client: httpx.AsyncClient, way: Way) -> None:
    big = pieces(way, await asked(client, way, "big:300000"))
    assert [big[3], *big[:3], *big[4:]] == ["x" * 300_000, *expected()]
    for fault in ("crlf", "gzip"):
        assert pieces(way, await asked(client, way, fault)) == expected()


@every_way
async def test_html_and_json_are_no_streams(client: httpx.AsyncClient, way: Way) -> None:
    for fault, kind in (("html", "text/html"), ("json", "application/json")):
        given: Any = {"json": body(way, fault), "headers": way.headers()}
        response = await client.post(way.path, **given)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)


@every_way
async def test_status_refuses_a_prompts_first_requests(client: httpx.AsyncClient, way: Way) -> None:
    given: Any = {"json": body(way, "status:529:2"), "headers": way.headers()}
    seen = [(await client.post(way.path, **given)).status_code for _ in range(3)]
    assert seen == [529, 529, 200]
    assert (await told(client, creates=1))["count"] == 3

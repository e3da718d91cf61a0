"""What holds for requests to all providers: each gets an answer or a refusal in its own shape."""

from typing import Any

import httpx
import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.demo.pretend.asking import WAYS, Way, body, expected, members, pieces, replaced
from tests.demo.serving import serving

ODD: list[Any] = [None, True, -1, 10**30, 1.5, "x", "", [], [1], [[]], {}, {"x": 1}]
RAW = [
    b"",
    b"{",
    b"[]",
    b"1",
    b"\xff",
    b"[" * 5000 + b"]" * 5000,
    b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"model": ' + b"1" * 5000 + b"}",
    b'{"pretend": 1}',
    b'{"pretend": {"fault": "\\ud800"}}',
]

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def words(way: Way, refusal: Any) -> str:
    """Return the words of a refusal, wherever this provider has them."""
    if way.path.startswith("/v2/"):
        return str(refusal["message"])
    error = refusal["error"]
    return str(error if way.path.startswith("/api/") else error["message"])


@every_way
async def test_whatever_is_sent_gets_an_answer_or_a_refusal(
    client: httpx.AsyncClient, way: Way
) -> None:
    given = body(way, tokens=1)
    for path in members(given):
        for odd in ODD:
            sent = replaced(given, path, odd)
            response = await client.post(way.path, json=sent, headers=way.headers())
            assert response.status_code in (200, 400), (path, odd)
            if response.status_code == 400:
                assert words(way, response.json()), (path, odd)


@every_way
@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
async def test_what_is_no_request_is_refused(
    client: httpx.AsyncClient, way: Way, raw: bytes
) -> None:
    response = await client.post(way.path, content=raw, headers=way.headers())
    assert response.status_code == 400
    assert words(way, response.json())


@every_way
@pytest.mark.parametrize("fault", ["frog", "cut:1:2", "cut:1.5", "queued:-1"])
async def test_an_unknown_fault_is_refused(client: httpx.AsyncClient, way: Way, fault: str) -> None:
    response = await client.post(way.path, json=body(way, fault), headers=way.headers())
    assert response.status_code == 400
    assert "Known are: status:CODE:N" in words(way, response.json())


@every_way
async def test_the_key_is_asked_for_in_the_providers_own_header(way: Way) -> None:
    async with serving(upstream(UpstreamOptions(interval=0, api_key="sk-right"))) as client:
        right = await client.post(way.path, json=body(way), headers=way.headers())
        wrong = await client.post(way.path, json=body(way), headers=way.headers("sk-wrong"))
        none = await client.post(way.path, json=body(way))
    assert pieces(way, right.text) == expected()
    for refused in (wrong, none):
        assert refused.status_code in (400, 401, 403)
        assert words(way, refused.json())


@pytest.mark.parametrize("name", [name for name in WAYS if name != "responses"])
async def test_a_fault_of_another_provider_is_refused(client: httpx.AsyncClient, name: str) -> None:
    way = WAYS[name]
    response = await client.post(way.path, json=body(way, "failed:3"), headers=way.headers())
    assert response.status_code == 400
    assert "failed" in words(way, response.json())

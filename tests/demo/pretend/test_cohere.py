"""Cohere's chat: events by name, the last one the end."""

import httpx
import pytest

from tests.demo.pretend.asking import WAYS, asked, body, limited
from tests.demo.serving import objects

WAY = WAYS["cohere"]


async def test_its_events_come_in_its_order_under_their_names(client: httpx.AsyncClient) -> None:
    text = await asked(client, WAY, tokens=2)
    kinds = [event["type"] for event in objects(text)]
    assert kinds == [
        *("message-start", "content-start", "content-delta", "content-delta"),
        *("content-end", "message-end"),
    ]
    names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
    assert names == kinds


@pytest.mark.parametrize(("most", "reason"), [(500, "COMPLETE"), (5, "MAX_TOKENS")])
async def test_the_last_event_has_reason_and_usage(
    client: httpx.AsyncClient, most: int, reason: str
) -> None:
    end = objects((await client.post(WAY.path, json=limited(WAY, most))).text)[-1]["delta"]
    assert end["finish_reason"] == reason
    assert end["usage"]["tokens"]["output_tokens"] == min(30, most)


async def test_an_error_is_in_the_last_event(client: httpx.AsyncClient) -> None:
    end = objects(await asked(client, WAY, "error:3"))[-1]
    assert end["type"] == "message-end"
    assert end["delta"]["finish_reason"] == "ERROR"


async def test_a_refusal_has_its_shape(client: httpx.AsyncClient) -> None:
    response = await client.post(WAY.path, json=body(WAY, "status:429"))
    assert response.json().keys() == {"id", "message"}
    assert response.headers["retry-after"] == "1"


async def test_without_stream_it_is_one_object(client: httpx.AsyncClient) -> None:
    response = await client.post(WAY.path, json=body(WAY) | {"stream": False})
    assert response.json()["finish_reason"] == "COMPLETE"
    assert response.json()["message"]["content"][0]["text"]

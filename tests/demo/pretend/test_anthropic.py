"""Anthropic's messages: its words, its demands, and what its own client makes of them."""

from typing import Any

import httpx
import pytest

from tests.demo.pretend.asking import PROMPT, WAYS, asked, body, expected, limited
from tests.demo.serving import objects
from tests.sdks import anthropic, sdk

WAY = WAYS["anthropic"]


async def test_its_own_client_reads_the_text(client: httpx.AsyncClient) -> None:
    heard = await anthropic(str(client.base_url), PROMPT)
    assert heard.text == "".join(expected(None))
    assert heard.tokens == (len(PROMPT.split()) + 4, len(expected(None)))


async def test_its_events_come_in_its_order_under_their_names(client: httpx.AsyncClient) -> None:
    text = await asked(client, WAY, tokens=2)
    kinds = [event["type"] for event in objects(text)]
    assert kinds == [
        *("message_start", "content_block_start", "ping"),
        *("content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
    assert names == kinds


async def test_usage_is_split_over_the_first_event_and_the_last_but_one(
    client: httpx.AsyncClient,
) -> None:
    start, *_, delta, _ = objects(await asked(client, WAY))
    assert start["message"]["usage"]["input_tokens"] == len(PROMPT.split()) + 4
    assert delta["usage"] == {"output_tokens": 30}


@pytest.mark.parametrize(("most", "reason"), [(4000, "end_turn"), (5, "max_tokens")])
async def test_the_reason_is_of_its_own_words(
    client: httpx.AsyncClient, most: int, reason: str
) -> None:
    given: Any = {"json": limited(WAY, most), "headers": WAY.headers()}
    *_, delta, _ = objects((await client.post(WAY.path, **given)).text)
    whole = await client.post(
        WAY.path, json=limited(WAY, most) | {"stream": False}, headers=WAY.headers()
    )
    assert delta["delta"]["stop_reason"] == whole.json()["stop_reason"] == reason


async def test_an_error_in_the_stream_is_one_for_its_own_client(client: httpx.AsyncClient) -> None:
    package = sdk("anthropic")
    given = {"extra_body": {"pretend": {"fault": "error:3", "interval": 0}}, "max_tokens": 9}
    said = {"model": "m", "messages": WAY.body["messages"]}
    async with (
        package.AsyncAnthropic(api_key="k", base_url=str(client.base_url)) as own,
        own.messages.stream(**said, **given) as stream,
    ):
        with pytest.raises(package.APIStatusError, match="Overloaded"):
            await stream.get_final_text()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_a_refusal_has_its_shape(client: httpx.AsyncClient, code: int, kind: str) -> None:
    given: Any = {"json": body(WAY, f"status:{code}"), "headers": WAY.headers()}
    response = await client.post(WAY.path, **given)
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == kind
    assert response.headers.get("retry-after") == ("1" if code == 429 else None)


@pytest.mark.parametrize("name", ["x-api-key", "anthropic-version"])
async def test_it_demands_its_headers(client: httpx.AsyncClient, name: str) -> None:
    headers = {key: value for key, value in WAY.headers().items() if key != name}
    response = await client.post(WAY.path, json=body(WAY), headers=headers)
    assert response.status_code in (400, 401)
    assert name in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"stream_options": {"include_usage": True}}, "stream_options: Extra inputs"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
    ],
)
async def test_it_refuses_what_is_of_other_providers(
    client: httpx.AsyncClient, changed: Any, words: str
) -> None:
    response = await client.post(WAY.path, json=body(WAY) | changed, headers=WAY.headers())
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]

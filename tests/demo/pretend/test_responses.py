"""OpenAI's responses: their events, their demands, and what its own client makes of them."""

from typing import Any

import httpx
import openai
import pytest

from tests.demo.pretend.asking import PROMPT, WAYS, asked, body, expected, limited
from tests.demo.serving import objects
from tests.sdks import responses

WAY = WAYS["responses"]


async def test_its_own_client_reads_the_text(client: httpx.AsyncClient) -> None:
    url = str(client.base_url).rstrip("/")
    assert (await responses(url, PROMPT)).text == "".join(expected(None))
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as sdk:
        async with sdk.responses.stream(model="m", input=PROMPT) as stream:
            final = await stream.get_final_response()
        whole = await sdk.responses.create(model="m", input=PROMPT)
    assert final.output_text == whole.output_text == "".join(expected(None))
    assert final.usage
    assert final.usage.output_tokens == len(expected(None))


async def test_its_events_come_in_its_order_numbered_under_their_names(
    client: httpx.AsyncClient,
) -> None:
    text = await asked(client, WAY, tokens=1)
    events = objects(text)
    kinds = [event["type"] for event in events]
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done"),
        *("response.output_item.done", "response.completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(9))
    assert [line[7:] for line in text.split("\n") if line.startswith("event: ")] == kinds


async def test_snapshots_echo_the_instructions(client: httpx.AsyncClient) -> None:
    sent = body(WAY) | {"instructions": "House rules."}
    events = objects((await client.post(WAY.path, json=sent)).text)
    echoed = [event["type"] for event in events if "House rules." in str(event)]
    assert echoed == ["response.created", "response.in_progress", "response.completed"]


async def test_a_limit_ends_as_incomplete_with_usage(client: httpx.AsyncClient) -> None:
    end = objects((await client.post(WAY.path, json=limited(WAY, 16))).text)[-1]
    assert end["type"] == "response.incomplete"
    assert end["response"]["status"] == "incomplete"
    assert end["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert end["response"]["usage"]["output_tokens"] == 16


async def test_error_and_failed_end_it_in_two_ways(client: httpx.AsyncClient) -> None:
    *_, before, error = objects(await asked(client, WAY, "error:3"))
    *_, failed = objects(await asked(client, WAY, "failed:3"))
    assert error["sequence_number"] == before["sequence_number"] + 1
    assert (error["type"], error["code"]) == ("error", "server_error")
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"


async def test_deltas_are_padded_unless_that_is_declined(client: httpx.AsyncClient) -> None:
    plain = body(WAY) | {"stream_options": {"include_obfuscation": False}}
    assert "obfuscation" in await asked(client, WAY)
    assert "obfuscation" not in (await client.post(WAY.path, json=plain)).text


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"messages": []}, "messages"),
        ({"n": 1}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"background": True, "store": False}, "store"),
        ({"max_output_tokens": 1}, "max_output_tokens"),
        ({"input": None}, "input"),
        ({"model": None}, "model"),
    ],
)
async def test_it_refuses_what_is_of_chat_and_what_cannot_be(
    client: httpx.AsyncClient, changed: Any, param: str
) -> None:
    response = await client.post(WAY.path, json=body(WAY) | changed)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_input_may_be_a_list_of_messages_of_parts(client: httpx.AsyncClient) -> None:
    parts = [{"type": "input_text", "text": PROMPT}]
    sent = body(WAY) | {"input": [{"role": "user", "content": parts}], "stream": False}
    [message] = (await client.post(WAY.path, json=sent)).json()["output"]
    assert message["content"][0]["text"] == "".join(expected())

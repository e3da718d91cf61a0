"""Gemini's generateContent: its words and its demands."""

from typing import Any

import httpx
import pytest

from tests.demo.pretend.asking import PROMPT, WAYS, asked, body, expected, limited, pieces
from tests.demo.serving import objects

WAY = WAYS["gemini"]


async def test_the_last_event_has_the_reason_and_no_other(client: httpx.AsyncClient) -> None:
    events = objects(await asked(client, WAY))
    reasons = [event["candidates"][0].get("finishReason") for event in events]
    assert reasons == [None] * 30 + ["STOP"]
    short = await client.post(WAY.path, json=limited(WAY, 5), headers=WAY.headers())
    assert objects(short.text)[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"


async def test_usage_is_in_each_event_and_grows(client: httpx.AsyncClient) -> None:
    events = objects(await asked(client, WAY))
    told = [event["usageMetadata"]["candidatesTokenCount"] for event in events]
    assert told == [*range(1, 31), 30]
    assert events[-1]["usageMetadata"]["promptTokenCount"] == len(PROMPT.split()) + 4
    assert events[-1]["usageMetadata"]["totalTokenCount"] == 30 + len(PROMPT.split()) + 4


async def test_the_model_is_in_the_path(client: httpx.AsyncClient) -> None:
    url = WAY.path.replace("/m:", "/gemini-9:")
    response = await client.post(url, json=body(WAY), headers=WAY.headers())
    assert objects(response.text)[0]["modelVersion"] == "gemini-9"


async def test_without_alt_sse_it_is_one_array(client: httpx.AsyncClient) -> None:
    url = WAY.path.removesuffix("?alt=sse")
    response = await client.post(url, json=body(WAY), headers=WAY.headers())
    assert response.headers["content-type"] == "application/json"
    assert "".join(map(WAY.text, response.json())) == "".join(expected())


async def test_generate_content_is_one_object(client: httpx.AsyncClient) -> None:
    url = WAY.path.replace("streamGenerateContent", "generateContent")
    response = await client.post(url, json=body(WAY), headers=WAY.headers())
    assert WAY.text(response.json()) == "".join(expected())


async def test_an_error_in_the_stream_has_its_shape(client: httpx.AsyncClient) -> None:
    text = await asked(client, WAY, "error:3")
    assert pieces(WAY, text) == expected()[:3]
    assert objects(text)[-1]["error"]["status"] == "INTERNAL"


@pytest.mark.parametrize(
    ("code", "status"), [(429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE"), (500, "INTERNAL")]
)
async def test_a_refusal_has_its_shape_and_its_wait_in_the_body(
    client: httpx.AsyncClient, code: int, status: str
) -> None:
    given: Any = {"json": body(WAY, f"status:{code}"), "headers": WAY.headers()}
    response = await client.post(WAY.path, **given)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (code, code, status)
    waits = [each["retryDelay"] for each in error.get("details", [])]
    assert waits == (["1s"] if code == 429 else [])
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("member", ["stream", "model", "stream_options", "messages"])
async def test_it_refuses_names_of_other_providers(client: httpx.AsyncClient, member: str) -> None:
    response = await client.post(WAY.path, json=body(WAY) | {member: 1}, headers=WAY.headers())
    assert response.status_code == 400
    assert f'Unknown name "{member}"' in response.json()["error"]["message"]


async def test_it_demands_a_key_and_a_method_that_there_is(client: httpx.AsyncClient) -> None:
    nobody = await client.post(WAY.path, json=body(WAY))
    query = await client.post(f"{WAY.path}&key=k", json=body(WAY))
    nothing = await client.post("/v1beta/models/m:frog", json=body(WAY), headers=WAY.headers())
    assert [each.status_code for each in (nobody, query, nothing)] == [403, 200, 404]

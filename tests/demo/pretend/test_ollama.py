"""Ollama's chat and generate: their lines, and what its own client makes of them."""

import json
from typing import Any

import httpx
import pytest

from tests.demo.pretend.asking import PROMPT, WAYS, asked, body, expected, limited
from tests.demo.serving import objects
from tests.sdks import ollama

WAY, GENERATE = WAYS["ollama"], WAYS["ollama generate"]

both = pytest.mark.parametrize("way", [WAY, GENERATE], ids=["chat", "generate"])


async def test_its_own_client_reads_the_text(client: httpx.AsyncClient) -> None:
    heard = await ollama(str(client.base_url), PROMPT)
    assert heard.text == "".join(expected(None))
    assert heard.tokens == (len(PROMPT.split()) + 4, len(expected(None)))


@both
async def test_each_line_is_an_object_and_the_last_is_done(
    client: httpx.AsyncClient, way: Any
) -> None:
    *lines, last = [json.loads(line) for line in (await asked(client, way)).splitlines()[-3:]]
    assert [line["done"] for line in lines] == [False, False]
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert (last["prompt_eval_count"], last["eval_count"]) == (len(PROMPT.split()) + 4, 30)


@both
async def test_a_limit_ends_in_length_and_without_stream_all_is_one_object(
    client: httpx.AsyncClient, way: Any
) -> None:
    given = limited(way, 5) | {"stream": False}
    whole = (await client.post(way.path, json=given)).json()
    assert way.text(whole) == "".join(expected(5))
    assert whole["done_reason"] == "length"


@both
async def test_nothing_said_loads_the_model(client: httpx.AsyncClient, way: Any) -> None:
    response = await client.post(way.path, json={"model": "m"})
    [line] = objects(response.text)
    assert (line["done"], line["done_reason"]) == (True, "load")


async def test_an_error_in_the_stream_is_a_line(client: httpx.AsyncClient) -> None:
    *_, last = objects(await asked(client, WAY, "error:3"))
    assert last.keys() == {"error"}


async def test_a_refusal_has_its_shape_and_no_wait(client: httpx.AsyncClient) -> None:
    response = await client.post(WAY.path, json=body(WAY, "status:503"))
    assert response.json() == {"error": "This 503 is pretended."}
    assert "retry-after" not in response.headers


async def test_a_model_must_be_named(client: httpx.AsyncClient) -> None:
    response = await client.post(WAY.path, json={**body(WAY), "model": ""})
    assert response.status_code == 400
    assert response.json() == {"error": "model is required"}


@pytest.mark.parametrize("fault", ["comments", "named"])
async def test_what_lines_cannot_be_is_refused(client: httpx.AsyncClient, fault: str) -> None:
    assert (await client.post(WAY.path, json=body(WAY, fault))).status_code == 400

"""Responses by their id, as OpenAI's SDK asks for them: told from our log, whoever's they are."""

import asyncio
import json

import openai
import pytest

from gateway.store.keys import new_id
from tests.sdk_clients import RESPONSES, asked, bearer, before, pretended
from tests.support import OK, Call, scripted, sse, until

PIECES = 12
EVENTS = RESPONSES.events + PIECES


def told(kind: str, number: int, **more: object) -> bytes:
    """Return the data of an event of a response."""
    return json.dumps({"type": f"response.{kind}", "sequence_number": number, **more}).encode()


BEGUN = {"id": "resp_1", "object": "response", "status": "in_progress", "output": [], "model": "m"}


@pytest.mark.parametrize("had", [0, 1, 7, EVENTS - 1])
async def test_a_stream_is_gone_on_with_after_the_number_of_its_last_event(had: int) -> None:
    async with pretended() as base, before(base) as gate, RESPONSES.client(gate.url) as client:
        stream = await client.responses.create(**RESPONSES.body, stream=True)
        whole = [each async for each in stream]
        name, last = whole[0].response.id, whole[had].sequence_number
        rest = await client.responses.retrieve(name, stream=True, starting_after=last)
        assert [each async for each in rest] == whole[had + 1 :]
        every = await client.responses.retrieve(name, stream=True)
        assert [each async for each in every] == whole
        assert await client.responses.retrieve(name) == whole[-1].response
        assert await asked(base) == 1


async def test_a_response_and_an_sdks_first_try_are_found_in_every_kind_of_store(
    any_redis_url: str,
) -> None:
    subject = {"X-Subject": new_id()}
    retried = {"X-Stainless-Retry-Count": "1", **subject}
    async with pretended() as base, before(base, redis_url=any_redis_url) as gate:
        begun = await gate.http.post(RESPONSES.path, json=RESPONSES.body, headers=bearer(**subject))
        again = await gate.http.post(RESPONSES.path, json=RESPONSES.body, headers=bearer(**retried))
        name = begun.json()["id"]
        found = await gate.http.get(f"{RESPONSES.path}/{name}", headers=bearer(**subject))
        assert begun.json() == again.json() == found.json()
        assert await asked(base) == 1


async def test_a_number_beyond_the_last_is_told() -> None:
    async with pretended() as base, before(base) as gate, RESPONSES.client(gate.url) as client:
        made = await client.responses.create(**RESPONSES.body)
        with pytest.raises(openai.BadRequestError, match="no such place"):
            await client.responses.retrieve(made.id, stream=True, starting_after=EVENTS)


async def test_a_response_that_runs_can_be_looked_at_and_followed_and_cancelled() -> None:
    going = asyncio.Event()

    async def script(call: Call) -> None:
        delta = told("output_text.delta", 1, delta="Hel", output_index=0, content_index=0)
        await call.send(OK, sse(told("created", 0, response=BEGUN), delta))
        going.set()
        await call.left.wait()

    async with scripted(script) as upstream:
        base = upstream.url.removesuffix("/v1/chat/completions")
        async with before(base, drain=0.2) as gate, RESPONSES.client(gate.url) as client:
            stream = await client.responses.create(**RESPONSES.body, stream=True)
            assert (await anext(stream)).type == "response.created"
            assert (await anext(stream)).delta == "Hel"
            assert (await client.responses.retrieve("resp_1")).status == "in_progress"
            follows = await client.responses.retrieve("resp_1", stream=True, starting_after=0)
            assert (await anext(follows)).delta == "Hel"
            assert (await client.responses.cancel("resp_1")).status == "cancelled"
            for each in (stream, follows):
                with pytest.raises(openai.APIError, match="was cancelled"):
                    await anext(each)
            await until(lambda: upstream.calls[0].left.is_set(), "the upstream is left", 20)
            assert (await client.responses.retrieve("resp_1")).status == "cancelled"
            assert (await client.responses.cancel("resp_1")).status == "cancelled"


async def test_what_was_cut_is_a_response_that_failed() -> None:
    async with pretended() as base, before(base) as gate, RESPONSES.client(gate.url) as client:
        fault = {"extra_body": {"pretend": {"fault": "cut:3"}}}
        stream = await client.responses.create(**RESPONSES.body, stream=True, **fault)
        first = await anext(stream)
        with pytest.raises(openai.APIError):
            [each async for each in stream]
        found = await client.responses.retrieve(first.response.id)
    assert (found.status, found.error.code) == ("failed", "server_error")
    assert "broke" in found.error.message


async def test_a_response_is_its_users_and_of_the_server_that_asked_for_it() -> None:
    async with pretended() as base, before(base) as gate, RESPONSES.client(gate.url) as client:
        for_alice = client.with_options(default_headers={"X-Subject": "alice"})
        made = await for_alice.responses.create(**RESPONSES.body)
        path = f"{RESPONSES.path}/{made.id}"
        for headers in (bearer(), bearer(**{"X-Subject": "alice"}), gate.cookie("alice")):
            found = await gate.http.get(path, headers=headers)
            assert found.json()["id"] == made.id
        for headers in (bearer(**{"X-Subject": "bob"}), gate.cookie("bob")):
            for answer in (
                await gate.http.get(path, headers=headers),
                await gate.http.post(f"{path}/cancel", headers=headers),
            ):
                assert (answer.status_code, answer.json()["code"]) == (404, "response_not_found")
        by_body = await client.responses.create(**RESPONSES.body, user="bob")
        mine = await gate.http.get(f"{RESPONSES.path}/{by_body.id}", headers=gate.cookie("bob"))
        assert mine.status_code == 200


@pytest.mark.parametrize("name", ["resp_nobody", "x" * 1001, "%00"])
async def test_an_id_of_nothing_is_not_found_and_a_wrong_key_neither(name: str) -> None:
    async with before("http://127.0.0.1:9") as gate:
        answer = await gate.http.get(f"{RESPONSES.path}/{name}", headers=bearer())
        assert (answer.status_code, answer.json()["code"]) == (404, "response_not_found")
        wrong = await gate.http.get(f"{RESPONSES.path}/{name}", headers=bearer("wrong"))
        assert wrong.status_code == 401


async def test_a_preset_that_speaks_chat_is_no_model_of_responses() -> None:
    body = {**RESPONSES.body, "model": "default"}
    async with before("http://127.0.0.1:9") as gate:
        answer = await gate.http.post(RESPONSES.path, json=body, headers=bearer())
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")

"""Background responses: they go on alone, are gone on with, looked at, cancelled and forgotten."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from gateway.demo.pretend import kept as module
from gateway.demo.pretend.base import Asked, Refused, terms_of
from gateway.demo.pretend.kept import KEPT_FOR, KeptResponses
from gateway.demo.pretend.responses import Response
from gateway.demo.upstream import UpstreamOptions
from tests.demo.pretend.asking import MESSAGES, PROMPT, WAYS, body, expected, pieces
from tests.demo.serving import objects, told
from tests.support import until

WAY = WAYS["responses"]
FOREVER = "stall:5"
NUMBERED = list(range(5 + 30 + 4))  # Three snapshots and two begun, the text, all that ends.


def background(fault: str = "", **pretend: Any) -> dict[str, Any]:
    """Return a request for a response that is kept."""
    return body(WAY, fault, **pretend) | {"background": True}


async def begun(client: httpx.AsyncClient, fault: str = "", **pretend: Any) -> str:
    """Ask for a response, leave at its first event, and return its id."""
    async with client.stream("POST", WAY.path, json=background(fault, **pretend)) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                return str(objects(line)[0]["response"]["id"])
    raise AssertionError("it never began")


async def look(client: httpx.AsyncClient, id_: str) -> Any:
    """Return the response as it is now."""
    response = await client.get(f"/v1/responses/{id_}")
    assert response.status_code == 200
    return response.json()


async def becomes(client: httpx.AsyncClient, id_: str, status: str) -> Any:
    """Wait until the response has this status, and return it."""

    async def as_wanted() -> Any:
        seen = await look(client, id_)
        return seen if seen["status"] == status else None

    return await until(as_wanted, status)


async def attach(client: httpx.AsyncClient, id_: str, after: object = None) -> httpx.Response:
    """Ask for the events after a number, or for all."""
    asked = "" if after is None else f"&starting_after={after}"
    return await client.get(f"/v1/responses/{id_}?stream=true{asked}")


def numbers(text: str) -> list[int]:
    """Return the numbers of a stream's events."""
    return [event["sequence_number"] for event in objects(text)]


async def test_it_goes_on_without_a_connection(client: httpx.AsyncClient) -> None:
    id_ = await begun(client)
    done = await becomes(client, id_, "completed")
    assert done["output"][0]["content"][0]["text"] == "".join(expected())
    assert done["usage"]["output_tokens"] == 30


async def test_the_events_after_any_number_are_the_rest(client: httpx.AsyncClient) -> None:
    id_ = await begun(client)
    everything = await attach(client, id_)
    assert numbers(everything.text) == NUMBERED
    assert pieces(WAY, everything.text) == expected()
    for after in (0, 1, 17, NUMBERED[-2], NUMBERED[-1], 10_000):
        assert numbers((await attach(client, id_, after)).text) == NUMBERED[after + 1 :]


async def test_it_is_followed_live_by_several(client: httpx.AsyncClient) -> None:
    id_ = await begun(client, interval=0.01)
    both = await asyncio.gather(attach(client, id_, 4), attach(client, id_, 9))
    assert numbers(both[0].text) == NUMBERED[5:]
    assert numbers(both[1].text) == NUMBERED[10:]


async def test_openais_own_client_goes_on_with_it(client: httpx.AsyncClient) -> None:
    base = str(client.base_url.join("/v1"))
    async with openai.AsyncOpenAI(api_key="k", base_url=base) as sdk:
        stream = await sdk.responses.create(
            model="m", input=PROMPT, background=True, stream=True, extra_body=pretended()
        )
        got: list[Any] = []
        async for event in stream:
            got.append(event)
            if event.sequence_number == 9:
                break
        await stream.close()
        id_, last = got[0].response.id, got[-1].sequence_number
        rest = await sdk.responses.retrieve(id_, stream=True, starting_after=last)
        got += [event async for event in rest]
        whole = await sdk.responses.retrieve(id_)
    assert [event.sequence_number for event in got] == NUMBERED
    assert whole.output_text == "".join(expected())


def pretended() -> dict[str, Any]:
    """Return what OpenAI's client is to send beside its own."""
    return {"pretend": {"tokens": 30, "interval": 0.005}}


@pytest.mark.parametrize("fault", ["cut:6", "close:6", "no-done"])
async def test_what_befalls_its_connection_does_not_befall_it(
    client: httpx.AsyncClient, fault: str
) -> None:
    got = b""
    async with client.stream("POST", WAY.path, json=background(fault)) as response:
        try:
            async for chunk in response.aiter_raw():
                got += chunk
        except httpx.RemoteProtocolError:
            assert fault == "cut:6"
    first = objects(got[: got.rindex(b"\n\n")].decode())
    id_, last = first[0]["response"]["id"], first[-1]["sequence_number"]
    rest = numbers((await attach(client, id_, last)).text)
    assert [event["sequence_number"] for event in first] + rest == NUMBERED
    assert rest


async def test_cuts_befalls_each_of_its_connections(client: httpx.AsyncClient) -> None:
    id_, breaks = await begun(client, "cuts:12"), 0
    seen: list[int] = []
    while seen[-1:] != NUMBERED[-1:]:
        got, after = b"", f"&starting_after={seen[-1]}" if seen else ""
        async with client.stream("GET", f"/v1/responses/{id_}?stream=true{after}") as response:
            try:
                async for chunk in response.aiter_raw():
                    got += chunk
            except httpx.RemoteProtocolError:
                breaks += 1
        seen += numbers(got[: got.rindex(b"\n\n")].decode())
    assert seen == NUMBERED
    assert breaks == 2


async def test_a_queued_one_says_nothing_until_its_turn_comes(client: httpx.AsyncClient) -> None:
    id_ = await begun(client, "queued:60")
    assert (await look(client, id_))["status"] == "queued"
    quick = await begun(client, "queued:0.1")
    assert numbers((await attach(client, quick)).text) == NUMBERED


async def test_one_that_stalls_is_in_progress(client: httpx.AsyncClient) -> None:
    id_ = await begun(client, FOREVER)
    assert (await becomes(client, id_, "in_progress"))["output"] == []


@pytest.mark.parametrize("fault", ["error:5", "failed:5"])
async def test_one_that_fails_says_so_to_whoever_comes_later(
    client: httpx.AsyncClient, fault: str
) -> None:
    id_ = await begun(client, fault)
    failed = await becomes(client, id_, "failed")
    assert failed["error"]["code"] == "server_error"
    assert len(pieces(WAY, (await attach(client, id_)).text)) == 5


async def test_a_cancel_ends_it_and_its_streams_and_is_harmless_again(
    client: httpx.AsyncClient,
) -> None:
    id_ = await begun(client, FOREVER)
    following = asyncio.create_task(attach(client, id_))
    await told(client, attaches=1)
    answers = [(await client.post(f"/v1/responses/{id_}/cancel")) for _ in range(2)]
    assert [each.json()["status"] for each in answers] == ["cancelled", "cancelled"]
    assert len(pieces(WAY, (await following).text)) <= 5
    assert (await look(client, id_))["status"] == "cancelled"


async def test_a_cancel_comes_too_late_for_one_that_is_over(client: httpx.AsyncClient) -> None:
    id_ = await begun(client)
    await becomes(client, id_, "completed")
    answer = await client.post(f"/v1/responses/{id_}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


async def test_an_old_one_is_streamed_no_more_but_can_be_looked_at(
    client: httpx.AsyncClient,
) -> None:
    id_ = await begun(client, attach_for=0)
    refused = await attach(client, id_, 3)
    assert refused.status_code == 400
    assert "too old" in refused.json()["error"]["message"]
    assert (await becomes(client, id_, "completed"))["id"] == id_


async def test_plain_ones_and_unknown_ones_are_not_found(client: httpx.AsyncClient) -> None:
    plain = objects((await client.post(WAY.path, json=body(WAY))).text)[0]["response"]["id"]
    for id_ in (plain, "resp_nobody", "%00"):
        path = f"/v1/responses/{id_}"
        for answer in (
            await client.get(path),
            await attach(client, id_, 1),
            await client.post(f"{path}/cancel"),
            await client.delete(path),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_forgotten_one_is_not_found(client: httpx.AsyncClient) -> None:
    id_ = await begun(client, FOREVER)
    assert (await client.delete(f"/v1/responses/{id_}")).json()["deleted"] is True
    assert (await attach(client, id_)).status_code == 404


@pytest.mark.parametrize("after", ["x", "-2", "1.5", "", "9" * 5000, "²"])
async def test_a_number_that_is_none_is_refused(client: httpx.AsyncClient, after: str) -> None:
    assert (await attach(client, await begun(client), after)).status_code == 400


async def test_one_made_without_stream_cannot_be_streamed(client: httpx.AsyncClient) -> None:
    made = (await client.post(WAY.path, json=background() | {"stream": False})).json()
    assert made["status"] == "queued"
    assert (await attach(client, made["id"])).status_code == 400
    await becomes(client, made["id"], "completed")


async def test_calls_tells_how_often_each_was_asked_for(client: httpx.AsyncClient) -> None:
    id_ = await begun(client)
    await attach(client, id_)
    await look(client, id_)
    for _ in range(2):
        await client.post(f"/v1/responses/{id_}/cancel")
    await attach(client, "resp_nobody")
    calls = await told(client, count=1, creates=1, attaches=2, looks=1, cancels=2)
    asks = {"attaches": 1, "looks": 1, "cancels": 2}
    assert calls["responses"] == {id_: {"status": "completed", **asks}}
    assert calls["calls"][0]["id"] == id_


def response(fault: str = "") -> Any:
    """Return a response and its terms, without any connection."""
    asked = Asked("", {}, {}, background(fault))
    terms = terms_of(asked.body, UpstreamOptions(), frozenset())
    return Response(asked, MESSAGES, terms), terms


async def test_it_is_kept_for_a_time() -> None:
    now = 0.0
    kept = KeptResponses(clock=lambda: now)
    made = kept.keep(*response(FOREVER))
    assert kept.looked_at(made.response.id)["status"] == "queued"
    now += KEPT_FOR + 1
    with pytest.raises(Refused):
        kept.looked_at(made.response.id)
    assert made.over


async def test_so_many_are_kept_and_only_what_is_over_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    kept = KeptResponses()
    first, second = kept.keep(*response(FOREVER)), kept.keep(*response(FOREVER))
    with pytest.raises(Refused):
        kept.keep(*response())
    second.cancel()
    third = kept.keep(*response(FOREVER))
    assert kept.tell().keys() == {first.response.id, third.response.id}
    first.cancel()
    third.cancel()


async def test_so_many_bytes_are_kept_and_more_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 40_000)
    kept = KeptResponses()
    small = kept.keep(*response())
    await until(lambda: small.over, "the small one")
    assert small.response.status == "completed"
    large = kept.keep(*response("big:100000"))
    await until(lambda: large.over, "the large one")
    assert large.response.status == "failed"
    assert kept.tell().keys() == {large.response.id}

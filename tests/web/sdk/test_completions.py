"""The official SDKs on a gateway: what they have of it is what they have of the upstream itself."""

import asyncio
import json
import time
from typing import Any

import httpx
import jwt
import openai
import pytest

from gateway.auth.tickets import Ticket
from gateway.store.keys import log_key, new_id
from tests.sdk_clients import (
    CHAT,
    MESSAGES,
    PROMPT,
    RESPONSES,
    SAID,
    SDKS,
    TOKEN,
    Sdk,
    asked,
    bare,
    bearer,
    before,
    pretended,
)
from tests.sdks import sdk as module_of
from tests.support import (
    OK,
    SECRET,
    Call,
    RedisServer,
    Served,
    chunk,
    gateway,
    scripted,
    sse,
    until,
    whole,
)
from tests.test_clients import cutting, paused

every_sdk = pytest.mark.parametrize("sdk", SDKS.values(), ids=SDKS.keys())

KEYED: dict[str, Any] = {"service_tokens": [TOKEN], "heartbeat": 15, "grace": 20, "lease": 10}
RETRIED = {"X-Stainless-Retry-Count": "1"}


def refusal_of(sdk: Sdk) -> Any:
    """Return the class of all errors that an SDK makes of an answer."""
    return module_of("anthropic").APIError if sdk is MESSAGES else openai.APIError


def pretend(fault: str) -> dict[str, Any]:
    """Return what makes the pretend upstream fail at one request."""
    return {"extra_body": {"pretend": {"fault": fault}}}


@every_sdk
async def test_an_sdk_has_the_same_events_and_the_same_object_as_from_the_upstream_itself(
    sdk: Sdk,
) -> None:
    async with pretended() as base, before(base) as gate:
        async with sdk.client(base, "k") as direct, sdk.client(gate.url) as through:
            assert await sdk.stream(through) == await sdk.stream(direct)
            assert await sdk.whole(through) == await sdk.whole(direct)
        assert await asked(base) == 4


NOT_WHOLE = {"cut": "cut:3", "closed": "close:3", "error": "error:3"}


@every_sdk
@pytest.mark.parametrize("fault", NOT_WHOLE.values(), ids=NOT_WHOLE.keys())
async def test_an_answer_that_is_not_whole_raises_and_is_not_asked_for_again(
    sdk: Sdk, fault: str
) -> None:
    got: list[dict[str, Any]] = []
    async with pretended() as base, before(base) as gate, sdk.client(gate.url) as client:
        with pytest.raises(refusal_of(sdk)):
            await sdk.into(got, client, **pretend(fault))
        with pytest.raises(refusal_of(sdk)) as caught:
            await sdk.whole(client, **pretend(fault))
        assert caught.value.status_code == 502
        assert await asked(base) == 2
    assert len(got) >= sdk.before + 3


async def test_a_response_that_failed_is_seen_as_such_before_it_raises() -> None:
    got: list[dict[str, Any]] = []
    async with pretended() as base, before(base) as gate, RESPONSES.client(gate.url) as client:
        with pytest.raises(openai.APIError, match="had an error"):
            await RESPONSES.into(got, client, **pretend("failed:3"))
    assert got[-1]["type"] == "response.failed"


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "object"])
async def test_an_upstream_that_falls_silent_raises(streams: bool) -> None:
    changes: dict[str, Any] = {"preset": {"stall": 0.5}}
    async with pretended() as base, before(base, **changes) as gate, CHAT.client(gate.url) as c:
        with pytest.raises(openai.APIError, match="The upstream was silent"):
            await (CHAT.stream if streams else CHAT.whole)(c, **pretend("stall:3"))
        assert await asked(base) == 1


REFUSED = {
    "a request that is wrong": (CHAT, 400, 1),
    "a wrong key of ours": (CHAT, 401, 1),
    "too many requests": (CHAT, 429, 2),
    "a server that may have worked": (CHAT, 500, 1),
    "an overload": (MESSAGES, 529, 2),
    "a model that is not there": (RESPONSES, 404, 1),
}


@pytest.mark.parametrize(("sdk", "status", "asks"), REFUSED.values(), ids=REFUSED.keys())
async def test_an_upstreams_status_arrives_as_a_status_and_only_a_sure_one_is_asked_again(
    sdk: Sdk, status: int, asks: int
) -> None:
    async with pretended() as base, before(base, preset={"retries": 0}) as gate:
        async with sdk.client(gate.url, max_retries=1) as client:
            with pytest.raises(refusal_of(sdk)) as caught:
                await sdk.stream(client, **pretend(f"status:{status}"))
        assert caught.value.status_code == status
        there = caught.value.response.headers["Content-Location"]
        assert caught.value.request_id == ticket_in(gate, there).stream_id
        assert "is pretended" in str(caught.value)
        assert caught.value.response.json()["code"] == "upstream_refused"
        assert await asked(base) == asks


async def test_an_upstream_that_cannot_be_reached_is_a_bad_gateway() -> None:
    async with before("http://127.0.0.1:9") as gate, CHAT.client(gate.url, max_retries=0) as c:
        with pytest.raises(openai.InternalServerError) as caught:
            await CHAT.stream(c)
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_unreachable"
    assert "x-should-retry" not in caught.value.response.headers


# One payment


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "object"])
@every_sdk
async def test_an_sdk_whose_connection_breaks_before_its_answer_asks_again_and_pays_once(
    sdk: Sdk, streams: bool
) -> None:
    async with pretended() as base, before(base) as gate, sdk.client(base, "k") as direct:
        async with cutting(gate, [9]) as (through, cutter), sdk.client(through) as client:
            read = sdk.stream if streams else sdk.whole
            got = await read(client)
            assert got == await read(direct)
        posts = [each for each in cutter.requests if each.startswith(b"POST ")]
        assert len(posts) == 2
        assert await asked(base) == 2


async def post(gate: Served, body: Any = None, **headers: str) -> httpx.Response:
    """POST a chat that is streamed."""
    given = {**CHAT.body, "stream": True} if body is None else body
    return await gate.http.post(CHAT.path, json=given, headers=bearer() | headers)


async def test_a_request_that_is_sent_again_while_the_first_runs_follows_the_first() -> None:
    script, go_on = paused()
    async with gateway(script, **KEYED) as (gate, upstream):
        first = asyncio.create_task(post(gate))
        await until(lambda: upstream.calls, "the first request", 20)
        again = asyncio.create_task(post(gate, **RETRIED))
        await until(lambda: gate.gateway.fanout.viewers == 2, "the second viewer", 20)
        go_on.set()
        answers = [await first, await again]
        assert len(upstream.calls) == 1
    assert answers[0].content == answers[1].content
    assert answers[0].content.endswith(b"\n\n")
    assert b"data: [DONE]\n" in answers[0].content


async def test_a_request_that_is_sent_again_to_another_replica_follows_the_first(
    shared_redis: RedisServer,
) -> None:
    script, go_on = paused()
    redis, alice = {"redis_url": shared_redis.url}, {"X-Subject": new_id()}
    async with scripted(script) as upstream:
        base = upstream.url.removesuffix(CHAT.path)
        async with before(base, **redis) as gate, before(base, **redis) as other:
            first = asyncio.create_task(post(gate, **alice))
            await until(lambda: upstream.calls, "the first request", 20)
            again = asyncio.create_task(post(other, CHAT.body, **alice, **RETRIED))
            await until(lambda: other.gateway.fanout.viewers == 1, "the second viewer", 20)
            go_on.set()
            await first
            text = "".join([f"{number} " for number in range(40)]) + "Hello"
            assert (await again).json()["choices"][0]["message"]["content"] == text
            assert len(upstream.calls) == 1


async def test_what_is_asked_again_after_nobody_was_asked_is_a_new_request() -> None:
    refuses = [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", OK + sse(chunk("x", finish="stop"))]

    async def script(call: Call) -> None:
        await call.send(refuses.pop(0))

    async with gateway(script, **KEYED) as (gate, upstream):
        assert (await post(gate)).status_code == 503
        assert (await post(gate, **RETRIED)).status_code == 200
        assert len(upstream.calls) == 2


TOLD: dict[str, dict[str, Any]] = {"an answer": {}, "a failure": {"pretend": {"fault": "cut:3"}}}


@pytest.mark.parametrize("more", TOLD.values(), ids=TOLD.keys())
async def test_the_same_request_of_another_day_is_a_new_one_though_it_is_a_retry(
    more: dict[str, Any],
) -> None:
    async with pretended() as base, before(base) as gate:
        body = {**CHAT.body, **more}
        await post(gate, body)
        name = next(iter(await gate.gateway.store.call("KEYS", "gw:*:given")))
        await gate.gateway.store.call("DEL", name)  # As it is some seconds later.
        await post(gate, body, **RETRIED)
        assert await asked(base) == 2


async def test_a_key_begins_another_stream_where_nobody_was_asked_and_then_no_more() -> None:
    no = b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"
    answers = [no, no, OK + sse(chunk("x", finish="stop"))]

    async def script(call: Call) -> None:
        await call.send(answers.pop(0))

    async with gateway(script, **KEYED) as (gate, upstream):
        told = [(await post(gate, **{"Idempotency-Key": "one"})).status_code for _ in range(4)]
        assert told == [429, 429, 200, 200]
        assert len(upstream.calls) == 3


async def test_an_upstream_that_says_when_to_come_back_is_passed_on() -> None:
    """SDKs wait as long before they ask again; without it, half a second."""
    no = b"HTTP/1.1 429 No\r\nRetry-After: 899.2\r\nContent-Length: 0\r\n\r\n"

    async def script(call: Call) -> None:
        await call.send(no)

    async with gateway(script, **KEYED) as (gate, _):
        answer = await post(gate, **{"X-Subject": "alice"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "900")
        assert "X-Should-Retry" not in answer.headers
        ticket = answer.headers["Content-Location"].partition("ticket=")[2].partition("&")[0]
        page = await gate.http.get("/stream", params={"ticket": ticket}, headers=gate.cookie())
        assert b'"status":429,"retry_after":900}' in page.content


async def test_a_key_begins_one_stream_whatever_form_is_asked_for() -> None:
    async with pretended() as base, before(base) as gate, CHAT.client(gate.url) as client:
        key = {"extra_headers": {"Idempotency-Key": "one"}}
        streamed, whole = await asyncio.gather(
            CHAT.stream(client, **key), CHAT.whole(client, **key)
        )
        assert await asked(base) == 1
        with pytest.raises(openai.UnprocessableEntityError, match="Take a new key"):
            await CHAT.whole(client, **key, temperature=1)
    text = "".join(each["choices"][0]["delta"].get("content") or "" for each in streamed)
    assert whole["choices"][0]["message"]["content"] == text


# Going on


def ticket_in(gate: Served, there: str) -> Ticket:
    """Return the ticket that a Content-Location has."""
    return gate.gateway.tickets.verify(there.partition("ticket=")[2].partition("&")[0])


@every_sdk
async def test_an_answer_is_gone_on_with_where_its_content_location_says(sdk: Sdk) -> None:
    async with pretended() as base, before(base) as gate, sdk.client(gate.url) as client:
        body = {**sdk.body, "stream": True}
        began = await gate.http.post(sdk.path, json=body, headers=bearer())
        there, whole = began.headers["Content-Location"], began.text
        blocks = whole.split("\n\n")
        assert there.startswith(f"{sdk.path}?ticket=")
        had = sdk.before + 4
        by_count = await gate.http.get(f"{there}&after={had}", headers=bearer())
        last = blocks[had - 1 + (sdk is MESSAGES)].rpartition("id: ")[2]  # A ping is not counted.
        by_id = await gate.http.get(there, headers=bearer(**{"Last-Event-ID": last}))
        assert whole.endswith(by_count.text)
        assert len(by_count.text.split("\n\n")) == len(blocks) - had - (sdk is MESSAGES)
        assert by_count.text == by_id.text
        stream = await client.get(
            f"{gate.url}{there}&after={had}", cast_to=object, stream=True, stream_cls=stream_of(sdk)
        )
        assert len([each async for each in stream]) == sdk.events + 12 - had
        assert await asked(base) == 1


def stream_of(sdk: Sdk) -> Any:
    """Return the class of an SDK's streams."""
    return (module_of("anthropic") if sdk is MESSAGES else openai).AsyncStream[object]


async def test_a_stream_is_its_users_and_the_key_that_asked_for_it_has_it_too() -> None:
    async with pretended() as base, before(base) as gate:
        began = await post(gate, **{"X-Subject": "alice"})
        there = began.headers["Content-Location"]
        for headers in (bearer(), bearer(**{"X-Subject": "alice"}), gate.cookie("alice")):
            assert (await gate.http.get(there, headers=headers)).text == began.text
        for headers in (bearer(**{"X-Subject": "bob"}), gate.cookie("bob")):
            other = await gate.http.get(there, headers=headers)
            assert (other.status_code, other.json()["code"]) == (404, "ticket_not_found")
        ticket = there.partition("?")[2]
        page = await gate.read(f"/stream?{ticket}")
        assert page.end["state"] == "done"
        elsewhere = await gate.http.get(f"{RESPONSES.path}?{ticket}", headers=bearer())
        assert elsewhere.status_code == 404
        assert await asked(base) == 1


async def test_an_object_is_had_again_where_its_content_location_says() -> None:
    async with pretended() as base, before(base) as gate:
        began = await post(gate, CHAT.body)
        again = await gate.http.get(began.headers["Content-Location"], headers=bearer())
        assert again.json() == began.json()
        assert again.headers["Content-Type"] == "application/json"


async def test_an_object_is_whole_wherever_its_caller_says_to_be_in_the_stream() -> None:
    async with pretended() as base, before(base) as gate:
        began = await post(gate, CHAT.body)
        streamed = await post(gate)
        ids = [each[4:] for each in streamed.text.splitlines() if each.startswith("id: ")]
        there = f"{streamed.headers['Content-Location']}&stream=false"
        for told, query in (({"Last-Event-ID": ids[3]}, ""), ({}, "&after=3")):
            again = await gate.http.get(there + query, headers=bearer(**told))
            assert bare(again.json())["choices"] == bare(began.json())["choices"]


async def test_an_events_id_is_newer_than_the_count_in_the_url_and_nothing_is_left_out() -> None:
    async with pretended() as base, before(base) as gate:
        began = await post(gate)
        blocks = began.text.split("\n\n")
        last = next(each for each in blocks[5].splitlines() if each.startswith("id: "))[4:]
        there = f"{began.headers['Content-Location']}&after=3"
        rest = await gate.http.get(there, headers=bearer(**{"Last-Event-ID": last}))
        assert rest.text.split("\n\n") == blocks[6:]


async def test_whom_a_request_is_for_is_told_by_its_body_or_by_a_header() -> None:
    async with pretended() as base, before(base) as gate:
        for body, headers in (
            ({**CHAT.body, "user": "alice"}, {}),
            (CHAT.body, {"X-Subject": "alice"}),
            ({**CHAT.body, "user": "bob"}, {"X-Subject": "alice"}),
        ):
            began = await post(gate, body, **headers)
            there = began.headers["Content-Location"]
            assert (await gate.http.get(there, headers=gate.cookie("alice"))).status_code == 200
        own = (await post(gate, CHAT.body)).headers["Content-Location"]
        assert (await gate.http.get(own, headers=gate.cookie("alice"))).status_code == 404
        message = {**MESSAGES.body, "metadata": {"user_id": "alice"}}
        told = await gate.http.post(MESSAGES.path, json=message, headers={"X-Api-Key": TOKEN})
        there = told.headers["Content-Location"]
        assert (await gate.http.get(there, headers=gate.cookie("alice"))).status_code == 200
        query = f"{CHAT.path}?user=bob"  # Of a GET that is whose stream it is.
        asks = await gate.http.post(query, json={**CHAT.body, "user": "alice"}, headers=bearer())
        there = asks.headers["Content-Location"]
        assert (await gate.http.get(there, headers=gate.cookie("alice"))).status_code == 200
        number = (await post(gate, {**CHAT.body, "user": 0})).headers["Content-Location"]
        assert (await gate.http.get(number, headers=gate.cookie("0"))).status_code == 200


NOBODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a list": ({"user": ["alice"]}, []),
    "too long": ({"user": "a" * 300}, []),
    "no name": ({"safety_identifier": False}, []),
    "too long a header": ({}, ["a" * 300]),
    "two headers": ({}, ["alice", "bob"]),
}


@pytest.mark.parametrize(("more", "subjects"), NOBODIES.values(), ids=NOBODIES.keys())
async def test_a_user_who_cannot_be_is_not_the_server_itself(
    more: dict[str, Any], subjects: list[str]
) -> None:
    headers = [*bearer().items(), *(("X-Subject", each) for each in subjects)]
    async with before("http://127.0.0.1:9") as gate:
        answer = await gate.http.post(CHAT.path, json={**CHAT.body, **more}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_subject")


@pytest.mark.parametrize("sdk", [CHAT, RESPONSES], ids=["counted", "numbered"])
async def test_who_is_further_than_the_stream_is_told_so(sdk: Sdk) -> None:
    position = "after" if sdk is CHAT else "starting_after"
    async with pretended() as base, before(base) as gate:
        body = {**sdk.body, "stream": True}
        began = await gate.http.post(sdk.path, json=body, headers=bearer())
        there, events = began.headers["Content-Location"], sdk.events + 12
        for told in (
            "after=-1",
            f"{position}=1000",
            f"{position}=-7",
            f"{position}=x",
            "last_event_id=1-x",
        ):
            answer = await gate.http.get(f"{there}&{told}", headers=bearer())
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_position")
        nothing = await gate.http.get(f"{there}&last_event_id=7-7", headers=bearer())
        assert (nothing.status_code, nothing.json()["code"]) == (400, "bad_position")
        last = events if sdk is CHAT else events - 1
        done = await gate.http.get(f"{there}&{position}={last}", headers=bearer())
        assert done.status_code == 200
        assert done.text.count("data: ") == (sdk is CHAT)  # `[DONE]` is counted by nobody.


async def test_a_stream_whose_log_is_gone_is_gone(shared_redis: RedisServer) -> None:
    redis = {"redis_url": shared_redis.url, "lease": 10}
    async with pretended() as base, before(base, **redis) as gate, before(base, **redis) as other:
        began = await post(gate, **{"X-Subject": new_id()})
        there = began.headers["Content-Location"]
        await gate.gateway.store.call("DEL", log_key(ticket_in(gate, there).stream_id))
        answer = await other.http.get(there, headers=bearer())
    assert (answer.status_code, answer.json()["code"]) == (410, "log_expired")
    assert answer.json()["error"]["code"] == "log_expired"


async def test_a_viewer_who_is_sent_away_hears_that_this_is_no_end_and_can_go_on() -> None:
    script, go_on = paused()
    got: list[Any] = []
    async with gateway(script, **KEYED) as (gate, upstream), CHAT.client(gate.url) as client:
        raw = await client.chat.completions.with_raw_response.create(**CHAT.body, stream=True)
        there, stream = raw.headers["Content-Location"], raw.parse()
        while len(got) < 20:
            got.append(await anext(stream))
        tail = gate.gateway.fanout.get(ticket_in(gate, there).stream_id)
        assert tail is not None
        tail.drop()
        with pytest.raises(openai.APIError, match="the stream goes on"):
            await anext(stream)
        go_on.set()
        rest = await gate.http.get(f"{there}&after={len(got)}", headers=bearer())
        assert rest.text.startswith(f"data: {chunk('20 ').decode()}")
        assert len(upstream.calls) == 1


# The head


async def test_a_stream_that_begins_late_has_its_head_with_the_first_heartbeat() -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await call.send(b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n")

    async with gateway(script, **KEYED | {"heartbeat": 0.1}) as (gate, _):
        body = {**CHAT.body, "stream": True}
        async with gate.http.stream("POST", CHAT.path, json=body, headers=bearer()) as response:
            assert response.status_code == 200
            pieces = response.aiter_bytes()
            assert (await anext(pieces)).startswith(b":\n")
            go_on.set()
            rest = b"".join([each async for each in pieces])
    error = json.loads(rest.partition(b"data: ")[2])["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "upstream_refused")


async def test_who_counts_the_upstreams_own_error_is_told_one_all_the_same() -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("a")))
        await go_on.wait()
        await call.send(sse(b'{"error":{"message":"Overloaded"}}'))

    body = {**CHAT.body, "stream": True}
    async with gateway(script, **KEYED | {"heartbeat": 0.1}) as (gate, _):
        async with gate.http.stream("POST", CHAT.path, json=body, headers=bearer()) as began:
            there = f"{began.headers['Content-Location']}&after=2"
        async with gate.http.stream("GET", there, headers=bearer()) as rest:
            assert rest.status_code == 200  # With the first heartbeat.
            go_on.set()
            told = (await rest.aread()).rpartition(b"data: ")[2]
    assert json.loads(told)["error"]["message"] == "Overloaded"


async def test_usage_that_was_not_asked_for_is_in_no_chunk() -> None:
    async with pretended() as base, before(base) as gate, CHAT.client(gate.url) as client:
        plain = await CHAT.stream(client)
        told = await CHAT.stream(client, stream_options={"include_usage": True})
    assert all(each["choices"] for each in plain)
    assert told[-1]["usage"]["completion_tokens"] == 12
    assert len(told) == len(plain) + 1


async def test_done_is_said_where_an_upstream_leaves_it_out() -> None:
    async with pretended() as base, before(base) as gate, CHAT.client(base, "k") as direct:
        async with CHAT.client(gate.url) as client:
            assert await CHAT.stream(client, **pretend("no-done")) == await CHAT.stream(direct)
        body = {**CHAT.body, "stream": True, "pretend": {"fault": "no-done"}}
        answer = await post(gate, body)
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_done_after_nothing_is_no_end() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(b"[DONE]"))

    async with gateway(script, **KEYED) as (gate, _):
        answer = await post(gate)
    assert (answer.status_code, answer.json()["code"]) == (502, "empty_answer")
    assert answer.headers["X-Should-Retry"] == "false"


# Who, and what


@every_sdk
async def test_a_wrong_key_and_an_unknown_model_are_the_sdks_own_errors(sdk: Sdk) -> None:
    module = module_of("anthropic") if sdk is MESSAGES else openai
    async with pretended() as base, before(base, preset={"models": ["m"]}) as gate:
        async with sdk.client(gate.url, "wrong") as client:
            with pytest.raises(module.AuthenticationError, match="The key is neither"):
                await sdk.stream(client)
        async with sdk.client(gate.url) as client:
            with pytest.raises(module.NotFoundError, match="'unknown'") as caught:
                await sdk.calls(client).create(**{**sdk.body, "model": "unknown"})
        assert await asked(base) == 0
    told = caught.value.response.json()
    assert told["code"] == "model_not_found"
    if sdk is MESSAGES:
        assert (told["type"], told["error"]["type"]) == ("error", "not_found_error")
    else:
        assert told["error"]["code"] == "model_not_found"


WRONG: dict[str, tuple[Sdk, Any, int, str]] = {
    "another API's": (CHAT, {"model": "any", "input": "Hello?"}, 400, "bad_request"),
    "a chat's": (RESPONSES, {**CHAT.body, "model": "resp"}, 400, "bad_request"),
    "no object": (RESPONSES, [], 400, "not_an_object"),
    "stream as a word": (CHAT, {**CHAT.body, "stream": "yes"}, 400, "bad_request"),
    "more choices than there may be": (CHAT, {**CHAT.body, "n": 3}, 400, "too_many_tokens"),
    "a preset that is no page's": (CHAT, {**CHAT.body, "model": "hidden"}, 404, "model_not_found"),
}


@pytest.mark.parametrize(("sdk", "body", "status", "code"), WRONG.values(), ids=WRONG.keys())
async def test_a_wrong_request_is_told_why(sdk: Sdk, body: Any, status: int, code: str) -> None:
    limits = {"max_output_tokens": 2, "models": ["any", "m"]}
    async with before("http://127.0.0.1:9", preset=limits) as gate:
        answer = await gate.http.post(sdk.path, json=body, headers=gate.cookie())
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code)
    assert told["error"]["message"]
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_preset_that_is_for_servers_is_a_model_for_them_alone() -> None:
    async with pretended() as base:
        hidden = {"hidden": {"url": base + CHAT.path, "public": False}}
        async with before(base) as all_public:
            given = {**all_public.gateway.settings.presets, **hidden}
        async with before(base, presets=given) as gate, CHAT.client(gate.url) as client:
            assert "hidden" in [each.id async for each in client.models.list()]
            assert (await client.models.retrieve("hidden")).id == "hidden"
            listed = await gate.http.get("/v1/models", headers=gate.cookie())
            assert [each["id"] for each in listed.json()["data"]] == ["default", "resp", "claude"]
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gone")


ROLE: dict[str, Any] = {
    "template": [{"role": "system", "content": "You are ${role}."}],
    "variables": {"role": {"choices": {"poet": "a poet", "pirate": "a pirate"}}},
    "fields": ["messages"],
    "defaults": {"model": "m"},
}


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "object"])
async def test_a_role_is_a_model_that_takes_its_variables(streams: bool) -> None:
    async with scripted(whole) as upstream:
        presets = {"talk": {"url": upstream.url, **ROLE}}
        nowhere = "http://127.0.0.1:9"
        async with before(nowhere, presets=presets) as gate, CHAT.client(gate.url) as client:
            more = {"model": "talk", "extra_body": {"role": "pirate"}}
            assert await CHAT.calls(client).create(messages=SAID, stream=streams, **more)
        sent = upstream.calls[0].json
    assert (sent["model"], sent["stream"]) == ("m", True)
    assert [each["content"] for each in sent["messages"]] == ["You are a pirate.", PROMPT]


async def test_the_models_are_listed_for_both_sdks() -> None:
    async with pretended() as base, before(base, preset={"models": ["m", "m2"]}) as gate:
        for sdk in (CHAT, MESSAGES):
            async with sdk.client(gate.url) as client:
                names = [each.id async for each in client.models.list()]
                assert names == ["default", "m", "m2", "resp", "claude"]


def token_of(subject: str) -> str:
    """Return a login of an hour."""
    return jwt.encode({"sub": subject, "exp": time.time() + 3600}, SECRET)


@pytest.mark.parametrize("sdk", [CHAT, MESSAGES], ids=["bearer", "x-api-key"])
async def test_a_users_token_is_a_key_where_logins_are_tokens(sdk: Sdk) -> None:
    token = token_of("alice")
    async with pretended() as base, before(base, auth="jwt") as gate:
        async with sdk.client(gate.url, token) as client:
            assert await sdk.stream(client)
        body = {**sdk.body, "stream": True, "metadata": {"user_id": "bob"}, "user": "bob"}
        body = {name: body[name] for name in body if name != "user" or sdk is CHAT}
        headers = {"X-Api-Key": token, "X-Subject": "bob"}
        began = await gate.http.post(sdk.path, json=body, headers=headers)
        there = began.headers["Content-Location"]
        for subject, status in (("alice", 200), ("bob", 404)):
            headers = bearer(token_of(subject))
            assert (await gate.http.get(there, headers=headers)).status_code == status


async def test_two_keys_that_differ_are_nobodys() -> None:
    async with before("http://127.0.0.1:9") as gate:
        headers = bearer(**{"X-Api-Key": "another", "anthropic-version": "1"})
        answer = await gate.http.post(MESSAGES.path, json=MESSAGES.body, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        models = await gate.http.get("/v1/models", headers={"X-Api-Key": "no"} | headers)
        assert models.json()["type"] == "error"
        twice = [("X-Api-Key", TOKEN), ("X-Api-Key", "another")]
        assert (await gate.http.get("/v1/models", headers=twice)).status_code == 401


async def test_a_page_may_send_what_sdks_tell_of_themselves() -> None:
    async with before("http://127.0.0.1:9") as gate:
        asks = "x-api-key, anthropic-version, x-stainless-lang, x-other"
        headers = {"Origin": gate.url, "Access-Control-Request-Headers": asks}
        answer = await gate.http.options(MESSAGES.path, headers=headers)
    allowed = answer.headers["Access-Control-Allow-Headers"]
    assert "x-api-key, anthropic-version, x-stainless-lang" in allowed
    assert "x-other" not in allowed
    assert answer.headers["Allow"] == "POST, GET"

"""The pretend upstream over a real socket."""

import asyncio
import gzip
import json
import logging
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from gateway.demo.upstream import FAULTS, UpstreamOptions, answer, parse_fault, upstream
from tests.demo.serving import data, keep, serving, told

PATH = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(upstream(UpstreamOptions(interval=0))) as client:
        yield client


def body(fault: str = "", tokens: int | None = 30, **members: Any) -> dict[str, Any]:
    pretend = {"fault": fault, "tokens": tokens, "interval": 0}
    return {"model": "m", "messages": MESSAGES, "stream": True, "pretend": pretend} | members


def content(events: list[str], choice: int = 0) -> list[str]:
    """Return the deltas of one choice."""
    choices = [each for event in events for each in json.loads(event)["choices"]]
    deltas = [each["delta"].get("content", "") for each in choices if each["index"] == choice]
    return [delta for delta in deltas if delta]


async def test_a_stream_is_what_openai_sends(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json=body(stream_options={"include_usage": True}))
    *events, done = data(response.text)
    first, *_, finish, usage = (json.loads(event) for event in events)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["object"] == "chat.completion.chunk"
    assert first["usage"] is None
    assert content(events) == answer(MESSAGES, 30)
    assert finish["choices"][0] | {"logprobs": 0} == {
        "index": 0,
        "delta": {},
        "logprobs": 0,
        "finish_reason": "stop",
    }
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 30


async def test_the_official_client_reads_it(client: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=str(client.base_url.join("/v1"))) as sdk:
        stream: Any = await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        whole = await sdk.chat.completions.create(model="m", messages=MESSAGES)
    assert "".join(text) == "".join(answer(MESSAGES))
    assert whole.choices[0].message.content == "".join(answer(MESSAGES))
    assert whole.usage
    assert whole.usage.completion_tokens == len(answer(MESSAGES))


async def test_without_include_usage_no_chunk_speaks_of_it(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json=body())
    assert '"usage"' not in response.text


@pytest.mark.parametrize("limit", [{"max_tokens": 7}, {"max_completion_tokens": 7}])
async def test_a_token_limit_ends_in_length(client: httpx.AsyncClient, limit: Any) -> None:
    response = await client.post(PATH, json=body(**limit))
    *events, finish, _ = data(response.text)
    assert content(events) == answer(MESSAGES)[:7]
    assert json.loads(finish)["choices"][0]["finish_reason"] == "length"


async def test_choices_are_interleaved(client: httpx.AsyncClient) -> None:
    events = data((await client.post(PATH, json=body(n=2))).text)[:-1]
    assert content(events, 0) == answer(MESSAGES, 30)
    assert content(events, 1) == answer(MESSAGES, 30, choice=1)
    assert [json.loads(event)["choices"][0]["index"] for event in events[2:6]] == [0, 1, 0, 1]


def test_an_answer_is_known_and_speaks_many_scripts() -> None:
    text = "".join(answer(MESSAGES))
    assert answer(MESSAGES) == answer(list(MESSAGES))
    assert answer(MESSAGES) != answer([{"role": "user", "content": "Another prompt"}])
    for piece in (
        "lost",
        "Связь",
        "يكتب",
        "דבר",
        "断线",
        "कनेक्शन",
        "👩‍👩‍👧‍👦",
        "🇫🇷",
        "\N{LINE SEPARATOR}",
    ):
        assert piece in text
    assert len(answer(MESSAGES, 5000)) == 5000
    assert answer(MESSAGES, 0) == []


async def test_text_is_sent_as_utf8_and_a_lone_surrogate_breaks_nothing(
    client: httpx.AsyncClient,
) -> None:
    sent = json.dumps(body(tokens=None, messages=[{"role": "user", "content": "\ud800 hi"}]))
    response = await client.post(PATH, content=sent)
    assert "? hi" in "".join(content(data(response.text)[:-1]))
    assert "Связь".encode() in b"".join(
        data_.encode() for data_ in content(data(response.text)[:-1])
    )
    assert b"\\u" not in response.content


async def test_each_chunk_leaves_at_once(client: httpx.AsyncClient) -> None:
    request = body("stall:5")
    async with client.stream("POST", PATH, json=request) as response:
        got = ""
        async for chunk in response.aiter_text():
            got += chunk
            if len(data(got)) == 6:  # The role and five deltas came; the sixth never will.
                break
        assert content(data(got)) == answer(MESSAGES, 30)[:5]


@pytest.mark.parametrize("fault", ["stall:0", "stall:3", "hang"])
async def test_a_client_that_goes_is_noticed_at_once(client: httpx.AsyncClient, fault: str) -> None:
    async def ask() -> None:
        async with client.stream("POST", PATH, json=body(fault)) as response:
            await response.aread()

    task = asyncio.create_task(ask())
    await told(client, open=1)
    task.cancel()
    [call] = (await told(client, open=0))["calls"]
    assert call["closed"] == "client"
    assert call["prompt"] == MESSAGES[0]["content"]


async def test_stall_0_sends_headers_and_hang_does_not(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", PATH, json=body("stall:0")) as response:
        assert response.status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        await client.post(PATH, json=body("hang"), timeout=0.3)


async def test_calls_counts_and_remembers(client: httpx.AsyncClient) -> None:
    await client.post(PATH, json=body())
    await client.post(PATH, json=body("status:503"))
    await client.post(PATH, content=b"{")
    calls = await told(client, open=0, count=3)
    assert [call["status"] for call in calls["calls"]] == [200, 503, 400]
    assert {call["closed"] for call in calls["calls"]} == {"finished"}
    assert abs(calls["calls"][0]["at"] - time.time()) < 60


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_status_refuses_in_openais_shape(client: httpx.AsyncClient, code: int) -> None:
    response = await client.post(PATH, json=body(f"status:{code}"))
    assert response.status_code == code
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers.get("retry-after") == ("1" if code in (429, 503) else None)


async def test_status_with_a_number_refuses_only_a_prompts_first(client: httpx.AsyncClient) -> None:
    other = body("status:429:2", messages=[{"role": "user", "content": "other"}])
    await client.post(PATH, json=body())
    seen = [(await client.post(PATH, json=body("status:429:2"))).status_code for _ in range(4)]
    assert seen == [429, 429, 200, 200]
    assert (await client.post(PATH, json=other)).status_code == 429


async def test_cut_breaks_off_inside_an_event_and_logs_no_error(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with client.stream("POST", PATH, json=body("cut:4")) as response:
        got: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await keep(response.aiter_raw(), got)
    *whole, part = b"".join(got).split(b"\n\n")
    assert len(content(data(b"\n".join(whole).decode()))) == 4
    assert part.startswith(b"data: {")
    [call] = (await told(client, open=0))["calls"]
    assert call["closed"] == "finished"
    assert caplog.records == []


async def test_close_ends_cleanly_without_saying_so(client: httpx.AsyncClient) -> None:
    events = data((await client.post(PATH, json=body("close:4"))).text)
    assert content(events) == answer(MESSAGES, 30)[:4]
    assert all(json.loads(event)["choices"][0]["finish_reason"] is None for event in events)


async def test_error_is_sent_inside_the_stream(client: httpx.AsyncClient) -> None:
    *events, error = data((await client.post(PATH, json=body("error:4"))).text)
    assert len(content(events)) == 4
    assert json.loads(error)["error"]["type"] == "server_error"


async def test_a_fault_beyond_the_end_never_strikes(client: httpx.AsyncClient) -> None:
    assert data((await client.post(PATH, json=body("cut:500"))).text)[-1] == "[DONE]"


async def test_no_done_leaves_out_only_done(client: httpx.AsyncClient) -> None:
    events = data((await client.post(PATH, json=body("no-done"))).text)
    assert content(events) == answer(MESSAGES, 30)
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "stop"


async def test_html_and_json_are_no_streams(client: httpx.AsyncClient) -> None:
    html = await client.post(PATH, json=body("html"))
    whole = await client.post(PATH, json=body("json"))
    assert html.status_code == whole.status_code == 200
    assert html.headers["content-type"].startswith("text/html")
    assert whole.headers["content-type"] == "application/json"
    text = whole.json()["choices"][0]["message"]["content"]
    assert text == "".join(answer(MESSAGES, 30))


async def test_gzip_is_flushed_with_each_chunk(client: httpx.AsyncClient) -> None:
    squeezed = await client.post(PATH, json=body("gzip"))
    assert squeezed.headers["content-encoding"] == "gzip"
    assert content(data(squeezed.text)[:-1]) == answer(MESSAGES, 30)

    async with client.stream("POST", PATH, json=body("gzip", stream=True)) as response:
        raw = [chunk async for chunk in response.aiter_raw()]
    assert zlib.decompressobj(wbits=31).decompress(raw[0]).endswith(b"\n\n")
    assert gzip.decompress(b"".join(raw)).endswith(b"data: [DONE]\n\n")


async def test_big_sends_one_event_of_that_size(client: httpx.AsyncClient) -> None:
    deltas = content(data((await client.post(PATH, json=body("big:300000"))).text)[:-1])
    assert [len(delta) for delta in deltas[:5]][3] == 300_000
    assert deltas[:3] + deltas[4:] == answer(MESSAGES, 30)


async def test_comments_and_crlf_change_no_data(client: httpx.AsyncClient) -> None:
    commented = (await client.post(PATH, json=body("comments"))).text
    crlf = (await client.post(PATH, json=body("crlf"))).text
    assert commented.count(": keep-alive\n\n") == 33
    assert crlf.count("\r\n\r\n") == crlf.count("\n") / 2 == 33
    assert content(data(commented)[:-1]) == content(data(crlf)[:-1]) == answer(MESSAGES, 30)


async def test_named_names_each_event_and_uses_our_names_too(client: httpx.AsyncClient) -> None:
    text = (await client.post(PATH, json=body("named"))).text
    names = [line for line in text.split("\n") if line.startswith("event: ")]
    assert names[:5] == [f"event: {name}" for name in ("chunk", "chunk", "open", "chunk", "end")]
    assert set(names[5:]) == {"event: chunk"}


def test_every_fault_of_the_table_is_understood() -> None:
    for spelling in FAULTS:
        text = spelling.replace("CODE", "503").replace("BYTES", "9")
        text = text.replace("SECONDS", "0.5").replace("N", "4")
        assert parse_fault(text).name == spelling.split(":")[0]


@pytest.mark.parametrize(
    "fault", ["frog", "cut:x", "cut:1:2", "hang:1", "status", "status:200", ":"]
)
async def test_an_unknown_fault_is_refused_with_the_known_ones(
    client: httpx.AsyncClient, fault: str
) -> None:
    response = await client.post(PATH, json=body(fault))
    assert response.status_code == 400
    assert "status:CODE:N, hang, stall:N" in response.json()["error"]["message"]
    with pytest.raises(ValueError, match="Unknown fault"):
        upstream(UpstreamOptions(fault=fault))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"{}",
        b'{"messages": []}',
        b'{"messages": "hi"}',
        b'{"messages": ["hi"]}',
        b'{"messages": [{}], "n": 0}',
        b'{"messages": [{}], "max_tokens": "many"}',
        b'{"messages": [{}], "pretend": 1}',
        b'{"messages": [{}], "pretend": {"tokens": -1}}',
        b'{"messages": [{}], "pretend": {"interval": true}}',
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(
    client: httpx.AsyncClient, sent: bytes
) -> None:
    response = await client.post(PATH, content=sent)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_wrong_path_or_method_is_json_too(client: httpx.AsyncClient) -> None:
    for response in (await client.post("/v1/nothing"), await client.get(PATH)):
        assert response.status_code in (404, 405)
        assert response.json()["error"]["message"]
    assert (await client.get("/healthz")).status_code == 200


async def test_the_options_fault_holds_until_a_body_says_otherwise() -> None:
    async with serving(upstream(UpstreamOptions(interval=0, tokens=9, fault="close:2"))) as client:
        plain = {"messages": MESSAGES, "stream": True}
        short = data((await client.post(PATH, json=plain)).text)
        whole = data((await client.post(PATH, json=plain | {"pretend": {"fault": ""}})).text)
    assert content(short) == answer(MESSAGES)[:2]
    assert content(whole[:-1]) == answer(MESSAGES)[:9]


async def test_a_key_is_asked_for_where_one_is_set() -> None:
    async with serving(upstream(UpstreamOptions(interval=0, api_key="sk-right"))) as client:
        wrong = await client.post(PATH, json=body(), headers={"Authorization": "Bearer sk-wrong"})
        right = await client.post(PATH, json=body(), headers={"Authorization": "Bearer sk-right"})
    assert wrong.status_code == 401
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    assert right.status_code == 200

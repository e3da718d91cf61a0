"""Message: what may be pushed, and what is refused by which code."""

import json
from typing import Any

import pytest

from gateway.channels.message import Bounds, Message, text_of
from gateway.errors import Rejected
from gateway.sse import Event, parse
from tests.support import running
from tests.web.test_events import SERVICE, TOKEN

BOUNDS = Bounds(1000, 60.0)


def made(text: str = "x", event: Any = None, message_id: Any = None, ttl: Any = None) -> Message:
    """Make a message."""
    return Message.of(event, text, message_id, ttl, BOUNDS)


@pytest.mark.parametrize("event", [None, "news", "a.b", "_x", "A-b:c_9", "e" * 100, "upstream-end"])
def test_an_event_has_a_name_of_plain_characters(event: str | None) -> None:
    block = made("one\ntwo", event).lines + b"id: 1-1\n\n"
    assert parse(block) == [Event(b"one\ntwo", (event or "").encode(), b"1-1")]


@pytest.mark.parametrize(
    "event",
    [
        *("end", "failure", "gap", "reset", "snapshot", "heartbeat", "open", "message", "error"),
        *("abort", "readystatechange", "retry", "", "1", "1.end", "0x", "a b", "a\n", "a\r"),
        *("a\0", "ü", "e" * 101, ".x", "-x", ":x", 1, True, [], {}, "\ud800"),
    ],
)
def test_an_event_may_not_be_named_like_ours_or_what_browsers_mean(event: Any) -> None:
    assert _refusal(event=event) == "bad_event"


@pytest.mark.parametrize(
    "text", ["", "a", "a\nb", "\n", " a", "\ufeff", "\0", "ü" * 500, ":", "id: 5"]
)
def test_data_comes_as_it_was_sent(text: str) -> None:
    (event,) = parse(made(text).lines + b"id: 1-1\n\n")
    assert event.data.decode() == text


def test_a_carriage_return_comes_as_a_line_feed() -> None:
    (event,) = parse(made("a\r\nb\rc").lines + b"id: 1-1\n\n")
    assert event.data == b"a\nb\nc"


WRONG: dict[str, tuple[str, list[Any]]] = {
    "event_too_large": ("text", ["x" * 1001, "ü" * 501]),
    "bad_data": ("text", ["\ud800"]),
    "bad_message_id": ("message_id", ["", "x" * 256, "a\nb", 1, True, []]),
    "bad_ttl": ("ttl", [0, -1, 60.1, "5", True, [], float("nan"), 10**400]),
}


@pytest.mark.parametrize("code", WRONG)
def test_what_cannot_be_a_message_is_refused_by_its_code(code: str) -> None:
    member, values = WRONG[code]
    assert [_refusal(**{member: each}) for each in values] == [code] * len(values)


def _refusal(**given: Any) -> str:
    with pytest.raises(Rejected) as caught:
        made(**given)
    return caught.value.code


def test_two_messages_are_the_same_if_they_say_the_same() -> None:
    assert made("x", "a").digest == made("x", "a", "k", 5).digest
    assert len({made("x", "a").digest, made("y", "a").digest, made("x", "b").digest}) == 3


@pytest.mark.parametrize("data", [float("nan"), object(), {1, 2}, [float("inf")]])
def test_what_is_no_json_is_no_data(data: Any) -> None:
    with pytest.raises(Rejected) as caught:
        text_of(data)
    assert caught.value.code == "bad_data"


async def test_a_body_is_refused_by_what_is_wrong_with_it() -> None:
    deep = "[" * 300 + "]" * 300
    cases = {
        b"": "not_json",
        b"[]": "not_an_object",
        b"{": "not_json",
        b'{"data":NaN}': "not_json",
        b'{"data":' + deep.encode() + b"}": "not_json",
        b"{}": "bad_data",
        b'{"data":"\\ud800"}': "bad_data",
        b'{"data":"x","mesage_id":"k"}': "unknown_member",
        b'{"data":"x","subjects":["a"]}': "unknown_member",
        b'{"data":"x","event":"end"}': "bad_event",
        b'{"data":"x","message_id":7}': "bad_message_id",
        b'{"data":"x","ttl":1e999}': "bad_ttl",
        b'{"data":"x","ttl":-0.0}': "bad_ttl",
        json.dumps({"data": "x" * 2000}).encode(): "event_too_large",
        json.dumps({"data": ["x" * 2000]}).encode(): "event_too_large",
        json.dumps({"data": "x" * 2_000_000}).encode(): "body_too_large",
    }
    headers = {**SERVICE, "Content-Type": "application/json"}
    async with running(service_tokens=TOKEN, max_event=1024) as gate:
        for body, code in cases.items():
            answer = await gate.http.post("/users/a/events", content=body, headers=headers)
            assert answer.json()["code"] == code, body[:80]
        answer = await gate.http.post("/users/a/events", content=b"x", headers=SERVICE)
        assert answer.json()["code"] == "unsupported_media_type"
        for subject in ("%00", "x" * 300, "%ff"):
            answer = await gate.http.post(
                f"/users/{subject}/events", json={"data": 1}, headers=SERVICE
            )
            assert answer.json()["code"] == "bad_subject"


async def test_json_comes_as_the_text_that_it_was() -> None:
    texts = ["1e999", "12345678901234567890123", '{"a": 1.0, "a": 2}', '"\\u00e9"', "null", "false"]
    async with running(service_tokens=TOKEN) as gate:
        headers = {**SERVICE, "Content-Type": "application/json"}
        for text in texts:
            body = f'{{"data": {text} }}'.encode()
            answer = await gate.http.post("/users/alice/events", content=body, headers=headers)
            assert answer.status_code == 202, answer.text
        shown = ["é" if text.startswith('"') else text for text in texts]
        query = {**gate.cookie(), "Accept": "text/event-stream"}
        async with gate.http.stream("GET", "/events?from=start", headers=query) as answer:
            came = b""
            async for chunk in answer.aiter_raw():
                came += chunk
                if came.count(b"\n\n") == len(texts):
                    break
    events = parse(came.partition(b"\n")[2])
    assert [each.data.decode() for each in events] == shown

"""Bills: what `end`, `/completion`, the record and the log tell of tokens and cost."""

import json
import logging
from typing import Any

import pytest

from gateway.config.presets import Preset
from gateway.runs.bill import Bill
from gateway.sse import Event
from gateway.upstream.protocols.chat_state import ChatState
from tests.support import OK, Call, ask, chunk, running, scripted, sse, whole

PRICE = {"prompt": 2.0, "completion": 8.0, "cached": 0.5}
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "prompt_tokens_details": {"cached_tokens": 400},
}


def usage_of(**usage: Any) -> bytes:
    """Return the data of a chunk that tells a usage."""
    return json.dumps({"choices": [], "usage": usage}).encode()


def bill(*events: bytes, **preset: Any) -> Bill:
    """Return the bill of an answer of these events, by a preset of these members."""
    seen = ChatState()
    for each in events:
        seen.see(Event(each))
    return Bill.of(seen, "p", Preset.model_validate(preset))


def test_what_was_told_is_billed_at_its_price() -> None:
    assert bill(chunk("Hi"), usage_of(**USAGE), price=PRICE).members() == {
        "tokens": {"prompt": 1000, "completion": 100, "cached": 400},
        "cost": 0.0022,
        "preset": "p",
    }


def test_without_a_price_there_is_no_cost() -> None:
    assert "cost" not in bill(chunk("Hi"), usage_of(**USAGE)).members()


def test_what_was_not_told_is_estimated_and_says_so() -> None:
    told = bill(chunk("Hel"), chunk("lo"), price=PRICE).members()
    assert told["tokens"] == {"prompt": None, "completion": 2, "cached": None, "estimated": True}
    assert told["cost"] == 0.000016


def test_of_what_was_told_in_part_the_rest_is_estimated() -> None:
    told = bill(chunk("Hel"), usage_of(prompt_tokens=7)).members()
    assert told["tokens"] == {"prompt": 7, "completion": 1, "cached": None, "estimated": True}


def test_of_nothing_nothing_is_told() -> None:
    assert bill(price=PRICE).members() == {"tokens": None, "preset": "p"}


def test_no_more_of_a_prompt_is_from_a_cache_than_it_has() -> None:
    told = usage_of(prompt_tokens=5, completion_tokens=1, cached_tokens=9)
    assert bill(told).members()["tokens"]["cached"] == 5


@pytest.mark.parametrize(
    ("usage", "preset", "words"),
    [
        (USAGE, {"price": PRICE}, "1000+100 tokens (400 cached), cost 0.0022"),
        (USAGE, {}, "1000+100 tokens (400 cached)"),
        ({"prompt_tokens": 12}, {}, "12+1 tokens (estimated)"),
        ({"prompt_tokens": 0, "completion_tokens": 0}, {"price": PRICE}, "0+0 tokens, cost 0"),
    ],
)
def test_an_operator_reads_numbers_only(
    usage: dict[str, Any], preset: dict[str, Any], words: str
) -> None:
    assert str(bill(chunk("forty-two"), usage_of(**usage), **preset)) == words


def test_a_bill_names_the_model_that_was_asked_for() -> None:
    request, preset = b'{"messages":[],"model":"m-1"}', Preset.model_validate({"url": "http://u"})
    assert Bill.of(ChatState(), "p", preset, request=request).model == "m-1"
    assert Bill.of(ChatState(), "p", None, request=request).model == "m-1"
    assert Bill.of(ChatState(), "p", preset).model == ""


async def test_end_completion_and_log_tell_the_same(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hi", finish="stop"), usage_of(**USAGE), b"[DONE]"))

    async with scripted(script) as upstream:
        presets = {"paid": {"url": upstream.url, "price": PRICE}}
        async with running(redis_url=redis_url, presets=presets) as gate:
            posted = await gate.http.post("/tickets/paid", json=ask(), headers=gate.cookie())
            url = str(posted.json()["stream_url"])
            before = await gate.completion(url)
            end = (await gate.read(url)).end
            told = await gate.completion(url)
    expected = {
        "tokens": {"prompt": 1000, "completion": 100, "cached": 400},
        "cost": 0.0022,
        "preset": "paid",
    }
    assert end == {**end, **expected, "usage": USAGE}
    assert told == {**told, **expected, "usage": USAGE}
    assert (before["tokens"], before["preset"], "cost" in before) == (None, "paid", False)
    assert any("1000+100 tokens (400 cached), cost 0.0022" in each for each in caplog.messages)


async def test_a_ticket_that_was_cancelled_first_was_asked_of_nobody() -> None:
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as gate:
        url = await gate.ticket()
        await gate.http.delete(url, headers=gate.cookie())
        end = (await gate.read(url)).end
    assert (end["tokens"], end["preset"]) == (None, None)
    assert json.dumps(end).count("cost") == 0

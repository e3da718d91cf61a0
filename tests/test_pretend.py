"""Every protocol before the pretend upstream: what goes wrong on the way ends as what it is."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import httpx
import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.demo.pretend.asking import WAYS, Way, expected
from tests.dialects import COHERE
from tests.support import Served, Transcript, client, running, served, until

ENDS = {  # Of a fault: the state, the failure's code, how many pieces of the text there are.
    "": ("done", "", 30),
    "cut:6": ("truncated", "upstream_cut", 6),
    "close:6": ("truncated", "upstream_cut", 6),
    "error:6": ("failed", "upstream_error", 6),
    "no-done": ("truncated", "upstream_cut", 30),
    "stall:6": ("stalled", "upstream_stalled", 6),
    "status:529": ("failed", "upstream_refused", 0),
    "html": ("failed", "upstream_not_a_stream", 0),
}
STALL = 0.3


def preset(name: str, way: Way, base: str) -> dict[str, Any]:
    """Return the preset of the pretend upstream at this address."""
    path = way.path.replace("/m:", "/{model}:")
    declared = COHERE if name == "cohere" else {"protocol": name.split()[0]}
    return {"url": base + path, "api_key": "k", "stall": STALL, "retries": 0, **declared}


async def ended(gateway: Served, body: dict[str, Any]) -> tuple[str, str, int]:
    """Return how one answer ended, and of how many pieces its text is: a piece is a token."""
    url = await gateway.ticket(body)
    transcript = await gateway.read(url)
    text = (await gateway.completion(url))["text"]
    pieces = next((n for n in range(31) if text == "".join(expected()[:n])), -1)
    failed = "failure" in transcript.names
    told = transcript.end["tokens"]
    assert ((told or {}).get("completion") or 0) == pieces
    assert (told is None) == (failed and transcript.failure["code"] == "upstream_refused")
    await raw_is_as_true(gateway, url, text, whole=transcript.end["state"] == "done")
    return transcript.end["state"], transcript.failure["code"] if failed else "", pieces


async def raw_is_as_true(gateway: Served, url: str, text: str, *, whole: bool) -> None:
    """Check that `format=raw` has the text, and ends cleanly only where that is whole."""
    got = ""
    async with gateway.http.stream("GET", f"{url}&format=raw", headers=gateway.cookie()) as answer:
        assert answer.status_code == (200 if text else 502)
        with nullcontext() if whole or not text else pytest.raises(httpx.RemoteProtocolError):
            async for part in answer.aiter_text():
                got += part
    assert got == text or not text


@pytest.mark.parametrize("name", WAYS)
async def test_each_answer_ends_as_what_it_was(name: str) -> None:
    way, found = WAYS[name], {}
    async with (
        served(upstream(UpstreamOptions())) as base,
        running(presets={"default": preset(name, way, base)}) as gateway,
    ):
        for fault in ENDS:
            pretend = {"fault": fault, "tokens": 30, "interval": 0}
            body = {"model": "m", **way.body, "stream": True, "pretend": pretend}
            found[fault] = await ended(gateway, body)
    # That a chat is whole is told by its finish reason too.
    told_twice = {"no-done": ("done", "", 30)} if name == "openai" else {}
    assert found == ENDS | told_twice


# Background responses


@asynccontextmanager
async def keeping() -> AsyncIterator[tuple[Served, httpx.AsyncClient]]:
    """Run a gateway before responses that are kept; yields it and a client of their upstream."""
    async with served(upstream(UpstreamOptions())) as base, client(base) as pretend:
        given = {**preset("responses", WAYS["responses"], base), "background": True, "stall": 5}
        async with running(presets={"default": given}) as gateway:
            yield gateway, pretend


def kept(fault: str, **pretend: Any) -> dict[str, Any]:
    """Return a request for a response that is kept."""
    pretend = {"fault": fault, "tokens": 30, "interval": 0.001, **pretend}
    return {**WAYS["responses"].body, "pretend": pretend}


def numbers(transcript: Transcript) -> list[int]:
    """Return the numbers of a response's events."""
    return [json.loads(each)["sequence_number"] for each in transcript.data]


async def test_a_hundred_kept_answers_cut_at_any_point_are_whole_and_made_once() -> None:
    chance = random.Random(12)
    faults = [
        f"{chance.choice(['cut', 'cuts', 'close'])}:{chance.randint(1, 30)}" for _ in "x" * 99
    ]
    async with keeping() as (gateway, pretend):

        async def one(fault: str) -> tuple[str, bool, list[int]]:
            url = await gateway.ticket(kept(fault))
            transcript = await gateway.read(url)
            text = (await gateway.completion(url))["text"]
            return transcript.end["state"], text == "".join(expected()), numbers(transcript)

        ends = await asyncio.gather(*map(one, [*faults, "no-done"]))
        calls = (await pretend.get("/calls")).json()
    assert [end for end in ends if end != ("done", True, list(range(39)))] == []
    assert calls["count"] == calls["creates"] == 100
    assert calls["attaches"] >= 50


async def test_a_kept_answer_that_is_too_old_is_truncated_and_not_made_again() -> None:
    async with keeping() as (gateway, pretend):
        end = await ended(gateway, kept("cut:6", attach_for=0))
        calls = (await pretend.get("/calls")).json()
    assert end == ("truncated", "upstream_cut", 6)
    assert (calls["count"], calls["attaches"]) == (1, 1)


async def test_a_kept_answer_that_nobody_wants_is_cancelled_upstream_once() -> None:
    async with keeping() as (gateway, pretend):
        url = await gateway.ticket(kept("stall:6"))
        await gateway.read(url, enough=lambda got: len(got.events) >= 11)
        await gateway.http.delete(url, headers=gateway.cookie())
        end = (await gateway.read(url)).end

        async def told() -> Any:
            calls = (await pretend.get("/calls")).json()
            return calls if calls["cancels"] else None

        calls = await until(told, "the cancel")
    assert end["state"] == "cancelled"
    assert [each["status"] for each in calls["responses"].values()] == ["cancelled"]
    assert (calls["count"], calls["cancels"]) == (1, 1)

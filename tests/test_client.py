"""gateway.client over real sockets: cuts, replicas that die, refusals, a stop."""

import asyncio
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.client import Answer, Refused, complete
from gateway.demo.upstream import answer
from tests.runs.test_takeover import LOST, crashing, dies, via
from tests.support import RedisServer, ask, cookie, free_port, running, scripted, settings
from tests.support import until as wait_for
from tests.test_clients import TOKENS, calls, cutting, paused, pretending

ALICE = cookie(settings())
WORDS = "".join(answer(ask()["messages"], TOKENS))


def asked(url: str, body: dict[str, Any] | None = None, **options: Any) -> Answer:
    """Ask a gateway as alice."""
    return complete(f"{url}/tickets", body or ask(), headers=ALICE, **options)


async def refused(of: Answer) -> Refused:
    """Return what a loop raises."""
    with pytest.raises(Refused) as raised:
        async for _ in of:
            pass
    return raised.value


async def test_a_loop_has_the_whole_answer_over_a_line_that_breaks_again_and_again() -> None:
    async with (
        pretending() as url,
        running(upstream_url=url, grace=20) as gateway,
        cutting(gateway, [900, 1501, 2200]) as (through, cutter),
    ):
        of = asked(through)
        assert "".join([piece async for piece in of]) == of.text == WORDS
        assert of.end["state"] == "done"
        assert of.end["tokens"]["completion"] == TOKENS
        assert await calls(url) == 1
        assert any(b"last-event-id" in each.lower() for each in cutter.requests)


async def test_a_post_whose_answer_was_lost_is_sent_again_and_paid_once() -> None:
    async with (
        pretending() as url,
        running(upstream_url=url) as gateway,
        cutting(gateway, [1]) as (through, cutter),
    ):
        assert "".join([piece async for piece in asked(through)]) == WORDS
        posts = [each.lower() for each in cutter.requests if each.startswith(b"POST ")]
        keys = {
            line for each in posts for line in each.split(b"\r\n") if b"idempotency-key" in line
        }
        assert (len(posts), len(keys)) == (2, 1)
        assert await calls(url) == 1


async def test_a_ticket_of_ones_own_is_read_and_heartbeats_are_no_text() -> None:
    async with (
        pretending(interval=0.1, tokens=8) as url,
        running(upstream_url=url, heartbeat=0.02) as gateway,
    ):
        of = complete(gateway.url + await gateway.ticket(), headers=ALICE)
        assert all([piece async for piece in of])
        assert of.text == "".join(answer(ask()["messages"], 8))


async def test_a_gateway_that_is_away_for_a_moment_is_waited_for() -> None:
    async with pretending() as url, running(upstream_url=url, grace=20) as gateway:
        gateway.gateway.fanout.closing = True
        reading = asyncio.create_task(_text(of := asked(gateway.url)))
        await wait_for(lambda: of.stream_url, "the ticket", 20)
        gateway.gateway.fanout.closing = False
        assert await reading == WORDS


async def _text(of: Answer) -> str:
    return "".join([piece async for piece in of])


async def test_what_is_refused_and_what_is_not_whole_is_raised() -> None:
    async with pretending(fault="cut:5") as url, running(upstream_url=url) as gateway:
        bad = await refused(asked(gateway.url, ask(stream=False)))
        assert (bad.code, bad.status, bad.state) == ("stream_required", 400, "")
        nobody = await refused(complete(f"{gateway.url}/tickets", ask()))
        assert (nobody.code, nobody.status) == ("not_authenticated", 401)
        foreign = await gateway.ticket(subject="bob")
        assert (await refused(complete(gateway.url + foreign, headers=ALICE))).status == 404
        of = asked(gateway.url)
        cut = await refused(of)
        assert (cut.code, cut.state) == ("upstream_cut", "truncated")
        assert of.end["state"] == "truncated"
        assert of.text == "".join(answer(ask()["messages"], TOKENS)[:5])


async def test_a_stop_ends_the_upstreams_work_and_the_loop() -> None:
    script, _ = paused()
    async with scripted(script) as upstream, running(upstream_url=upstream.url) as gateway:
        of = asked(gateway.url)
        reading = asyncio.create_task(refused(of))
        await wait_for(lambda: of.text, "a piece", 20)
        await of.stop()
        ended = await reading
        assert (ended.code, ended.state) == ("cancelled", "cancelled")
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)


async def test_a_gateway_that_never_comes_is_given_up() -> None:
    with pytest.raises(httpx.ConnectError):
        await _text(asked(f"http://127.0.0.1:{free_port()}", patience=0.2))


class Away(httpx.AsyncBaseTransport):
    """A network that loses what is sent, in which each try takes its ten seconds."""

    def __init__(self) -> None:
        self.now, self.tries = 0.0, 0

    def monotonic(self) -> float:
        return self.now

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.now, self.tries = self.now + 10, self.tries + 1
        if self.tries > 3:
            raise AssertionError("It is asked for ever.")
        raise httpx.ConnectTimeout("lost")


async def test_a_gateway_that_is_silent_is_given_up_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Away()
    monkeypatch.setattr("gateway.client.time", away)
    with pytest.raises(httpx.ConnectTimeout):
        await _text(asked("http://gateway.test", patience=5, transport=away))
    assert away.tries == 2


async def test_a_body_without_members_is_a_body() -> None:
    async with running() as gateway:
        told = await refused(complete(f"{gateway.url}/tickets", {}, headers=ALICE))
        assert told.code == "upstream_unreachable"


async def test_after_a_kill_the_text_is_cleared_or_raised_and_never_two_answers_in_one(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with crashing(own_redis, tmp_path, dies) as (upstream, here, there):
        url = await here.ticket()
        await via(there, url, len(LOST))
        cleared: list[str] = []
        clears = complete(here.url + url, headers=ALICE, discard=lambda: cleared.append("so"))
        cannot = complete(here.url + url, headers=ALICE)
        reading = [asyncio.create_task(_text(clears)), asyncio.create_task(refused(cannot))]
        await wait_for(lambda: clears.text == cannot.text == "lost words ", "its words", 20)
        there.signal(signal.SIGKILL)
        told, raised = await asyncio.wait_for(asyncio.gather(*reading), 30)
        assert told == "lost words Hello"
        assert (clears.text, cleared, clears.end["attempts"]) == ("Hello", ["so"], 2)
        assert isinstance(raised, Refused)
        assert raised.code == "begun_anew"
        assert len(upstream.calls) == 2


async def test_without_httpx_sse_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx_sse", None)
    monkeypatch.delitem(sys.modules, "gateway.client")
    with pytest.raises(ImportError, match=r"sse-ticket-gateway\[client\]"):
        importlib.import_module("gateway.client")

"""Background responses, as the pretend upstream keeps them: whole, in order and paid once whatever
breaks, and stopped where nobody wants them any more."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config.presets import Preset
from gateway.demo.upstream import UpstreamOptions, answer, upstream
from gateway.eventlog.entries import EventId
from tests.demo.serving import serving, told
from tests.faults.harness import new_seed
from tests.nginx import Replicas, replicas
from tests.support import (
    SECRET,
    Process,
    RedisServer,
    Served,
    Transcript,
    client,
    cookie,
    follow,
    process,
    read,
    running,
    settings,
    until,
)

ALICE = cookie(settings())
STREAMS = 100
KILLS = 3
PROMPT = "You are a pirate, and never say so."
BACKGROUND = '[presets.default]\nprotocol = "responses"\nbackground = true\n'


def asked(prompt: str = "Hello?", **pretend: Any) -> dict[str, Any]:
    """Return a request for a response, and how the pretend upstream is to answer it."""
    return {"model": "pretend", "input": prompt, "pretend": pretend}


def numbers(got: Transcript) -> list[int]:
    """Return the upstream's own numbers, in the order in which they came."""
    return [json.loads(each)["sequence_number"] for each in got.data]


def whole_once(got: Transcript, prompt: str = "Hello?", tokens: int | None = None) -> None:
    """Check that a transcript has each event of a whole answer once and in order."""
    assert numbers(got) == list(range(len(got.data)))
    assert json.loads(got.data[-1])["type"] == "response.completed"
    positions = [EventId.parse(each) for each in got.ids]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(positions))
    assert b"reset" not in {event.name for event in got.events}
    assert (got.end["state"], got.end["attempts"]) == ("done", 1)
    text = "".join(json.loads(each).get("delta", "") for each in got.data)
    assert text == "".join(answer([{"role": "user", "content": prompt}], tokens))


# A hundred of them


class Storm:
    """So many background responses, whose owners are killed and whose connections break."""

    def __init__(self, site: Replicas, http: httpx.AsyncClient, seed: int) -> None:
        self._site = site
        self._http = http
        self._chance = random.Random(seed)

    def _url(self, path: str, number: int) -> str:
        return f"http://127.0.0.1:{self._site.ports[number % len(self._site.ports)]}{path}"

    async def play(self) -> None:
        """Have all begun, kill one owner after the other, and look at what was seen."""
        begun = [self._begin(number) for number in range(STREAMS)]
        viewers = [asyncio.create_task(each) for each in await asyncio.gather(*begun)]
        hit = 0
        for number in range(KILLS):
            await asyncio.sleep(self._chance.uniform(0.1, 2))
            hit += sum(not each.done() for each in viewers)
            self._site.signal(number % 2, signal.SIGKILL)
            await asyncio.to_thread(self._site.replace, number % 2)
        assert hit > STREAMS
        await asyncio.gather(*viewers)

    async def _begin(self, number: int) -> Coroutine[Any, Any, None]:
        """Ask for one and see some of it; return what sees the rest and judges it."""
        prompt, tokens = f"Number {number}", self._chance.randint(80, 160)
        pretend: dict[str, Any] = {"tokens": tokens, "interval": 0.1}
        if number % 4 < 2:
            pretend["fault"] = f"cuts:{self._chance.randint(1, 30)}"
        some = self._chance.randint(1, 20)
        told = await self._http.post(
            self._url("/tickets", number),
            json=asked(prompt, **pretend),
            # Else the pool of a busy client closes it under the GET that it is used for.
            headers={**ALICE, "Connection": "close"},
        )
        path = str(told.json()["stream_url"])
        seen = await read(
            self._http,
            self._url(path, number),
            headers=ALICE,
            enough=lambda got: len(got.events) >= some,
        )
        return self._see(path, seen, prompt, tokens)

    async def _see(self, path: str, seen: Transcript, prompt: str, tokens: int) -> None:
        def where() -> str:
            return self._url(path, self._chance.randrange(2))

        await follow(self._http, where, ALICE, 120, seen=seen)
        assert seen.status == 204
        whole_once(seen, prompt, tokens)


@pytest.mark.timeout(240)
async def test_a_hundred_answers_outlive_kills_and_cuts_whole_in_order_and_paid_once(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    seed = int(os.environ.get("GATEWAY_FAULTS_SEED") or new_seed())
    print(f"GATEWAY_FAULTS_SEED={seed}")
    config = tmp_path / "gateway.toml"
    config.write_text(BACKGROUND, "utf-8")
    more = {"config": str(config), "grace": "30", "lease": "2"}
    with (
        process("upstream", "--port", "0") as pretend,
        replicas(2, own_redis, f"{pretend.url}/v1/responses", **more) as site,
    ):
        async with client(pretend.url) as http:
            await Storm(site, http, seed).play()
            calls = (await http.get("/calls")).json()
    assert (calls["creates"], calls["count"], calls["cancels"]) == (STREAMS, STREAMS, 0)
    assert {each["status"] for each in calls["responses"].values()} == {"completed"}
    assert calls["attaches"] >= STREAMS


# In one process, and in a second one where the first dies


@asynccontextmanager
async def pretending(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a pretend upstream; yields a client of it."""
    async with serving(upstream(UpstreamOptions(**{"interval": 0.05, **options}))) as pretend:
        yield pretend


def site(pretend: httpx.AsyncClient, **changes: Any) -> AbstractAsyncContextManager[Served]:
    """Run a gateway in this process before a pretend upstream, with a prompt of its own."""
    told = {"protocol": "responses", "background": True, "force": {"instructions": PROMPT}}
    given = {"presets": {"default": Preset.model_validate(told)}, "grace": 9, "drain": 0.2}
    return running(upstream_url=url_of(pretend), **{"lease": 2, **given, **changes})


@contextmanager
def owner(redis: RedisServer, pretend: httpx.AsyncClient, folder: Path) -> Iterator[Process]:
    """Run a like one as a process that a test may kill."""
    config = folder / "gateway.toml"
    config.write_text(f'{BACKGROUND}force = {{instructions = "{PROMPT}"}}\n', "utf-8")
    given = {"redis_url": redis.url, "upstream_url": url_of(pretend), "secrets": SECRET}
    given |= {"lease": "1", "grace": "9", "heartbeat": "1", "config": str(config)}
    with process("serve", "--port", "0", log_level="error", **given) as started:
        yield started


def url_of(pretend: httpx.AsyncClient) -> str:
    """Return where responses are asked for."""
    return f"{pretend.base_url}/v1/responses"


async def begun(gate: Served, count: int = 3, at: str = "", **pretend: Any) -> str:
    """Return the URL of a stream of which so many events were seen, at another replica perhaps."""
    url = await gate.ticket(asked(**pretend))
    got = await gate.read(at + url, enough=lambda got: len(got.events) >= count)
    assert len(got.events) >= count
    return url


async def asks(pretend: httpx.AsyncClient) -> dict[str, int]:
    """Return how often the upstream was asked for what."""
    calls = (await pretend.get("/calls")).json()
    return {name: calls[name] for name in ("creates", "attaches", "looks", "cancels")}


def once(**more: int) -> dict[str, int]:
    """Return what `asks` tells of one response that was begun, and of what else was asked."""
    return {"creates": 1, "attaches": 0, "looks": 0, "cancels": 0, **more}


Act = Callable[[Served, str], Awaitable[object]]


async def cancel(gate: Served, url: str) -> None:
    """DELETE the stream."""
    assert (await gate.http.delete(url, headers=gate.cookie())).status_code == 200


async def wait(gate: Served, url: str) -> None:
    """Do nothing: a clock does it."""


async def drain(gate: Served, url: str) -> None:
    """Let the replica leave."""
    await gate.gateway.drain()


@pytest.mark.parametrize(
    ("act", "changes", "state"),
    [
        (cancel, {}, "cancelled"),
        (wait, {"grace": 0.3}, "cancelled"),
        (wait, {"max_run": 1.5}, "truncated"),
        (drain, {"drain": 0.1}, "interrupted"),
    ],
    ids=["cancelled", "left by its last viewer", "too long", "drained"],
)
async def test_what_ends_early_is_cancelled_at_its_upstream_once(
    act: Act, changes: dict[str, Any], state: str
) -> None:
    async with pretending(tokens=400) as pretend:
        async with site(pretend, **changes) as gate:
            url = await begun(gate)
            await act(gate, url)
            await told(pretend, cancels=1)
            await until(lambda: not gate.gateway.supervisor.active)
            assert (await gate.completion(url))["state"] == state
        calls = await told(pretend, cancels=1, open=0)
        assert [each["status"] for each in calls["responses"].values()] == ["cancelled"]
        assert await asks(pretend) == once(cancels=1)


async def test_a_cancel_that_its_owner_did_not_live_to_hear_is_told_by_its_successor(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with pretending(tokens=400) as pretend:
        async with site(pretend, redis_url=own_redis.url) as gate:
            with owner(own_redis, pretend, tmp_path) as dying:
                url = await begun(gate, at=dying.url)
                dying.signal(signal.SIGSTOP)
                await cancel(gate, url)
                assert (await gate.read(url)).end["state"] == "cancelled"
                await told(pretend, cancels=1)
                dying.signal(signal.SIGCONT)
                await told(pretend, open=0)  # It has hung up, and heard that it is another's.
        assert await asks(pretend) == once(cancels=1)


async def test_an_answer_too_old_to_be_gone_on_with_is_truncated_and_not_asked_for_anew() -> None:
    async with pretending(interval=0.1, attach_for=0.3) as pretend, site(pretend) as gate:
        got = await gate.read(await gate.ticket(asked(fault="cut:6")))
        assert (got.end["state"], got.end["attempts"]) == ("truncated", 1)
        assert got.failure["code"] == "upstream_cut"
        assert numbers(got) == list(range(11))
        await told(pretend, cancels=1)
        assert await asks(pretend) == once(attaches=1, cancels=1)


async def test_an_answer_too_old_for_a_successor_is_truncated_and_not_asked_for_anew(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        pretending(tokens=400, attach_for=0.3) as pretend,
        site(pretend, redis_url=own_redis.url) as gate,
    ):
        with owner(own_redis, pretend, tmp_path) as dying:
            url = await begun(gate, at=dying.url)
            dying.signal(signal.SIGKILL)
            got = await gate.read(url)
        assert (got.end["state"], got.end["attempts"]) == ("truncated", 1)
        assert numbers(got) == list(range(len(got.data)))
        await told(pretend, cancels=1)
        assert await asks(pretend) == once(attaches=1, cancels=1)


async def test_a_queued_answer_that_is_silent_is_asked_after_and_then_goes_on() -> None:
    async with pretending(tokens=20) as pretend, site(pretend, upstream_stall=0.4) as gate:
        whole_once(await gate.read(await gate.ticket(asked(fault="queued:1.5"))), tokens=20)
        calls = await asks(pretend)
        assert calls == once(looks=calls["looks"])
        assert calls["looks"] >= 2


# The preset's own prompt


async def has_our_prompt(pretend: httpx.AsyncClient) -> None:
    """Check that the upstream was told the preset's prompt: only then it could echo it."""
    (name,) = (await pretend.get("/calls")).json()["responses"]
    assert (await pretend.get(f"/v1/responses/{name}")).json()["instructions"] == PROMPT


@pytest.mark.parametrize("fault", ["", "cuts:3"], ids=["one connection", "re-attached"])
async def test_a_page_never_sees_the_presets_prompt(fault: str) -> None:
    async with pretending(tokens=20) as pretend, site(pretend) as gate:
        url = await gate.ticket(asked(fault=fault))
        got = await gate.read(url)
        whole_once(got, tokens=20)
        assert got.raw.count(b'"instructions":null') == 4
        assert PROMPT not in f"{got.raw!r} {await gate.completion(url)}"
        assert (await asks(pretend))["attaches"] == (6 if fault else 0)
        await has_our_prompt(pretend)


async def test_a_page_never_sees_the_presets_prompt_after_a_takeover(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with pretending(tokens=60) as pretend, site(pretend, redis_url=own_redis.url) as gate:
        with owner(own_redis, pretend, tmp_path) as dying:
            url = await begun(gate, at=dying.url)
            dying.signal(signal.SIGKILL)
            got = await gate.read(url)
        whole_once(got, tokens=60)
        assert got.raw.count(b'"instructions":null') == 4
        assert PROMPT not in f"{got.raw!r} {await gate.completion(url)}"
        assert await asks(pretend) == once(attaches=1)
        await has_our_prompt(pretend)

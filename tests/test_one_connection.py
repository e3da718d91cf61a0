"""One EventSource of a real browser over HTTP/1.1, through nginx, while replicas die and change."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext

from tests.nginx import Front, front
from tests.support import (
    OK,
    Call,
    RedisServer,
    chunk,
    client,
    cookie,
    read,
    scripted,
    settings,
    sse,
)
from tests.test_browser import add_cookie, chromium
from tests.test_promises import at_least

ALICE = cookie(settings())
TOKEN = "a-service-token-of-the-tests"
COUNT = 12

# Each event by its name and data; `one` is the EventSource.
WATCH = """([url, count]) => {
    window.seen = [];
    window.one = new EventSource(url);
    const names = ["message", "gap"];
    for (let k = 1; k <= count; k++)
        names.push(`${k}`, ...["end", "failure", "gap", "reset"].map((name) => `${k}.${name}`));
    for (const name of names)
        one.addEventListener(name, (event) => seen.push([event.type, event.data]));
}"""
NUMBERED = "seen.filter(([name]) => /^[0-9]+$/.test(name)).length === %d"
ENDED = "seen.filter(([name]) => name.endsWith('.end')).length === 12"
HEARD = "seen.some(([name, data]) => name === 'message' && data === '%s')"


class Staged:
    """An upstream's script: two parts and the end, each when it is let go on."""

    def __init__(self) -> None:
        self.first = [chunk(f"word {number} ") for number in range(5)]
        self.second = [chunk(f"word {number} ") for number in range(5, 10)]
        self.stages = [asyncio.Event(), asyncio.Event()]

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        await call.send(OK, sse(*self.first))
        await self.stages[0].wait()
        await call.send(sse(*self.second))
        await self.stages[1].wait()
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


@pytest.fixture
async def context() -> AsyncIterator[BrowserContext]:
    """A new profile of a browser."""
    async with chromium() as browser:
        yield await browser.new_context()


async def push(at: Front, number: int, text: str) -> None:
    """Push a message to alice by one of the replicas."""
    async with client(f"http://127.0.0.1:{at.replicas.ports[number]}") as http:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = await http.post("/users/alice/events", json={"data": text}, headers=headers)
        assert answer.status_code == 202, answer.text


async def restarted(at: Front, number: int) -> None:
    """Wait until a replica that was told to end has done so, and start another in its place."""
    assert await asyncio.to_thread(at.replicas.processes[number].wait, 30) == 0
    await asyncio.to_thread(at.replicas.replace, number)


@pytest.mark.timeout(120)
async def test_twelve_streams_and_the_channel_come_exactly_through_a_crash_and_a_deploy(
    context: BrowserContext, own_redis: RedisServer, tmp_path: Path
) -> None:
    script, config = Staged(), tmp_path / "gateway.toml"
    # They come back within the third of a grace.
    config.write_text('[presets.default]\non_leave = "finish"\ngrace = 1\n', "utf-8")
    more = {"service_tokens": TOKEN, "drain": "30", "config": str(config)}
    async with (
        scripted(script) as upstream,
        front(tmp_path, own_redis, upstream.url, 2, {}, **more) as at,
    ):
        urls = [await at.ticket(f"Question {number}") for number in range(COUNT)]
        watched = await at.replica_of(urls[0])  # The first ticket says where nginx takes it.
        runs = 1 - watched
        async with client(f"http://127.0.0.1:{at.replicas.ports[runs]}") as direct:
            for url in urls:
                await read(direct, url, headers=ALICE, enough=at_least(1))

        page = await context.new_page()
        await add_cookie(context, at.nginx.plain, ALICE)
        await page.goto(f"{at.nginx.plain}/healthz")
        protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert await page.evaluate(protocol) == "http/1.1"
        tickets = "&".join(url.partition("?")[2] for url in urls)
        await page.evaluate(WATCH, [f"/events?{tickets}", COUNT])
        await page.wait_for_function(NUMBERED % (5 * COUNT))
        await push(at, runs, "m0")
        await page.wait_for_function(HEARD % "m0")

        at.replicas.signal(watched, signal.SIGKILL)
        script.stages[0].set()
        await push(at, runs, "m1")
        await page.wait_for_function(NUMBERED % (10 * COUNT))
        await asyncio.to_thread(at.replicas.replace, watched)
        at.replicas.signal(runs, signal.SIGTERM)
        await push(at, watched, "m2")
        await page.wait_for_function(HEARD % "m2")  # It was sent on; the runs go on to their ends.
        script.stages[1].set()
        await restarted(at, runs)
        at.replicas.signal(watched, signal.SIGTERM)
        await push(at, runs, "m3")
        await page.wait_for_function(HEARD % "m3")
        await page.wait_for_function(ENDED)

        seen = await page.evaluate("seen")
        assert [data for name, data in seen if name == "message"] == ["m0", "m1", "m2", "m3"]
        async with client(f"http://127.0.0.1:{at.replicas.ports[runs]}") as direct:
            for number, url in enumerate(urls, 1):
                events = (await read(direct, url, headers=ALICE)).events
                names = [f"{number}.{each.name.decode()}".removesuffix(".") for each in events]
                mine = [each for each in seen if each[0].partition(".")[0] == f"{number}"]
                datas = [each.data.decode() for each in events]
                assert mine == [list(each) for each in zip(names, datas, strict=True)]
                assert len(mine) == 13
        assert len(upstream.calls) == COUNT

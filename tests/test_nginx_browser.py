"""A real browser through nginx, over HTTP/2: many streams at once, and nobody there for a while."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page

from tests.nginx import Front, front
from tests.support import (
    RedisServer,
    ScriptedUpstream,
    ask,
    cookie,
    read,
    scripted,
    settings,
    until,
)
from tests.test_browser import BARE, add_cookie, chromium, closed, said
from tests.test_promises import Paced, held

ALICE = cookie(settings())

# Ten streams on one page, each with what it has seen.
MANY = """(urls) => {
    window.all = urls.map((url) => {
        const one = {es: new EventSource(url), got: []};
        one.es.onmessage = (event) => one.got.push([event.lastEventId, event.data]);
        return one;
    });
}"""


@pytest.fixture
async def context() -> AsyncIterator[BrowserContext]:
    """A new profile of a browser that takes our certificate."""
    async with chromium() as browser:
        yield await browser.new_context(ignore_https_errors=True)


class Site:
    """Two replicas behind nginx, their upstream, and a page of alice on https."""

    def __init__(self, at: Front, upstream: ScriptedUpstream, page: Page) -> None:
        self.at = at
        self.upstream = upstream
        self.page = page

    async def events(self, url: str) -> list[list[str]]:
        """Return what a bare page is to see of a whole stream."""
        events = (await read(self.at.http, url, headers=ALICE)).events
        return [[each.id.decode(), each.data.decode()] for each in events if not each.name]

    async def watch(self) -> str:
        """Let the page watch a stream, and wait for its first half."""
        url = await self.at.ticket()
        await self.page.evaluate("(url) => watch(url)", url)
        await self.page.wait_for_function("got.length === 5")
        return url


@asynccontextmanager
async def site(
    context: BrowserContext, redis: RedisServer, folder: Path, script: Paced, **more: str
) -> AsyncIterator[Site]:
    """Run all of it; the page lies where a web app would be. `more` are the replicas' settings."""
    (folder / "app").mkdir()
    (folder / "app" / "bare").write_text(BARE, "utf-8")
    proxy = {
        "NGINX_REST": f"root {folder}/app; default_type text/html;",
        "GATEWAY_PREFIX": more.get("prefix", ""),
    }
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted(script))
        at = await stack.enter_async_context(front(folder, redis, upstream.url, 2, proxy, **more))
        await add_cookie(context, at.nginx.url, ALICE)
        page = await context.new_page()
        await page.goto(f"{at.nginx.url}/bare")
        yield Site(at, upstream, page)


async def test_ten_eventsources_of_one_page_stream_at_once_over_http2(
    context: BrowserContext, shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held(5)
    async with site(context, shared_redis, tmp_path, script, grace="1.5") as there:
        page = there.page
        urls = [await there.at.ticket(f"Question {number}") for number in range(10)]
        await page.evaluate(MANY, urls)
        await page.wait_for_function("all.every((one) => one.got.length === 5)")
        # Beside ten open streams a call still gets through, the page's protocol is HTTP/2, and a
        # stream that the page closes is closed for its replica although the connection stays.
        stop = "fetch(%r, {method: 'DELETE'}).then((answer) => answer.json())"
        assert await page.evaluate(stop % urls[9]) == {"state": "cancelled"}
        entry = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert await page.evaluate(entry) == "h2"
        await page.evaluate("all[8].es.close()")
        closed_one = next(c for c in there.upstream.calls if b"Question 8" in c.body)
        await asyncio.wait_for(closed_one.left.wait(), 20)
        script.go.set()
        await page.wait_for_function(
            "all.slice(0, 8).every((one) => one.es.readyState === EventSource.CLOSED)"
        )
        seen = await page.evaluate("all.slice(0, 8).map((one) => one.got)")
        assert seen == [await there.events(url) for url in urls[:8]]
        assert {len(each) for each in seen} == {7}
        assert len(there.upstream.calls) == 10


async def test_a_bare_eventsource_outlives_a_restart_of_nginx(
    context: BrowserContext, shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held(5)
    async with site(context, shared_redis, tmp_path, script, grace="9") as there:
        url = await there.watch()
        there.at.nginx.stop()
        await there.page.wait_for_function("es.readyState === EventSource.CONNECTING")
        there.at.nginx.start()
        await there.page.wait_for_function("es.readyState === EventSource.OPEN")
        script.go.set()
        await closed(there.page)
        assert await said(there.page) == await there.events(url)
        assert len(there.upstream.calls) == 1


async def test_an_eventsource_under_a_path_outlives_a_restart_of_nginx_and_stops_at_the_end(
    context: BrowserContext, shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held(5)
    async with site(context, shared_redis, tmp_path, script, grace="9", prefix="/llm") as there:
        page = there.page
        await page.evaluate(
            """async (body) => {
                const headers = {"Content-Type": "application/json"};
                const answer = await fetch("/llm/tickets", {method: "POST", headers, body});
                watch((await answer.json()).stream_url);
            }""",
            json.dumps(ask()),
        )
        await page.wait_for_function("got.length === 5")
        there.at.nginx.stop()
        await page.wait_for_function("es.readyState === EventSource.CONNECTING")
        there.at.nginx.start()
        await page.wait_for_function("es.readyState === EventSource.OPEN")
        script.go.set()
        await closed(page)
        url = (await page.evaluate("es.url")).removeprefix(there.at.nginx.url)
        assert url.startswith("/llm/stream?ticket=")
        assert await said(page) == await there.events(url)
        assert len(await said(page)) == 7
        assert len(there.upstream.calls) == 1


async def test_a_bare_eventsource_outlives_a_while_without_any_replica(
    context: BrowserContext, shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held(5)
    async with site(context, shared_redis, tmp_path, script, grace="9") as there:
        url = await there.watch()
        for number in (0, 1):
            there.at.replicas.signal(number, signal.SIGTERM)
        await told_to_come_back(there)
        assert await there.page.evaluate("states.every((state) => state === 0)")
        script.go.set()  # The run goes on in its replica, whose listener is closed, to its end.
        for each in there.at.replicas.processes:
            assert await asyncio.to_thread(each.wait) == 0
        for number in (0, 1):
            there.at.replicas.replace(number)
        await closed(there.page)
        assert await said(there.page) == await there.events(url)
        assert len(await said(there.page)) == 7
        assert len(there.upstream.calls) == 1


async def test_an_eventsource_that_is_opened_while_no_replica_is_there_gets_its_answer_later(
    context: BrowserContext, shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = Paced(5)
    async with site(context, shared_redis, tmp_path, script) as there:
        url = await there.at.ticket()
        for each in there.at.replicas.processes:
            each.signal(signal.SIGKILL)
            each.wait()
        await there.page.evaluate("(url) => watch(url)", url)
        await told_to_come_back(there)
        for number in (0, 1):
            there.at.replicas.replace(number)
        await closed(there.page)
        assert await said(there.page) == await there.events(url)
        assert len(await said(there.page)) == 7
        assert len(there.upstream.calls) == 1


async def told_to_come_back(there: Site, times: int = 2) -> None:
    """Wait until nginx has answered for the replicas, more than once."""

    def answered() -> bool:
        lines = there.at.nginx.accesses()
        return len([each for each in lines if '/stream HTTP/2.0" 200 25 ' in each]) >= times

    await until(answered, "nginx answers by itself", 20)

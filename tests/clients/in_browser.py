"""Clients of a browser: the pages of tests/pages, all in one tab of one Chromium.

A frame for each: a tab for each would be a process for each.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from playwright.async_api import Error, Frame, Page

from tests.clients.observed import Report, never_stops
from tests.clients.world import Case, Way, World
from tests.support import until
from tests.test_browser import chromium, log_in

CLIENTS = {
    "EventSource": "eventsource.html",
    "EventSource with an end mark": "end-mark.html",
    "event-source-polyfill": "polyfill.html",
    "sse.js": "sse.html",
    "react-native-sse": "react-native.html",
    "gateway.js": "gateway-js.html",
    "fetch, `format=plain`": "plain.html",
    "fetch, `format=raw`": "raw.html",
}
POSTS = ("sse.js",)
# They never ask what follows an event: without ids, or as `/completion` says that there is no more.
NEVER_ASK = ("fetch, `format=plain`", "fetch, `format=raw`", "gateway.js")

# Polled by a timer: frames out of sight paint nothing, and so have no animation frames.
_SAYS = "document.querySelector('#{}').textContent"


@asynccontextmanager
async def tab(there: World) -> AsyncIterator[Page]:
    """Open a tab of alice's, on the gateway's own host."""
    async with chromium() as browser:
        context = await browser.new_context()
        await log_in(context, there.gateway)
        page = await context.new_page()
        page.set_default_timeout(120_000)
        await page.goto(f"{there.gateway.url}/healthz")
        yield page


async def read(tab: Page, name: str, case: Case) -> Report:
    """Show a client's page in a scene, and return what it says once it has settled."""
    frame = await shown(tab, case.page(CLIENTS[name]))
    if case.way.cuts:
        await frame.wait_for_function(_SAYS.format("answer"), polling=100)
        case.way.shown.set()
    await _settled(frame, case.way, name)
    kind, _, what = (await frame.inner_text("#state")).partition(": ")
    text = await frame.text_content("#answer") or ""
    element = await frame.frame_element()
    await element.evaluate("each => each.remove()")  # One that never stops would go on for ever.
    return Report(text, what * (kind == "failure"), what * (kind == "error"))


async def shown(tab: Page, url: str) -> Frame:
    """Return a new frame that has loaded a page."""
    made = await tab.evaluate_handle("document.body.appendChild(document.createElement('iframe'))")
    element = made.as_element()
    assert element
    frame = await element.content_frame()
    assert frame
    await frame.goto(url)
    return frame


async def _settled(frame: Frame, way: Way, name: str) -> None:
    """Return once a page says what became of it, or will never say so."""
    says = frame.wait_for_function(_SAYS.format("state"), polling=100)
    saying = asyncio.ensure_future(says)
    try:
        await until(lambda: saying.done() or never_stops(way), f"{name} settles", seconds=120)
    finally:
        saying.cancel()
        with suppress(asyncio.CancelledError, Error):
            await saying

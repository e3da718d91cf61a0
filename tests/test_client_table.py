"""What clients do that people already have: the table in the docs, and the articles' own pages.

All of them read one gateway, each over a way of its own that is cut once, or ends, or is told of an
error, or has had its end before.
"""

import asyncio
from typing import NamedTuple

import pytest
from playwright.async_api import Frame, Page

from tests.clients import in_browser
from tests.clients.table import Observed, documented, lines, observe
from tests.clients.world import TEXT, World, world
from tests.sdk_clients import asked
from tests.support import until

pytestmark = pytest.mark.timeout(300)  # The first has all of it to wait for.

# The pages that come back by themselves after a cut, and what the others call it.
COME_BACK = ("EventSource with an end mark", "event-source-polyfill", "sse.js")
RAISE = {
    "fetch, `format=plain`": "TypeError",
    "fetch, `format=raw`": "TypeError",
    "react-native-sse": "error",
}


class Outcome(NamedTuple):
    """What was seen of all clients, what it cost, and what the page on a channel shows."""

    clients: Observed
    calls: int
    channel: dict[str, str]


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """One browser, one gateway and one process of Node for all of it."""

    async def observed() -> Outcome:
        async with world() as there, in_browser.tab(there) as tab:
            channel, clients = await asyncio.gather(on_channel(there, tab), observe(there, tab))
            return Outcome(clients, await asked(there.base), channel)

    return asyncio.run(observed())


async def on_channel(there: World, tab: Page) -> dict[str, str]:
    """Return what the Vue page shows of messages that come before and after a cut."""
    way, push = await there.way(), there.gateway.gateway.push
    frame = await in_browser.shown(tab, f"{way.url}/pages/vue.html")
    await _shows(frame, "alive")
    await push("alice", "job", {"id": 7, "name": "export", "percent": 10})
    await push("alice", "news", "one ")
    await _shows(frame, "export: 10 %", "one")
    way.cut()
    await push("alice", "job", {"id": 8, "name": "import", "percent": 1})
    await push("alice", "job", {"id": 7, "name": "export", "percent": 100})
    await push("alice", "news", "two ")
    await push("alice", "news", "three")
    await _shows(frame, "three")
    return {each: await frame.inner_text(each) for each in ("[role=status]", "ol", "ol + p")}


async def _shows(frame: Frame, *words: str) -> None:
    async def shows() -> bool:
        text = await frame.inner_text("#app")
        return all(each in text for each in words)

    await until(shows, f"the page shows {words}", seconds=120)


def test_the_table_in_the_docs_is_what_was_observed(outcome: Outcome) -> None:
    assert len(outcome.clients) >= 14
    told = "run `python -m tests.clients.table --write`"
    assert documented() == lines(outcome.clients), told


def test_no_client_has_an_answer_paid_twice(outcome: Outcome) -> None:
    assert outcome.calls == sum(len(scenes) for scenes in outcome.clients.values())


@pytest.mark.parametrize("name", [*COME_BACK, *RAISE])
def test_a_page_of_the_articles_shows_the_whole_answer_and_stops(
    outcome: Outcome, name: str
) -> None:
    seen = outcome.clients[name]["end"]
    assert (seen.report.text, seen.report.failure, seen.report.error) == (TEXT, "", "")
    assert len(seen.case.way.requests) == 1


@pytest.mark.parametrize("name", COME_BACK)
def test_a_page_that_comes_back_shows_nothing_twice(outcome: Outcome, name: str) -> None:
    seen = outcome.clients[name]["cut"]
    assert (seen.report.text, seen.report.error) == (TEXT, "")
    assert seen.words("cut") == "goes on"


@pytest.mark.parametrize("name", RAISE)
def test_a_page_that_cannot_is_told_that_the_answer_is_not_whole(
    outcome: Outcome, name: str
) -> None:
    report = outcome.clients[name]["cut"].report
    assert report.error == RAISE[name]
    assert report.text
    assert TEXT.startswith(report.text)
    assert report.text != TEXT


def test_a_vue_page_on_a_channel_has_each_named_event_once_and_sees_heartbeats(
    outcome: Outcome,
) -> None:
    jobs = outcome.channel["ol"].split("\n")
    assert [each.strip() for each in jobs] == ["export: 100 %", "import: 1 %"]
    assert outcome.channel["ol + p"] == "one two three"
    assert outcome.channel["[role=status]"] == "alive"

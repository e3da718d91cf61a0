"""Table: what each client does in each scene, in docs/clients.md; `--write` puts it there.

python -m tests.clients.table --write
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from playwright.async_api import Page

from tests.clients import HERE, beside, in_browser, in_python, node_modules
from tests.clients.observed import Report, never_stops, words
from tests.clients.world import SCENES, Case, World, world
from tests.sdk_clients import TOKEN
from tests.sdks import sdk
from tests.support import until

DOCS = HERE.parent.parent / "docs" / "clients.md"

_BEGIN, _END = "<!-- The table of clients begins. -->\n", "<!-- It ends. -->\n"
_SDKS = ("openai (JavaScript)", "anthropic (JavaScript)", "openai (Python)", "anthropic (Python)")
_OF_NODE = ("eventsource 2", "eventsource 3", "eventsource 4", "fetch-event-source", *_SDKS[:2])
_NOTES = {
    "EventSource": "needs a listener for `failure`",
    "EventSource with an end mark": "closes at `[DONE]`, as its page says",
    "sse.js": "POSTs with `Accept`, a key and `autoReconnect`; its page closes at `end`",
    "react-native-sse": "its page closes at `end`; it cuts the spaces around a line",
    "gateway.js": "asks once more, without an id, what a 204 means",
    "fetch, `format=plain`": "splits on `data: `",
    "fetch, `format=raw`": "appends what comes",
    "fetch-event-source": "has to be [told](pages.md#clients-that-fetch) when to stop",
    "curl": 'comes back with `-H "Last-Event-ID: …"`',
    "httpx-sse": "comes back by its caller's hand",
    "sseclient-py": "comes back by its caller's hand",
}


class Seen(NamedTuple):
    """One client in one scene."""

    case: Case
    report: Report

    def words(self, scene: str) -> str:
        """What it does, in few words."""
        return words(scene, self.report, self.case.way)


Observed = dict[str, dict[str, Seen]]


async def observe(there: World, tab: Page) -> Observed:
    """Return what all clients do in all scenes, side by side."""
    for package in in_python.PACKAGES:
        sdk(package)  # Without them there is no table.
    cases = {
        name: {
            scene: await there.case(scene, posts=name in {*_SDKS, *in_browser.POSTS})
            for scene in SCENES
            if scene != "204" or name not in {*_SDKS, *in_browser.NEVER_ASK}
        }
        for name in (*in_browser.CLIENTS, *_OF_NODE, *in_python.CLIENTS)
    }
    cookie = there.gateway.cookie()
    async with _node(cases, cookie) as of_node:

        async def seen(name: str, scene: str, case: Case) -> Seen:
            if name in in_browser.CLIENTS:
                return Seen(case, await in_browser.read(tab, name, case))
            if name in _OF_NODE:
                return Seen(case, await of_node(name, scene))
            report = Report()
            async with asyncio.TaskGroup() as group:
                group.create_task(in_python.CLIENTS[name](case, cookie, report))
                if case.way.cuts:
                    await until(lambda: report.text, f"{name} begins", seconds=120)
                    case.way.shown.set()
            return Seen(case, report)

        async def of(name: str) -> dict[str, Seen]:
            scenes = cases[name]
            every = await asyncio.gather(*(seen(name, *each) for each in scenes.items()))
            return dict(zip(scenes, every, strict=True))

        return dict(zip(cases, await asyncio.gather(*map(of, cases)), strict=True))


@asynccontextmanager
async def _node(cases: dict[str, dict[str, Case]], cookie: dict[str, str]) -> AsyncIterator["_Of"]:
    """Run the clients of Node in one process; yields what returns a report."""
    told = [
        {"client": name, "scene": scene, "url": case.url, "base": case.way.url, "body": case.body}
        for name in _OF_NODE
        for scene, case in cases[name].items()
    ]
    plan = {"cookie": cookie["Cookie"], "token": TOKEN, "cases": told}
    with TemporaryDirectory() as folder:
        script = beside(node_modules(), Path(folder)) / "scenes.mjs"
        process = await asyncio.create_subprocess_exec(
            *("node", script, json.dumps(plan)),
            env={"PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
        )
        of = _Of(cases)
        reading = asyncio.create_task(of.read(process.stdout))
        try:
            yield of
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


class _Of:
    """What the clients of Node have reported."""

    def __init__(self, cases: dict[str, dict[str, Case]]) -> None:
        self._cases = cases
        self._reports: dict[tuple[str, str], Report] = {}

    async def read(self, output: asyncio.StreamReader | None) -> None:
        """Take note of the reports as they come."""
        assert output is not None
        async for line in output:
            name, scene, report = json.loads(line)
            if report is None:
                self._cases[name][scene].way.shown.set()
            else:
                self._reports[name, scene] = Report(**report)

    async def __call__(self, name: str, scene: str) -> Report:
        way, key = self._cases[name][scene].way, (name, scene)
        what = f"{name} settles in {scene}"
        await until(lambda: key in self._reports or never_stops(way), what, seconds=120)
        return self._reports.get(key, Report())


def lines(observed: Observed) -> str:
    """Return the table as Markdown."""
    rows = [["client", "a cut", "the end", "an error of the upstream", "204", ""]]
    for name, scenes in observed.items():
        told = [scenes[each].words(each) if each in scenes else "" for each in SCENES]
        rows.append([name, *told, _NOTES.get(name, "")])
    top, *rest = ["|" + "".join(f" {each} |" if each else " |" for each in row) for row in rows]
    return "\n".join([top, "|---" * len(rows[0]) + "|", *rest, ""])


def documented() -> str:
    """Return the table as it stands in the docs."""
    return DOCS.read_text("utf-8").partition(_BEGIN)[2].partition(_END)[0].strip("\n") + "\n"


def write(table: str) -> None:
    """Put the table into the docs."""
    before, _, rest = DOCS.read_text("utf-8").partition(_BEGIN)
    DOCS.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{rest.partition(_END)[2]}", "utf-8")


async def _main() -> None:
    async with world() as there, in_browser.tab(there) as tab:
        table = lines(await observe(there, tab))
    print(table)
    if "--write" in sys.argv:
        write(table)


if __name__ == "__main__":
    asyncio.run(_main())

"""Ends: `python -m tests.faults.ends`: 1,000 streams end while their receiver is down for a minute.

Three replicas on one Redis, of which one after the other is killed with -9 meanwhile. Exit code 1
unless the end of each stream is heard in the end, under one id.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.pages import Page
from tests.faults.schedule import Answer, Stream, Watch
from tests.faults.story import Finding
from tests.faults.upstream import Upstream
from tests.faults.webhooks import Hooks, judge_webhooks
from tests.faults.world import World

_LEASE = 2.0
_KILL = 6.0  # Seconds between two kills.
_TOGETHER = 40  # Streams at once.


async def play(streams: int, down: float, patience: float) -> list[Finding]:
    """Play it and tell how it went; return what is wrong."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    upstream, hooks = Upstream(), Hooks(fair=True)
    await upstream.start()
    with tempfile.TemporaryDirectory() as folder:
        hook = hooks.keys
        world = World(
            Path(folder), upstream.url, kind="single", lease=_LEASE, proxied=False, hook=hook
        )
        opening = asyncio.create_task(hooks.open(down))
        try:
            await world.start()
            pages = await _ended(world, upstream, streams, opening)
            await world.settle()
            await opening
            return [*await _judged(world, hooks, pages, patience), *world.findings]
        finally:
            opening.cancel()
            await world.stop()
            await upstream.stop()
            await hooks.close()


async def _ended(
    world: World, upstream: Upstream, streams: int, opening: "asyncio.Task[None]"
) -> list[Page]:
    """Play all pages, and kill replicas until all of them are through and the minute is over."""
    answer, gate = Answer(6, 0.05), asyncio.Semaphore(_TOGETHER)
    every = [Page(world, upstream, Stream(n, 0.0, answer, (Watch(),))) for n in range(streams)]

    async def play(page: Page) -> None:
        async with gate:
            await page.play()

    playing = asyncio.gather(*map(play, every))
    while not (playing.done() and opening.done()):
        await asyncio.sleep(_KILL)
        await world.apply("kill", random.random(), 0.5)
    await playing
    return every


async def _judged(
    world: World, hooks: Hooks, pages: Sequence[Page], patience: float
) -> list[Finding]:
    stories, opened = [page.story for page in pages], time.monotonic()
    ended = {story.stream.number for story in stories}
    while hooks.heard < ended and time.monotonic() < opened + patience:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    states = Counter(each.state for each in {each.number: each for each in hooks.told}.values())
    print(f"{len(hooks.heard & ended)} of {len(ended)} ends were heard, {dict(states)};")
    print(f"{len(hooks.told)} messages, {world.played} while the receiver was down;")
    print(f"the last one {time.monotonic() - opened:.0f} s after all was well again")
    missing = [Finding("unheard", each, "it was never told") for each in ended - hooks.heard]
    return [*missing, *judge_webhooks(stories, hooks.told, world.facts)]


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ends", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--down", type=float, default=60.0, help="seconds of the receiver")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds after that")
    given = parser.parse_args()
    findings = asyncio.run(play(given.streams, given.down, given.patience))
    for each in findings:
        print(f"  {each.kind}: ticket {each.ticket}: {each.text}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

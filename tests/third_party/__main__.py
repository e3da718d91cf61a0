"""`python -m tests.third_party [litellm] [transformers]`: servers of others behind a gateway.

Prints a line for each play before each API; exits with 1 on any difference. What a server needs is
installed once, in a virtual environment of its own (2 GB for both); all of it runs on loopback.
"""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from time import monotonic

import pytest

from tests.third_party.litellm_proxy import litellm
from tests.third_party.plays import PLAYS, Play, Scene, once, setting
from tests.third_party.programs import cache
from tests.third_party.server import Server, Way
from tests.third_party.transformers_serve import transformers

Starting = Callable[[Path, Path], AbstractAsyncContextManager[Server]]
SERVERS: dict[str, Starting] = {"litellm": litellm, "transformers": transformers}
LONGEST = 60.0  # Seconds of one play.


async def judged(play: Play, scene: Scene) -> list[str]:
    """Return what is different in one play, whatever goes wrong in it."""
    try:
        async with asyncio.timeout(LONGEST):
            return await play(scene)
    except TimeoutError:
        return [f"not within {LONGEST:g} s"]
    except Exception as error:  # A server of others may answer anything.
        return [_line(error)]


async def perform(name: str, environments: Path) -> bool:
    """Play all before one server; return whether nothing was different."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        async with SERVERS[name](environments, Path(folder)) as server:
            for way in server.ways:
                async for title, seconds, found in performed(server, way):
                    good = good and not found
                    told = "; ".join(found) or "ok"
                    print(f"{name:13} {way!s:23} {title:8} {seconds:5.1f}  {told}", flush=True)
    return good


async def performed(server: Server, way: Way) -> AsyncIterator[tuple[str, float, list[str]]]:
    """Yield of each play before one API its name, its seconds, and what was different."""
    try:
        scene = await setting(server, way)
    except (Exception, pytest.skip.Exception) as error:  # The SDK is missing, or knows better.
        yield "sdk", 0.0, [_line(error)]
        return
    for title, play in PLAYS.items():
        if server.early or play is not once:
            begun = monotonic()
            found = await judged(play, scene)
            yield title, monotonic() - begun, found


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


async def main() -> None:
    """Play before the servers that are named, or before all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SERVERS))
    parser.add_argument("--venv", type=Path, default=cache(), help="folder of the environments")
    given = parser.parse_args()
    if unknown := set(given.names) - set(SERVERS):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    os.nice(5)
    logging.disable(logging.WARNING)  # How each answer failed; the table says whether it should.
    print(f"{'server':13} {'speaks':23} {'play':8} {'s':>5}  differs")
    results = [await perform(name, given.venv) for name in given.names or SERVERS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    asyncio.run(main())

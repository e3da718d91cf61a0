"""Play docs/protocol.md against a running server: `python -m tests.conformance URL --cookie N=V`.

One line a promise; exit code 0 if all are kept, 1 if one is not. It asks for nine completions, two
more with a service token, which somebody may have to pay for: `gateway upstream` costs nothing.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from time import monotonic

import httpx

from tests.conformance import (  # noqa: F401 (each adds its promises)
    answers,
    callers,
    channels,
    composites,
    pages,
    reconnects,
    repeats,
    streams,
    tickets,
    upstreams,
    usage,
    users,
)
from tests.conformance.promise import ALL, Promise, Skip
from tests.conformance.server import Options, Server, client
from tests.conformance.wire import Unkept


async def judged(promise: Promise, server: Server, seconds: float) -> tuple[str, str]:
    """Play one promise; return ok, FAIL or skip, and why."""
    if lacks := promise.lacks(server.options):
        return "skip", f"needs {lacks}"
    if seconds <= 0:
        return "FAIL", "the time for all of it is over"
    try:
        async with asyncio.timeout(seconds):
            await promise.play(server)
    except Skip as why:
        return "skip", str(why)
    except TimeoutError:
        return "FAIL", f"not within {seconds:g} s"
    except Unkept as why:
        return "FAIL", str(why)
    except Exception as error:  # Another's server may answer anything.
        return "FAIL", f"{type(error).__name__}: {error}"
    return "ok", ""


async def play(options: Options, only: str, total: float) -> int:
    """Play what has these words in its name; return the exit code."""
    chosen = [each for each in ALL if only in each.name]
    count = dict.fromkeys(("ok", "FAIL", "skip"), 0)
    over = monotonic() + total
    async with client(options) as http:
        try:
            await http.get(options.url)
        except httpx.HTTPError as error:
            print(f"FAIL {options.url} does not answer: {_line(repr(error))}")
            return 1
        server = Server(options, http)
        for promise in chosen:
            left = min(options.seconds, over - monotonic())
            verdict, why = await judged(promise, server, left)
            count[verdict] += 1
            print(f"{verdict:4} {promise.name}{': ' * bool(why)}{_line(why)}", flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    return 0 if chosen and not count["FAIL"] else 1


def _line(words: str) -> str:
    """Return words for a terminal, which must not take a server's for more than that."""
    words = " ".join(words.split())
    return "".join(each if each.isprintable() else "\ufffd" for each in words)


def _body(path: str) -> dict[str, object]:
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{path} has no JSON object")
    return found


def main() -> int:
    """Read the options and play."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("url", metavar="URL", help="of the server, with its path if it has one")
    parser.add_argument("--cookie", required=True, metavar="NAME=VALUE", help="of a user")
    parser.add_argument("--other-cookie", default="", metavar="NAME=VALUE", help="of another user")
    parser.add_argument("--user", default="", metavar="SUBJECT", help="whom --cookie names")
    parser.add_argument("--service-token", default="", metavar="TOKEN", help="of an app's server")
    parser.add_argument("--origin", default="", help="of a page that the server lists as its own")
    parser.add_argument("--body", type=_body, default={}, metavar="FILE", help="JSON to ask with")
    parser.add_argument(
        "--pretend", default="", metavar="URL", help="of the `gateway upstream` behind the server"
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="play what has these words")
    parser.add_argument("--seconds", type=float, default=60, help="for each promise [60]")
    parser.add_argument("--total", type=float, default=600, help="seconds for all of them [600]")
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    given = vars(parser.parse_args())
    only, total = given.pop("only"), given.pop("total")
    return asyncio.run(play(Options(**given), only, total))


if __name__ == "__main__":
    sys.exit(main())

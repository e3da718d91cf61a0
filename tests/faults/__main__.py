"""The long run: `python -m tests.faults --streams 500 --faults 100 --seed N`.

Two worlds, one after the other: a single Redis with an append-only file, then three with Sentinel.
The faults of replicas and nginx are shared out between them. A third, a Cluster of six, is played
by `--world cluster`. Exit code 1 if anything is wrong.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.harness import Report, new_seed, play
from tests.faults.schedule import (
    CLUSTER_FAULTS,
    NGINX_FAULTS,
    REPLICA_FAULTS,
    SENTINEL_FAULTS,
    Shape,
    Step,
    draw,
)
from tests.nginx import absent


def main() -> int:
    """Run it and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--streams", type=int, default=500, help="streams at least, in all")
    parser.add_argument("--faults", type=int, default=100, help="of every kind, at least")
    parser.add_argument("--seed", type=int, default=new_seed())
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--limit", type=int, help="streams of a user at once; 0: any number")
    parser.add_argument("--world", choices=[*_STEPS, "both"], default="both")
    parser.add_argument("--keep", type=Path, help="folder for the logs, kept")
    given = parser.parse_args()
    if given.limit is None:
        given.limit = _LIMIT * (given.seed % 2)
    print(f"seed {given.seed}, --limit {given.limit}", flush=True)
    report = Report()
    for world in _BOTH if given.world == "both" else [given.world]:
        one = asyncio.run(_one(given, world))
        print(f"\n{world}: {one}", flush=True)
        report += one
    print(f"\nseed {given.seed}: {report}")
    return 1 if report.findings else 0


async def _one(given: argparse.Namespace, world: str) -> Report:
    steps = _STEPS[world](given)
    if given.keep:
        folder = given.keep.resolve() / world
        folder.mkdir(parents=True)
        return await play(steps, folder, world, lease=given.lease, limit=given.limit)
    with tempfile.TemporaryDirectory() as folder:
        return await play(steps, Path(folder), world, lease=given.lease, limit=given.limit)


def _single_steps(given: argparse.Namespace) -> list[Step]:
    """A storm of everything; then a Redis that forgets, again and again, while all owners live."""
    common, streams = _common(given)
    few = given.faults // 4
    storm = common | {"redis_restart": given.faults, "redis_pause": given.faults - few}
    storm |= {"redis_empty": few}
    calm = {"redis_empty": given.faults - few, "redis_pause": few, "pause_short": few}
    first = draw(given.seed, Shape(streams * 2 // 3, storm))
    return first + draw(given.seed, Shape(streams // 3, calm, pause=(0.5, 3.0)), first=500_000)


def _failing_over(given: argparse.Namespace, faults: tuple[str, ...], first: int) -> list[Step]:
    common, streams = _common(given)
    shape = Shape(streams, common | dict.fromkeys(faults, given.faults))
    return draw(given.seed, shape, first=first)


def _common(given: argparse.Namespace) -> tuple[dict[str, int], int]:
    """Return one world's part of the faults that all have, and of the streams."""
    worlds = len(_BOTH) if given.world == "both" else 1
    part = -(-given.faults // worlds)
    kinds = REPLICA_FAULTS + (() if absent() else NGINX_FAULTS)
    # A stream's own fault may come too late, as another one has ended it: hence more than asked.
    return dict.fromkeys(kinds, part), max(-(-given.streams // worlds), part * 21)


_LIMIT = 3  # Of the worlds that have one.
_BOTH = ("single", "sentinel")
_STEPS: dict[str, Callable[[argparse.Namespace], list[Step]]] = {
    "single": _single_steps,
    "sentinel": partial(_failing_over, faults=SENTINEL_FAULTS, first=1_000_000),
    "cluster": partial(_failing_over, faults=CLUSTER_FAULTS, first=2_000_000),
}


if __name__ == "__main__":
    sys.exit(main())

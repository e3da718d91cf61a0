"""`python -m tests.simulation --schedules 100000 [--seed N] [--jobs 2]`, and `--replay SEED`."""

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.schedule import Schedule, from_json, make, shrink
from tests.simulation.world import simulate

Verdict = tuple[int, list[str]]

_CHUNK = 100


def verdicts(seeds: range, mutant: str = "", *, first: bool = False) -> list[Verdict]:
    """Run seeds; return those that broke a promise, or the `first` of them, and what they broke."""
    found: list[Verdict] = []
    gc.collect()
    gc.freeze()  # What is here stays; so the circles of each world are soon found.
    with mutated(mutant):
        for seed in seeds:
            broken = simulate(make(seed))
            gc.collect()
            if broken:
                found.append((seed, broken))
            if found and first:
                break
    return found


def chunks(seed: int, schedules: int) -> Iterator[range]:
    """Cut the seeds into pieces for several processes."""
    for start in range(seed, seed + schedules, _CHUNK):
        yield range(start, min(start + _CHUNK, seed + schedules))


def promise_of(broken: list[str]) -> str:
    """Return which promise was broken first."""
    return broken[0].partition(":")[0]


def smallest(schedule: Schedule, mutant: str = "") -> Schedule:
    """Shrink a failing schedule: it still breaks the same promise."""
    with mutated(mutant):
        broken = simulate(schedule)
        if not broken:
            return schedule
        promise = promise_of(broken)

        def fails(candidate: Schedule) -> bool:
            return any(each.startswith(promise) for each in simulate(candidate))

        return shrink(schedule, fails)


def told(schedule: Schedule, mutant: str = "") -> list[str]:
    """Run one schedule and print its story."""
    print(json.dumps(asdict(schedule)))
    with mutated(mutant):
        broken = simulate(schedule, print)
    print("\n".join(["", *broken]) if broken else "all promises held")
    return broken


def until_the_first(options: argparse.Namespace) -> int:
    """Run until one fails, and do no more."""
    seeds = range(options.seed, options.seed + options.schedules)
    found = verdicts(seeds, options.mutant, first=True)
    for seed, broken in found:
        print(f"seed {seed}: {broken[0]}")
    return 1 if found else 0


def long_run(options: argparse.Namespace) -> int:
    """Run many; print every failing seed and, of the first, the smallest schedule."""
    begun, done, kinds = time.monotonic(), 0, Counter[str]()
    first: int | None = None
    work = partial(verdicts, mutant=options.mutant)
    with ProcessPoolExecutor(options.jobs) as pool:
        for failures in pool.map(work, chunks(options.seed, options.schedules)):
            done += _CHUNK
            for seed, broken in failures:
                first = seed if first is None else first
                kinds[promise_of(broken)] += 1
                print(f"seed {seed}: {broken[0]}", flush=True)
            if done % (50 * _CHUNK) == 0:
                rate = done / (time.monotonic() - begun)
                print(f"{done} schedules, {rate:.0f} a second, {dict(kinds)}", flush=True)
    seconds = time.monotonic() - begun
    print(f"{options.schedules} schedules in {seconds:.0f} s, broken: {dict(kinds) or 'none'}")
    if first is None:
        return 0
    print(f"\nseed {first}, shrunk:")
    told(smallest(make(first), options.mutant), options.mutant)
    return 1


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell the story of one")
    parser.add_argument("--file", type=Path, help="tell the story of a schedule kept as JSON")
    parser.add_argument("--shrink", action="store_true", help="make what is replayed smaller first")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    parser.add_argument("--mutant", choices=["", *MUTANTS], default="", help="break the code")
    options = parser.parse_args()
    if options.first:
        return until_the_first(options)
    if options.replay is None and options.file is None:
        return long_run(options)
    schedule = (
        make(options.replay) if options.file is None else from_json(options.file.read_text("utf-8"))
    )
    if options.shrink:
        schedule = smallest(schedule, options.mutant)
    return 1 if told(schedule, options.mutant) else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # The order of sets is a part of the schedule.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.exit(main())

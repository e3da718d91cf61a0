"""What a number of streams needs, from measured unit costs: `python -m benchmarks.capacity`.

Reads the results of `python -m benchmarks` and prints a table. Nothing here is measured at these
sizes: it is arithmetic, and each assumption is an option.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import HOME

SIZES = (1_000, 10_000, 100_000, 1_000_000)
GIB = 1 << 30
UNPACKED = 20  # seconds after its end, two leases


class Costs(NamedTuple):
    """Medians of one run, of the gateway with one process."""

    events: float  # a second, on one core
    idle_kb: float  # of the process, a stream
    tickets: float  # a second
    redis_us: float  # of Redis's core, an event
    stored_event: float  # bytes of Redis's memory
    stored_stream: float

    @classmethod
    def read(cls, path: Path) -> Costs:
        found = json.loads(path.read_text())["medians"]["gateway"]
        return cls(
            found["max_rate"],
            found["idle_kb"],
            found["tickets_rate"],
            found["redis_us"],
            found["stored_event"],
            found["stored_stream"],
        )


class Load(NamedTuple):
    """What is asked: streams at once, events a second of each, events of a whole one."""

    streams: int
    rate: float
    length: int
    kept: float  # seconds a log is kept after its end
    packed: float  # bytes of Redis's memory for one that is packed
    share: float  # of a core that may be used, of Redis as of a replica


class Need(NamedTuple):
    """What that takes."""

    streams: int
    events: float
    replicas: int
    memory_gib: float  # of all replicas
    redis_gib: float
    shards: int
    first: str


def need(costs: Costs, load: Load) -> Need:
    """Return the replicas, shards and memory, and which bound is the tightest."""
    events = load.streams * load.rate
    opened = events / load.length  # streams a second, as each that ends is followed by another
    replicas = {
        "a replica's core, by events": events / (costs.events * load.share),
        "a replica's core, by tickets": opened / (costs.tickets * load.share),
    }
    unpacked = min(UNPACKED, load.kept)
    logs = load.streams + opened * unpacked
    redis_bytes = logs * (costs.stored_stream + load.length * costs.stored_event)
    redis_bytes += opened * (load.kept - unpacked) * load.packed
    shards = {
        "Redis's core": events * costs.redis_us / 1e6 / load.share,
        "Redis's memory (8 GiB a shard)": redis_bytes / GIB / 8,
    }
    first = max(replicas, key=lambda name: replicas[name])
    last = max(shards, key=lambda name: shards[name])
    return Need(
        load.streams,
        events,
        max(1, math.ceil(sum(replicas.values()))),
        load.streams * costs.idle_kb * 1024 / GIB,
        redis_bytes / GIB,
        max(1, math.ceil(max(shards.values()))),
        f"{first}; {last}",
    )


def table(needs: Sequence[Need]) -> str:
    """Markdown."""
    lines = [
        "| streams at once | events/s | replicas (1 core) | their GiB | Redis GiB | Redis shards "
        "| what is full first |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in needs:
        lines.append(
            f"| {each.streams:,} | {each.events:,.0f} | {each.replicas:,} | {each.memory_gib:.1f} "
            f"| {each.redis_gib:.1f} | {each.shards:,} | {each.first} |"
        )
    return "\n".join(lines)


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    cli.add_argument("--results", type=Path, default=HOME / "results" / "results.json")
    cli.add_argument("--streams", type=int, nargs="*", default=SIZES, help="at once")
    cli.add_argument("--rate", type=float, default=30, help="events a second of one stream (30)")
    cli.add_argument("--length", type=int, default=600, help="events of a whole stream (600)")
    cli.add_argument("--kept", type=float, default=600, help="seconds a log is kept (600)")
    cli.add_argument("--packed", type=float, default=17_500, help="bytes of a packed log (17500)")
    cli.add_argument("--share", type=float, default=0.6, help="of a core to be used (0.6)")
    args = cli.parse_args()
    costs = Costs.read(args.results)
    more = (args.rate, args.length, args.kept, args.packed, args.share)
    loads = [Load(each, *more) for each in args.streams]
    inputs = ", ".join(f"{name} {value:,.1f}" for name, value in costs._asdict().items())
    print(inputs, table([need(costs, load) for load in loads]), sep="\n\n")


if __name__ == "__main__":
    main()

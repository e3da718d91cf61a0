"""Many streams at once on one gateway process with a real Redis: `python -m benchmarks.many`.

Opens them evenly over some seconds, all of them open at the end of that, and exits 1 unless
every one ends whole and in order, and all connections were made in that time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.load import Plan, Result, drive, run
from benchmarks.peers import bench, start_gateway
from benchmarks.process import Absent

EVENTS = 5
LATE = 1.1  # times the seconds asked for


def plan(streams: int, seconds: float) -> Plan:
    """The first stream still runs when the last one is opened."""
    interval = int(1000 * (seconds + 1) / (EVENTS - 1))
    return Plan(streams, EVENTS, interval, ramp=seconds, window=0.2, grace=20)


def on_own_gateway(wanted: Plan) -> Result:
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as shared:
        running = start_gateway(shared)
        try:
            return run(drive(running.target, wanted, None))[0]
        finally:
            running.stop()


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    cli.add_argument("--streams", type=int, default=2000)
    cli.add_argument("--seconds", type=float, default=4.0)
    args = cli.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files < 2 * args.streams + 200:
        sys.exit(f"{args.streams} streams need {2 * args.streams + 200} open files, not {files}")
    try:
        result = on_own_gateway(plan(args.streams, args.seconds))
    except Absent as reason:
        sys.exit(str(reason))
    print(
        f"{result.whole} of {result.streams} streams whole, opened in {result.open_seconds:.1f} s, "
        f"lost {result.lost}, repeated {result.repeated}, "
        f"first event p50 {result.ttft_p50_ms:.0f} ms p99 {result.ttft_p99_ms:.0f} ms"
        + (f", {result.reasons}" if result.reasons else "")
    )
    in_time = result.open_seconds <= args.seconds * LATE
    sys.exit(0 if result.ok and in_time else 1)


if __name__ == "__main__":
    main()

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
from benchmarks.peers import PYTHON, bench, start_gateway
from benchmarks.process import Absent

EVENTS = 5
LATE = 1.1  # times the seconds asked for


def plan(streams: int, seconds: float) -> Plan:
    """The first stream still runs when the last one is opened."""
    interval = int(1000 * (seconds + 1) / (EVENTS - 1))
    return Plan(streams, EVENTS, interval, ramp=seconds, window=0.2, grace=20)


LIMITS = """\
[limits]
posts_per_minute = 10000
streams = 1000000
tokens_per_day = 1000000000000
cost_per_day = 1000000.0
"""


def on_own_gateway(wanted: Plan, tools: Path, limits: str) -> tuple[Result, float, float]:
    """Return what the client saw, and the microseconds of CPU that a stream cost us and Redis."""
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder)) as shared:
        config = Path(folder) / "gateway.toml"
        config.write_text(limits)
        running = start_gateway(shared, tools=tools, config=str(config) if limits else "")
        children = (running.child, shared.redis)
        try:
            before = [each.cpu() for each in children]
            result = run(drive(running.target, wanted, None))[0]
            spent = [each.cpu() - was for each, was in zip(children, before, strict=True)]
        finally:
            running.stop()
    ours, of_redis = (1e6 * each / wanted.streams for each in spent)
    return result, ours, of_redis


def show(name: str, result: Result, ours: float, of_redis: float) -> None:
    print(
        f"{name}: {result.whole} of {result.streams} streams whole, "
        f"opened in {result.open_seconds:.1f} s, lost {result.lost}, repeated {result.repeated}, "
        f"first event p50 {result.ttft_p50_ms:.0f} ms p99 {result.ttft_p99_ms:.0f} ms; "
        f"CPU of a whole stream {ours:.0f} us, and {of_redis:.0f} us of Redis"
        + (f", {result.reasons}" if result.reasons else ""),
        flush=True,
    )


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    cli.add_argument("--streams", type=int, default=2000)
    cli.add_argument("--seconds", type=float, default=4.0)
    cli.add_argument("--rounds", type=int, default=1)
    cli.add_argument("--before", type=Path, help="a checkout with a .venv, measured beside")
    cli.add_argument("--limits", action="store_true", help="measured with all limits set beside")
    args = cli.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files < 2 * args.streams + 200:
        sys.exit(f"{args.streams} streams need {2 * args.streams + 200} open files, not {files}")
    ways = {"now": (PYTHON, "")}
    if args.before:
        ways = {"before": (args.before / ".venv" / "bin", ""), **ways}
    if args.limits:
        ways["now, with limits"] = (PYTHON, LIMITS)
    sound = True
    for _ in range(args.rounds):
        for name, (tools, limits) in ways.items():
            try:
                seen = on_own_gateway(plan(args.streams, args.seconds), tools, limits)
            except Absent as reason:
                sys.exit(str(reason))
            show(name, *seen)
            sound = sound and seen[0].ok and seen[0].open_seconds <= args.seconds * LATE
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()

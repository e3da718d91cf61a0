"""Where a core's time goes: `python -m benchmarks.profile`, with Linux's `perf` (linux-perf).

Drives the gateway, and nginx for comparison, at one load and prints each library's share of their
CPU time. Sampling by perf does not stop the process, as profilers that read its memory do: those
show system calls many times as dear as they are.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks.measures import Effort, Subject, warm_up
from benchmarks.peers import PEERS, Bench, bench
from benchmarks.process import Absent

SECONDS = 4
NAMES = {"[kernel.kallsyms]": "kernel", "[kernel]": "kernel"}
SHARE = re.compile(r"^\s*([\d.]+)%\s+(\S+)\s*$", re.M)


def profile(shared: Bench, name: str, streams: int, folder: Path) -> dict[str, float]:
    """Return the shares of a server's CPU time by library, in percent; raises Absent."""
    running = PEERS[name].start(shared)
    subject = Subject(shared, PEERS[name], running, Effort.quick())
    try:
        warm_up(subject)
        plan = subject.effort.paced(streams, windows=SECONDS + 2)
        pids = ",".join(map(str, running.child.pids()))
        out = folder / f"{name}.data"
        command = ["perf", "record", "-F", "999", "-p", pids, "-o", str(out)]
        timer = threading.Timer(
            plan.ramp + plan.settle,
            lambda: subprocess.run([*command, "--", "sleep", str(SECONDS)], capture_output=True),
        )
        timer.start()
        result, grown = subject.drive(plan, subject.probe)
        timer.join()
        cpu = grown["server"] * 1e6 / max(1, result.window_events)
        print(f"{PEERS[name].label}: {result.rate:,.0f} events/s, {cpu:.1f} us of CPU for each")
        report = ["perf", "report", "-i", str(out), "--sort", "dso", "--stdio"]
        text = subprocess.run(report, capture_output=True, text=True, check=True).stdout
        return {NAMES.get(dso, dso): float(share) for share, dso in SHARE.findall(text)}
    finally:
        running.stop()


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    cli.add_argument("--streams", type=int, default=200, help="of one event per 20 ms (200)")
    cli.add_argument("--peers", default="nginx,gateway")
    args = cli.parse_args()
    if shutil.which("perf") is None:
        sys.exit("perf is missing: install linux-perf")
    with tempfile.TemporaryDirectory() as name, bench(Path(name), install=False) as shared:
        for peer in args.peers.split(","):
            try:
                shares = profile(shared, peer, args.streams, Path(name))
            except Absent as reason:
                sys.exit(f"{peer}: {reason}")
            for dso, share in sorted(shares.items(), key=lambda each: -each[1])[:6]:
                print(f"  {share:5.1f} %  {dso}")


if __name__ == "__main__":
    main()

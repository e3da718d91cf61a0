"""The whole comparison in one command: `python -m benchmarks [--quick]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks import report
from benchmarks.measures import Effort, measure
from benchmarks.peers import HOME, PEERS, Bench, bench, other_version
from benchmarks.process import Absent

NOT_QUICK = ("direct", "gateway-2")
CARRIED = ("max_streams",)  # where the next round's search for the highest rate begins


def arguments() -> argparse.Namespace:
    cli = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    cli.add_argument("--quick", action="store_true", help="one short round, about five minutes")
    cli.add_argument("--rounds", type=int, help="of which medians are taken (3; quick: 1)")
    cli.add_argument("--peers", default="", help=f"comma list of {', '.join(PEERS)}")
    cli.add_argument("--before", type=Path, help="a checkout with a .venv, measured beside")
    cli.add_argument("--out", type=Path, default=HOME / "results")
    cli.add_argument("--no-install", action="store_true", help="leave out peers not installed yet")
    args = cli.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    usual = [name for name in PEERS if not args.quick or name not in NOT_QUICK]
    args.peers = args.peers.split(",") if args.peers else usual
    if args.before:
        PEERS["before"] = other_version(args.before)
        args.peers.insert(0, "before")
    if unknown := set(args.peers) - set(PEERS):
        cli.error(f"no such peer: {', '.join(sorted(unknown))}")
    return args


class Comparison:
    """Rounds of all peers, interleaved so that a disturbance falls on all of them."""

    def __init__(self, effort: Effort, peers: list[str]) -> None:
        self.effort = effort
        self.peers = peers
        self.rounds: report.Rounds = {}
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def round(self, bench: Bench) -> None:
        for name in self.peers:
            if name not in self.absent:
                self.one(bench, name)

    def one(self, bench: Bench, name: str) -> None:
        known = self.rounds.get(name, [{}])[-1]
        began = time.monotonic()
        try:
            figures, faults = measure(
                bench, PEERS[name], self.effort, {k: known[k] for k in CARRIED if k in known}
            )
            self.versions[name] = PEERS[name].version()
        except Absent as reason:
            self.absent[name] = str(reason)
            print(f"{name}: absent: {reason}", file=sys.stderr, flush=True)
            return
        self.rounds.setdefault(name, []).append(finished(figures, faults))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def finished(figures: dict[str, float], faults: Counter[str]) -> dict[str, float]:
    whole = figures["open_whole"] / figures["open_streams"]
    return figures | {"faults": faults["lost"] + faults["repeated"], "open_share": whole}


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    comparison = Comparison(Effort.quick() if args.quick else Effort.full(), args.peers)
    with bench(HOME / "work", install=not args.no_install) as shared:
        for _ in range(args.rounds):
            comparison.round(shared)
            made = report.document(
                comparison.rounds, comparison.versions, comparison.absent, bool(args.quick)
            )
            report.write(made, args.out)  # What was measured stays, should the next one be cut.
    print(report.table(made), report.more(made), sep="\n\n")


if __name__ == "__main__":
    main()

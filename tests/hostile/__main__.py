"""`python -m tests.hostile [NAME …] [--list]`: play the attacks and print what others noticed."""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.hostile.attacks import CALLERS, UPSTREAMS, Attack
from tests.hostile.scene import Figures, scene

GAP = 0.5  # Seconds that a stranger's stream may stand still.
GROWTH = 150.0  # MB that the process may grow by.


async def play(attack: Attack) -> tuple[Figures, str]:
    """Play one attack in a scene of its own; return the figures and what it was told."""
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as played, played.watched() as figures:
            try:
                told = await attack(played)
            except AssertionError as error:
                return figures, f"FAULT: {error}"
    return figures, told


def main() -> None:
    """Play what was named, or all; exit with 1 where a bound was passed."""
    attacks = {each.__name__: each for each in (*CALLERS, *UPSTREAMS)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(attacks))
    given = parser.parse_args()
    if unknown := set(given.names) - set(attacks):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    os.nice(10)  # The attacker must not take the stranger's time.
    passed = True
    print(f"{'attack':22}{'gap s':>7}{'process MB':>12}{'redis MB':>10}  was told")
    for name in given.names or attacks:
        figures, told = asyncio.run(play(attacks[name]))
        good = figures.gap <= GAP and figures.process < GROWTH and not told.startswith("FAULT")
        passed = passed and good
        row = f"{name:22}{figures.gap:>7.2f}{figures.process:>12.0f}{figures.redis:>10.0f}  {told}"
        print(row + ("" if good else "  <-- BAD"), flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

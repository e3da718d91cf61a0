"""Each attack, played once: others hardly notice. `python -m tests.hostile` prints the figures."""

import pytest

from tests.hostile.__main__ import GROWTH, play
from tests.hostile.attacks import CALLERS, UPSTREAMS, Attack

GAP = 4.5  # Seconds: other tests run at the same time. What froze the loop did so for longer.


@pytest.mark.timeout(180)
@pytest.mark.parametrize("attack", [*CALLERS, *UPSTREAMS], ids=lambda attack: attack.__name__)
async def test_a_stranger_and_the_process_hardly_notice(attack: Attack) -> None:
    figures, told = await play(attack)
    assert not told.startswith("FAULT"), told
    assert figures.gap < GAP
    assert figures.process < GROWTH

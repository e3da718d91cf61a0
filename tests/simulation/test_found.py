"""Schedules that broke a promise once, each the smallest that did; they hold now."""

from pathlib import Path

import pytest

from tests.simulation.schedule import from_json
from tests.simulation.world import simulate

FOUND = sorted((Path(__file__).parent / "found").glob("*.json"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_broken_once_holds(path: Path) -> None:
    assert simulate(from_json(path.read_text("utf-8"))) == []

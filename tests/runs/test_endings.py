"""The states of a stream: the table, and that who moves a stream obeys it."""

import re
from pathlib import Path

import pytest

import gateway
from gateway.runs.endings import FINAL, MOVES, Ending, State, moved
from gateway.runs.intake import Intake
from gateway.runs.run import Run
from tests.support import running, scripted, whole

SCRIPTS = Path(gateway.__file__).parent / "store" / "lua"


def test_every_state_is_in_the_table_and_the_last_ones_go_nowhere() -> None:
    states = {"cached", "starting", "streaming"}
    ends = {"done", "cancelled", "truncated", "stalled", "failed", "interrupted", "expired"}
    assert ends == FINAL
    assert set(MOVES) == states | FINAL
    assert all(MOVES[state] == frozenset() for state in FINAL)
    assert all(MOVES[state] <= set(MOVES) for state in states)


def test_every_end_can_be_reached_and_done_only_by_a_stream() -> None:
    reached = {after for moves in MOVES.values() for after in moves}
    assert reached == set(MOVES) - {"cached"}
    assert [state for state, moves in MOVES.items() if "done" in moves] == ["streaming"]
    assert [state for state, moves in MOVES.items() if "expired" in moves] == ["cached"]


@pytest.mark.parametrize("before", MOVES)
@pytest.mark.parametrize("after", MOVES)
def test_a_stream_moves_as_the_table_says(before: State, after: State) -> None:
    if after in MOVES[before]:
        assert moved(before, after) == after
    else:
        with pytest.raises(ValueError, match=f"from {before} to {after}"):
            moved(before, after)


async def test_a_run_that_has_no_event_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Intake, "_keep", lambda run, events: None)
    monkeypatch.setattr(Run, "_outcome", lambda run, error: Ending("done"))
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as gate:
        assert (await gate.read(await gate.ticket())).end["state"] == "interrupted"


def test_the_scripts_move_as_the_table_says() -> None:
    stored = re.compile(r"'HSET', KEYS\[1\], 'state', ([^,]+),")
    found = {path.stem: stored.findall(path.read_text("utf-8")) for path in SCRIPTS.glob("*.lua")}
    assert {name: states for name, states in found.items() if states} == {
        "create": ["'cached'"],
        "claim": ["'starting'"],
        "hold": ["'starting'"],  # Of its owner's own, written again.
        "cancel": ["'cancelled'"],
        "seal": ["state"],  # That which its caller was allowed, or that of a cancel.
    }

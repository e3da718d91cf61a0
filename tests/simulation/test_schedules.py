"""A short run of the simulation, and proof that its oracle bites; the long one is a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS

HOME = Path(__file__).parents[2]

# Where in the seeds each way of breaking the code begins to show.
SHOWS = {
    "a_message_is_stored_again": 0,
    "a_slot_is_kept": 0,
    "a_stream_is_booked_twice": 10,
    "an_end_is_noted_after_its_seal": 1190,
    "another_server_goes_on_with_the_ids": 0,
    "appends_make_the_log": 10,
    "asks_again_after_a_cut": 0,
    "cancel_is_overruled": 150,
    "connection_is_not_looked_at": 400,
    "doubt_is_ignored": 20,
    "every_end_is_done": 0,
    "kept_answers_are_lost": 0,
    "late_seal": 650,
    "logs_are_packed_before_their_end": 0,
    "nil_is_success": 0,
    "nobody_books_what_a_dead_replica_ran": 10,
    "nobody_is_told_to_stop": 200,
    "nobody_takes_over": 10,
    "nobody_tells_what_a_dead_replica_ran": 0,
    "one_try_is_enough": 0,
    "packs_lack_an_entry": 0,
    "resumed_at_the_entry": 60,
    "shown_before_stored": 0,
    "slots_are_not_looked_at": 0,
    "slots_are_not_prolonged": 550,
    "some_places_are_forgotten": 1000,
    "stale_owner_asks": 210,
    "the_rest_begins_anew": 0,
    "what_was_trimmed_is_not_missed": 140,
    "what_is_written_again_is_not_booked": 0,
}


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, whose sets are in the same order every time."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=HOME,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(180)
def test_no_schedule_breaks_a_promise() -> None:
    run = simulation("--schedules", "100", "--seed", "7000")
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_seed_replays_to_the_letter() -> None:
    first, second = (simulation("--replay", "10891") for _ in range(2))
    assert first.stdout == second.stdout
    assert "upstream call 1" in first.stdout
    assert first.returncode == 0, first.stderr


@pytest.mark.parametrize("mutant", SHOWS)
def test_the_oracle_finds_what_is_broken_on_purpose(mutant: str) -> None:
    assert mutant in MUTANTS
    run = simulation(
        "--first", "--schedules", "60", "--seed", str(SHOWS[mutant]), "--mutant", mutant
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "seed " in run.stdout

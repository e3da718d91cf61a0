"""A short run of the harness; the long one is `python -m tests.faults`.

Every run has a seed of its own, which a failure names; GATEWAY_FAULTS_SEED plays it again.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.channels import USERS as CHANNEL_USERS
from tests.faults.harness import new_seed, play
from tests.faults.kept import Kept
from tests.faults.oracle import natural_end
from tests.faults.plays import Call, unacknowledged
from tests.faults.schedule import (
    CLUSTER_FAULTS,
    REDIS_FAULTS,
    REPLICA_FAULTS,
    UPSTREAM_FAULTS,
    USERS,
    VIEWER_FAULTS,
    Answer,
    Shape,
    draw,
)
from tests.nginx import absent
from tests.support import REQUIRED, missing, redis_binary

SHAPE = Shape(
    streams=40,
    faults=dict.fromkeys((*REPLICA_FAULTS, *REDIS_FAULTS, "reload"), 2),
    life=(1.0, 5.0),
    pause=(0.2, 0.9),
    share=0.07,
)
OF_A_CLUSTER = replace(SHAPE, faults=dict.fromkeys((*REPLICA_FAULTS, *CLUSTER_FAULTS, "reload"), 2))


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("kind", "shape"), [("single", SHAPE), ("cluster", OF_A_CLUSTER)], ids=["single", "cluster"]
)
async def test_no_promise_breaks_whatever_fails(tmp_path: Path, kind: str, shape: Shape) -> None:
    if redis_binary() is None:
        missing("a Redis server")
    if REQUIRED and absent():
        missing(absent())  # Elsewhere it plays without.
    seed = int(os.environ.get("GATEWAY_FAULTS_SEED") or new_seed())
    limit = 3 * (seed % 2)
    report = await play(draw(seed, shape), tmp_path, kind, limit=limit)
    print(f"GATEWAY_FAULTS_SEED={seed}\n{report}")
    assert report.findings == [], f"GATEWAY_FAULTS_SEED={seed}\n{report}"
    assert report.streams == shape.streams + USERS * limit * 2
    assert report.calls > shape.streams / 2
    assert report.states["done"] > 0
    assert report.messages > 2 * len(CHANNEL_USERS)
    assert all(report.faults[each] == 2 for each in shape.faults if each != "reload")


def test_a_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert draw(5, SHAPE) == draw(5, SHAPE)
    assert draw(5, SHAPE) != draw(6, SHAPE)


def test_a_schedule_has_every_fault_as_often_as_asked() -> None:
    steps = draw(1, Shape(300, dict.fromkeys(REPLICA_FAULTS, 30)))
    streams = [stream for step in steps for stream in step.streams]
    assert [stream.number for stream in streams] == list(range(300))
    for kind in REPLICA_FAULTS:
        assert sum(step.fault is not None and step.fault.kind == kind for step in steps) == 30
    for kind in UPSTREAM_FAULTS:
        assert sum(stream.answer.fault == kind for stream in streams) >= 25
    for kind in VIEWER_FAULTS:
        assert sum(stream.fault == kind for stream in streams) >= 25


def test_an_answer_that_can_be_asked_for_again_tells_its_failure_however_early() -> None:
    kept = Kept(Call(1, 0, "", 0.0), Answer(5, 0.1, fault="garbage", at=0, variant="error"))
    assert [kept.event(number)[0] for number in (0, kept.last)] == [b"response.created", b"error"]


def test_a_caller_that_leaves_while_its_answer_is_sent_is_a_broken_connection() -> None:
    with socket.socket() as sock:
        pass
    with pytest.raises(ConnectionError):
        unacknowledged(sock)


def test_every_end_of_a_call_that_is_no_leaving_has_a_state() -> None:
    for outcome in ("whole", "cut", "stalled", "refused", "not_a_stream", "error"):
        assert natural_end(Call(1, 0, "", 0.0, outcome=outcome))
    assert not natural_end(Call(1, 0, "", 0.0, outcome="left"))
    assert natural_end(Call(1, 0, "", 0.0, outcome="left", finished=True)) == "done"

"""Who is dead is decided from what was read and when, with no Redis in sight."""

import pytest

from gateway.membership.failure_detector import FailureDetector, deaths

LEASE = 9.0


def detector(*answers: tuple[float, float, bytes], lease: float = LEASE) -> FailureDetector:
    """Return one that was told of replica b by these renewals: begun, answered, its counter."""
    made = FailureDetector(lease)
    for answer in answers:
        renewed(made, *answer)
    return made


def renewed(of: FailureDetector, begun: float, now: float, count: bytes) -> set[str]:
    """Tell of a renewal; return whom it suspects of b and c, which is not there."""
    of.begin(begun)
    of.answered(begun, now, {"b": count} if count else {})
    return of.suspects(["b", "c"])


def test_who_stands_still_for_a_lease_is_suspected_and_not_before() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"), (6, 6, b"1"))
    assert renewed(of, 8.9, 8.9, b"1") == set()
    assert renewed(of, 9, 9, b"1") == {"b", "c"}


def test_one_beat_starts_the_count_anew() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"), (6, 6, b"2"))
    assert renewed(of, 9, 9, b"2") == {"c"}
    assert renewed(of, 12, 12, b"2") == {"c"}
    assert "b" in renewed(of, 15, 15, b"2")


def test_a_counter_that_is_gone_is_another_one() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"), (6, 6, b""))
    assert "b" not in renewed(of, 9, 9, b"")
    assert "b" not in renewed(of, 12, 12, b"")
    assert "b" in renewed(of, 15, 15, b"")


def test_a_slow_answer_makes_a_death_be_seen_later_never_earlier() -> None:
    of = detector((0, 2, b"1"), (3, 5, b"1"), (6, 8, b"1"))
    assert renewed(of, 9, 11, b"1") == set()
    assert renewed(of, 10.9, 12, b"1") == set()
    assert "b" in renewed(of, 11, 13, b"1")


def test_who_did_not_look_for_two_thirds_of_a_lease_counts_anew() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"))
    assert renewed(of, 9.1, 9.1, b"1") == set()
    assert renewed(of, 15, 15, b"1") == set()
    assert "b" in renewed(of, 18.1, 18.1, b"1")


def test_a_failed_renewal_starts_the_count_anew() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"), (6, 6, b"1"))
    of.failed()
    assert of.count_of("b") is None
    assert renewed(of, 9, 9, b"1") == set()


def test_a_counter_may_be_evicted_by_once_it_stands_still_for_a_lease() -> None:
    of = detector((0, 0, b"1"), (3, 3, b"1"), (6, 6, b"1"))
    assert of.count_of("b") is None
    renewed(of, 9, 9, b"1")
    assert (of.count_of("b"), of.count_of("c"), of.count_of("d")) == (b"1", b"", None)
    of.forget("b")
    assert of.count_of("b") is None
    assert renewed(of, 12, 12, b"1") == {"c"}


def test_the_lease_ends_long_before_others_can_read_a_death() -> None:
    of = FailureDetector(10)
    assert not of.lease_valid(0)
    of.answered(1, 2, {})
    assert of.lease_valid(6.9)
    assert not of.lease_valid(7)


def test_who_was_late_since_a_moment_has_no_right_by_it() -> None:
    of = FailureDetector(10)
    of.answered(1, 2, {})
    assert not of.lease_held_since(1.9, 3)
    assert of.lease_held_since(2, 3)
    of.answered(4, 5, {})
    assert of.lease_held_since(2, 9)
    assert not of.lease_held_since(2, 10)
    of.answered(10, 11, {})
    assert not of.lease_held_since(2, 11)
    assert of.lease_held_since(11, 12)


@pytest.mark.parametrize(("still", "heard", "dead"), [(1, 3, []), (2, 3, ["b"]), (2, 2, ["b"])])
def test_a_quorum_must_tell_of_a_death(still: int, heard: int, dead: list[str]) -> None:
    """Of all copies: those that were not heard tell of nothing."""
    times = (0.0, 3.0, 6.0, 9.0)
    told = [
        detector(*((t, t, b"1" if number < still else str(t).encode()) for t in times))
        for number in range(heard)
    ]
    assert deaths(told, ["b"], 2) == dead


def test_a_copy_that_stands_alone_is_no_quorum() -> None:
    assert deaths([detector(*((t, t, b"1") for t in (0, 3, 6, 9)))], ["b"], 2) == []

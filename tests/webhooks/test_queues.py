"""Who is told when: in order, a few at once, and ever more rarely."""

from gateway.webhooks.queues import AT_ONCE, Queue, pause


def test_what_is_due_comes_in_the_order_in_which_it_ended() -> None:
    queue = Queue()
    for name in ("a", "b"):
        queue.put(0.0, name)
    queue.put(5.0, "later")
    assert [*queue.due(1.0)] == ["a", "b"]
    assert queue.next == 5.0
    assert [*queue.due(5.0)] == ["later"]


def test_a_receiver_has_only_so_many_at_once() -> None:
    queue = Queue()
    for number in range(AT_ONCE + 1):
        queue.put(0.0, str(number))
    assert len([*queue.due(1.0)]) == AT_ONCE
    assert [*queue.due(1.0)] == []
    assert queue.next == float("inf")
    queue.busy -= 1
    assert queue.next == 0.0
    assert [*queue.due(1.0)] == [str(AT_ONCE)]


def test_a_queue_is_empty_when_nothing_waits_and_nothing_is_under_way() -> None:
    queue = Queue()
    assert queue.empty
    queue.put(0.0, "a")
    assert not queue.empty
    assert [*queue.due(0.0)] == ["a"]
    assert not queue.empty
    queue.busy -= 1
    assert queue.empty


def test_pauses_double_from_a_second_to_five_minutes_and_are_spread_out() -> None:
    tries = (1, 2, 5, 9, 20, 10_000)
    assert [pause(each, None, 1.0) for each in tries] == [1, 2, 16, 256, 300, 300]
    assert pause(20, None, 0.0) == 150


def test_a_receiver_is_left_alone_for_as_long_as_it_asks_but_not_for_ever() -> None:
    assert pause(1, 120.0, 0.0) == 120
    assert pause(9, 0.0, 1.0) == 256
    assert pause(1, 1e9, 1.0) < 3600

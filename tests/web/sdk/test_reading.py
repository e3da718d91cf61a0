"""Readings: what of a log an SDK sees, and when what it has seen is void."""

import json

from gateway.sse import Event, encode
from gateway.upstream.protocols.apis import CHAT, MESSAGES, RESPONSES
from gateway.web.sdk.reading import NO_PLACE, VOID, Position, Reading
from tests.support import chunk

DONE = Event(b"[DONE]", b"", b"1-9")
END = Event(b'{"state":"done"}', b"end", b"1-10")
FAILED = Event(b'{"code":"upstream_error","message":"Why","retryable":true}', b"failure", b"1-10")
FAILED_END = Event(b'{"state":"failed"}', b"end", b"1-11")
RESET = Event(b'{"attempt":2}', b"reset", b"2-1")
GAP = Event(b'{"from":"1-5","to":"3-0"}', b"gap", b"3-0")


def frames(*events: Event) -> bytes:
    """Return events as a log has them."""
    return b"".join(encode(each.data, each.id or b"1-1", each.name) for each in events)


def say(text: str) -> Event:
    """Return a chunk of a chat."""
    return Event(chunk(text), b"", b"1-1")


def test_the_last_event_waits_until_the_end_is_known() -> None:
    reading = Reading(CHAT, "", restarts=False)
    assert reading.feed(frames(say("a"), DONE)) == [say("a")]
    assert not reading.over
    assert reading.feed(frames(END)) == [DONE]
    assert (reading.over, reading.problem) == (True, None)


def test_done_of_what_failed_is_not_said_and_an_error_that_was_said_is_not_said_twice() -> None:
    error = Event(b'{"error":{"message":"Why"}}', b"", b"1-2")
    reading = Reading(CHAT, "", restarts=False)
    assert reading.feed(frames(say("a"), error, FAILED, FAILED_END)) == [say("a"), error]
    assert reading.problem is not None
    assert (reading.problem.code, reading.raised) == ("upstream_error", True)
    after = Reading(CHAT, "", restarts=False)
    assert after.feed(frames(say("a"), DONE, FAILED, FAILED_END)) == [say("a")]
    assert not after.raised


def test_an_upstreams_names_are_its_own_again() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}
    told = Event(json.dumps(error).encode(), b"upstream-error", b"1-3")
    other = Event(b"{}", b"upstream-other", b"1-4")
    reading = Reading(MESSAGES, "anthropic", restarts=False)
    named = reading.feed(frames(other, told, FAILED, FAILED_END))
    assert [each.name for each in named] == [b"upstream-other", b"error"]
    assert reading.raised


def test_what_was_seen_and_is_void_is_the_end_of_a_stream() -> None:
    reading = Reading(CHAT, "", restarts=False)
    reading.feed(frames(say("a")))
    assert reading.feed(frames(RESET, say("b"), END)) == []
    assert reading.problem == VOID


def test_what_nobody_has_seen_may_be_void() -> None:
    reading = Reading(CHAT, "", restarts=False)
    assert reading.feed(frames(say("a"), RESET, say("b"), DONE, END)) == [say("b"), DONE]
    assert reading.problem is None
    resumed = Reading(CHAT, "", restarts=False, fresh=False)
    assert resumed.feed(frames(say("a"), RESET, say("b"), DONE, END)) == []
    assert resumed.problem == VOID


def test_an_object_begins_anew_however_late() -> None:
    reading = Reading(CHAT, "", restarts=True)
    reading.feed(frames(say("a")))
    assert reading.feed(frames(RESET, say("b"), END)) == [say("b"), Event(b"[DONE]")]
    assert (reading.anew, reading.problem) == (True, None)


def test_a_place_that_no_log_has_is_none() -> None:
    reading = Reading(CHAT, "", restarts=False, fresh=False)
    assert reading.feed(frames(GAP, say("a"))) == []
    assert reading.problem == NO_PLACE


def test_a_position_is_counted_in_what_an_sdk_hands_on() -> None:
    ping, text = Event(b"{}", b"ping"), Event(b'{"type":"x"}', b"x")
    position = Position(MESSAGES, usage=True, had=2)
    assert [*position.shown([text, ping, text])] == []
    assert not position.missed
    assert [*position.shown([ping, text])] == [ping, text]
    assert position.next == 5


def test_a_position_is_a_number_where_events_have_one_and_else_their_place() -> None:
    numbered = [Event(b'{"sequence_number":%d}' % each) for each in (4, 5, 9)]
    position = Position(RESPONSES, usage=True, beyond=5)
    assert [*position.shown(numbered)] == numbered[2:]
    assert (position.next, position.missed) == (10, False)
    plain = [Event(b"{}"), Event(b'{"x":1}')]
    assert [*Position(RESPONSES, usage=True, beyond=0).shown(plain)] == plain[1:]
    assert Position(RESPONSES, usage=True, beyond=0).missed

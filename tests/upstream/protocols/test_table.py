"""What holds for every protocol: each of the table is asked the same."""

import json
from typing import Any, get_args

import pytest

from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.runs.endings import Ending, ending_events, natural_ending
from gateway.sse import Event
from gateway.upstream.protocols.base import Protocol, Tokens
from gateway.upstream.protocols.table import DEFAULT, PROTOCOLS, logged_protocol, protocol_of
from tests.support import ask

PRESET = Preset.model_validate({"url": "http://u/v1", "api_key": "sk-1", "retry_on": [500]})

# What a preset must tell beside the name.
TOLD: dict[str, dict[str, Any]] = {
    **{name: {} for name in PROTOCOLS},
    "openai, told more": {"protocol": "openai", "strict_end": True, "broken_off": ["pause"]},
    "sse": {"end": {"event": "end"}, "text": "text", "usage": "usage"},
    "sse to the close": {"protocol": "sse", "end": {"path": "a.0", "value": 1}, "error": "a.b"},
}
PRESETS = {
    name: Preset.model_validate({"url": "http://u/v1", "protocol": name, **told})
    for name, told in TOLD.items()
}
SPOKEN = {name: protocol_of(preset) for name, preset in PRESETS.items()}

each = pytest.mark.parametrize("protocol", SPOKEN.values(), ids=SPOKEN)


def test_a_preset_and_a_log_that_name_none_speak_the_same() -> None:
    assert protocol_of(PRESET) is logged_protocol("") is PROTOCOLS[DEFAULT]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_log_is_read_as_what_its_preset_spoke(preset: Preset) -> None:
    assert protocol_of(preset) is logged_protocol(preset.dialect)
    assert preset.dialect.partition(" ")[0] == preset.protocol


def test_every_protocol_that_a_preset_may_name_is_known() -> None:
    names = set(get_args(Preset.model_fields["protocol"].annotation))
    assert {preset.protocol for preset in PRESETS.values()} == names


@pytest.mark.parametrize(
    "dialect",
    [
        *("smoke signals", "sse", 'sse {"end":{"smoke":1}}', 'sse {"text":{"path":"a"}}'),
        *('sse {"end":{"close":true},"more":{"path":"a"}}', "sse {", "sse []", "openai 1"),
        *('openai {"smoke":1}', 'ollama {"strict_end":true}'),
    ],
)
def test_a_log_of_a_dialect_that_is_not_known_here_waits_for_who_knows_it(dialect: str) -> None:
    with pytest.raises(Unavailable) as raised:
        logged_protocol(dialect)
    assert raised.value.code == "newer_record"


@each
def test_what_is_sent_can_stand_in_a_head_and_says_what_is_understood(protocol: Protocol) -> None:
    sent = protocol.request(PRESET, b"{}")
    lines = [part for header in sent.headers for part in header]
    assert not any(b"\r" in part or b"\n" in part for part in lines)
    accepted = {value.decode() for name, value in sent.headers if name.lower() == b"accept"}
    assert accepted & protocol.types
    assert any(b"sk-1" in part for part in [*lines, sent.url.encode()])


@each
def test_a_page_s_body_is_neither_changed_nor_copied(protocol: Protocol) -> None:
    body = ask("Hi")
    prepared = protocol.prepare(PRESET, body)
    assert body == ask("Hi")
    assert all(prepared[name] is body[name] for name in body)


@each
def test_nothing_seen_is_no_answer_and_no_text(protocol: Protocol) -> None:
    completion = protocol.completion()
    assert (completion.finished, completion.closed, completion.over) == (False, False, False)
    assert (completion.error, completion.usage, completion.finish_reason) == (None, None, None)
    assert (completion.estimate(), completion.empty, completion.choices) == (None, True, 1)
    assert completion.tokens == Tokens()
    completion.end(framed=True)
    assert (completion.finished, completion.over) == (False, True)
    assert protocol.text().text_of(Event(b"")) == ""


ODD = [
    *(b"", b"{", b"[]", b"null", b'"x"', b"1" * 5000, b"\xff\xfe", b"NaN", b"[" * 100_000),
    *(b'{"type":' * 100_000, b'{"error":null,"error":{}}', b'{"usage":{"a":1e999,"a":-0.0}}'),
    b'{"done":true,"type":"message_stop","text":"\\ud800","finishReason":"\\udfff","x":[NaN]}',
    b'{"choices":[{"delta":{"content":"\\ud800"},"finish_reason":"\\ud800"}],"usage":{"a":NaN}}',
    b'{"usage":{"x":%s},"message":{"usage":[]},"usageMetadata":{"a":%s}}' % (b"9" * 5000, b"9" * 9),
]


@each
@pytest.mark.parametrize("name", [b"", b"error", b"message_stop", b"end", b"\xff"])
def test_whatever_an_event_is_nothing_breaks_and_an_end_can_be_told(
    protocol: Protocol, name: bytes
) -> None:
    for data in ODD:
        seen, text = protocol.completion(), protocol.text()
        for event in (Event(data, name), Event(data)):
            seen.see(event)
            seen.hear(data)
            seen.suspect(event)
            assert isinstance(text.text_of(event), str)
            assert {type(protocol.is_whole(event)), type(protocol.closes(event))} == {bool}
        seen.end(framed=True)
        ending = natural_ending(seen, strayed=True) or Ending("truncated")
        events, _, _ = ending_events(ending, seen, 1)
        assert json.loads(events[-1].data)["state"] == ending.state
        assert isinstance(seen.retryable, bool)


@pytest.mark.parametrize("name", [name for name in SPOKEN if "close" not in name])
@pytest.mark.parametrize("members", [b'"error": "%s"', b'"error": {"code": 5, "message": "%s"}'])
def test_an_error_whose_server_escapes_nothing_is_one_all_the_same(
    name: str, members: bytes
) -> None:
    for words in (rb'no "x" in C:\dir', b"out of memory\n"):
        seen = SPOKEN[name].completion()
        seen.see(Event(b"{" + members % words + b"}"))
        seen.end(framed=True)
        assert seen.error is not None
        assert seen.error["message"] == words.decode().strip()
        assert (seen.finished, seen.retryable) == (False, True)


@each
def test_an_event_larger_than_the_limit_is_told(protocol: Protocol) -> None:
    frames = protocol.frames(PRESET, 100)
    assert frames.feed(b"x" * 99) == []
    assert not frames.overflow
    frames.feed(b"x" * 99)
    assert (frames.overflow, frames.odd) == (True, True)


@each
@pytest.mark.parametrize(
    ("status", "sure"), [(429, True), (503, True), (529, True), (500, True), (502, False)]
)
def test_sure_is_a_refusal_before_anything_was_paid_or_one_that_a_preset_lists(
    protocol: Protocol, status: int, sure: bool
) -> None:
    assert protocol.refused(PRESET, status, [], b"").sure == sure


@each
def test_of_an_answer_that_nothing_is_known_of_there_is_no_rest(protocol: Protocol) -> None:
    assert protocol.rest(PRESET, []) is None
    assert protocol.look(PRESET, []) is None
    assert protocol.stop(PRESET, []) is None

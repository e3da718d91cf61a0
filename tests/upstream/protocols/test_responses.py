"""Responses: what is sent to an upstream, what is refused before, and what goes on without us."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.presets import Preset
from gateway.errors import Rejected
from gateway.sse import Event
from gateway.upstream.protocols.base import NONE, HttpRequest
from gateway.upstream.protocols.responses import Responses
from tests.support import sse

ASKED = {"model": "m", "input": "Hi"}


def preset(**members: Any) -> Preset:
    """Return a preset of this protocol."""
    given = {"protocol": "responses", "url": "http://u/v1/responses", "api_key": "sk-1"}
    return Preset.model_validate({**given, **members})


def prepared(given: Preset, **members: Any) -> dict[str, Any]:
    """Return what a preset makes of a request."""
    return Responses().prepare(given, {**ASKED, **members})


def refused(given: Preset, **members: Any) -> str:
    """Return the code that a request is refused with."""
    with pytest.raises(Rejected) as caught:
        prepared(given, **members)
    assert caught.value.status == 400
    return caught.value.code


# What is asked


def test_a_request_is_sent_as_it_is_but_streamed() -> None:
    assert prepared(preset(), temperature=0.5) == {**ASKED, "temperature": 0.5, "stream": True}


def test_usage_is_not_asked_for_and_stream_options_pass() -> None:
    options = {"include_obfuscation": False}
    assert prepared(preset(), stream_options=options)["stream_options"] is options
    assert "stream_options" not in prepared(preset(include_usage=True))


def test_defaults_fill_and_force_wins() -> None:
    given = preset(defaults={"model": "d", "seed": 1}, force={"instructions": "Ours."})
    sent = prepared(given, instructions="Theirs.", Instructions="Theirs.")
    assert sent == {**ASKED, "seed": 1, "instructions": "Ours.", "stream": True}


@pytest.mark.parametrize("stream", [False, None, "true", 1, []])
def test_what_is_not_to_be_streamed_is_refused(stream: Any) -> None:
    assert refused(preset(), stream=stream) == "stream_required"


def test_a_model_that_is_not_listed_is_refused() -> None:
    assert refused(preset(models=["a"])) == "model_not_allowed"


@pytest.mark.parametrize("background", [True, 1, "true", [0]])
def test_a_page_starts_nothing_that_would_go_on_without_us(background: Any) -> None:
    assert refused(preset(), background=background) == "field_not_allowed"
    assert "Background" not in prepared(preset(), Background=background)


@pytest.mark.parametrize("background", [False, None])
def test_a_page_may_say_that_it_wants_no_background(background: Any) -> None:
    assert prepared(preset(), background=background)["background"] is background


@pytest.mark.parametrize("said", [{}, {"background": False, "store": False}, {"store": None}])
def test_a_preset_of_background_has_the_answer_kept_whatever_is_asked(said: Any) -> None:
    kept = {"background": True, "store": True}
    assert prepared(preset(background=True), **said).items() >= kept.items()
    contrary = preset(background=True, force={"store": False})
    assert prepared(contrary, **said).items() >= kept.items()


def test_background_is_of_no_other_protocol() -> None:
    with pytest.raises(ValidationError, match="is for protocol = ") as caught:
        preset(protocol="openai", background=True)
    assert [error["loc"] for error in caught.value.errors()] == [("background",)]


def headers(sent: HttpRequest) -> dict[bytes, bytes]:
    """Return the headers of a request by name."""
    return dict(sent.headers)


def test_a_request_goes_to_the_preset_s_url_with_its_key() -> None:
    sent = Responses().request(preset(), b"{}")
    assert (sent.method, sent.url, sent.body) == ("POST", "http://u/v1/responses", b"{}")
    assert headers(sent)[b"Authorization"] == b"Bearer sk-1"
    assert headers(sent)[b"Accept"] == b"text/event-stream"


def test_azures_key_has_a_header_of_its_own() -> None:
    sent = Responses().request(preset(api_key="", headers={"api-key": "k"}), b"{}")
    assert b"Authorization" not in headers(sent)
    assert headers(sent)[b"api-key"] == b"k"


# What goes on without us


def numbered(number: Any, kind: str = "output_text.delta", **members: Any) -> Event:
    """Return an event with a number."""
    data = {"type": f"response.{kind}", "sequence_number": number, **members}
    return Event(json.dumps(data).encode(), f"response.{kind}".encode())


def begun(response_id: Any = "resp_1") -> Event:
    """Return the first event of an answer."""
    return numbered(0, "created", response={"id": response_id, "status": "queued"})


SEEN = [begun(), numbered(1, "queued", response={"id": "resp_2"}), numbered(7, delta="x")]
AZURE = "http://u/openai/v1/responses/?api-version=preview#x"


@pytest.mark.parametrize(
    ("url", "under", "query"),
    [
        ("http://u/v1/responses", "http://u/v1/responses/resp_1", ""),
        ("http://u:8/v1/responses/", "http://u:8/v1/responses/resp_1", ""),
        (AZURE, "http://u/openai/v1/responses/resp_1", "api-version=preview"),
    ],
)
def test_what_is_kept_is_asked_for_under_its_id(url: str, under: str, query: str) -> None:
    protocol, given = Responses(), preset(background=True, url=url)
    rest = protocol.rest(given, SEEN)
    look, stop = protocol.look(given, SEEN), protocol.stop(given, SEEN)
    assert rest is not None
    assert look is not None
    assert stop is not None
    queries = "&".join(filter(None, (query, "stream=true&starting_after=7")))
    assert (rest.request.method, rest.request.url) == ("GET", f"{under}?{queries}")
    assert rest.last == 7
    mark = "?" if query else ""
    assert (look.method, look.url) == ("GET", under + mark + query)
    assert (stop.method, stop.url) == ("POST", f"{under}/cancel{mark}{query}")
    for request in (rest.request, look, stop):
        assert request.body == b""
        assert headers(request)[b"Authorization"] == b"Bearer sk-1"
    assert headers(rest.request)[b"Accept"] == b"text/event-stream"
    assert headers(look)[b"Accept"] == headers(stop)[b"Accept"] == b"application/json"


def test_only_what_is_kept_is_asked_for() -> None:
    protocol = Responses()
    assert protocol.keeps(preset(background=True))
    assert not protocol.keeps(preset())
    assert protocol.rest(preset(), SEEN) is None
    assert protocol.look(preset(), SEEN) is None
    assert protocol.stop(preset(), SEEN) is None


def test_a_long_id_of_a_proxy_is_one() -> None:
    name = "resp_" + "bGl0ZWxsbTpj" * 20 + "=="
    stop = Responses().stop(preset(background=True), [begun(name)])
    assert stop is not None
    assert stop.url == f"http://u/v1/responses/{name}/cancel"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a?b", "a#b", "a%2fb", "a b", "\u00e4", "x" * 2000, 7, None, {}],
)
def test_an_id_that_would_be_more_than_one_in_a_url_is_none(name: Any) -> None:
    protocol, given = Responses(), preset(background=True)
    seen = [begun(name), numbered(1)]
    assert protocol.rest(given, seen) is None
    assert protocol.look(given, seen) is None
    assert protocol.stop(given, seen) is None


def unnumbered() -> Event:
    """Return an event as of those who do not number them."""
    return Event(b'{"type":"response.output_text.delta","delta":"x"}')


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [numbered(0), numbered(1)],
        [begun(), unnumbered()],
        [begun(), unnumbered(), numbered(2)],
        [begun(), numbered(2), numbered(2)],
        [begun(), numbered(2), numbered(1)],
        *([begun(), numbered(number)] for number in ("1", -1, 1.5, True, None, [1], 10**400)),
    ],
)
def test_of_an_answer_without_rising_numbers_no_rest_can_be_asked_for(seen: list[Event]) -> None:
    assert Responses().rest(preset(background=True), seen) is None


def test_what_is_no_event_of_the_answer_needs_no_number() -> None:
    seen = [begun(), Event(b'{"type":"keepalive"}'), numbered(3, delta='{"sequence_number": 9}')]
    rest = Responses().rest(preset(background=True), seen)
    assert rest is not None
    assert rest.last == 3


def test_the_number_is_the_events_own() -> None:
    inner = numbered(4, "output_item.done", item={"sequence_number": 99})
    rest = Responses().rest(preset(background=True), [begun(), inner])
    assert rest is not None
    assert rest.last == 4


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b'{"status":"queued"}', True),
        (b'{"id":"x","status":"in_progress","output":[]}', True),
        *((b'{"status":"%s"}' % each, False) for each in (b"completed", b"failed", b"cancelled")),
        *((each, False) for each in (b"", b"[]", b"queued", b'"queued"', b'{"status":["queued"]}')),
        (b"[" * 100_000, False),
    ],
)
def test_an_answer_goes_on_only_if_its_status_says_so(body: bytes, more: bool) -> None:
    assert Responses().goes_on(body) == more


# What is logged of it already


def events(given: Preset, stream: bytes, *, last: int = NONE, step: int = 0) -> list[Event]:
    """Return the events of a stream that comes in steps."""
    frames = Responses().frames(given, 1 << 20, last=last)
    step = step or len(stream)
    parts = [stream[at : at + step] for at in range(0, len(stream), step)]
    return [event for part in parts for event in frames.feed(part)]


@pytest.mark.parametrize("step", [0, 1, 50])
def test_of_a_rest_only_what_is_not_logged_is_taken(step: int) -> None:
    sent = [numbered(number, delta="x").data for number in range(6)]
    got = events(preset(background=True), sse(*sent), last=3, step=step)
    assert [event.data for event in got] == sent[4:]


def test_an_error_instead_of_a_rest_is_heard_whatever_its_number() -> None:
    error = b'{"type":"error","code":"expired","message":"BOOM","sequence_number":0}'
    sent = [error, b'{"type":"keepalive"}', unnumbered().data]
    assert [each.data for each in events(preset(background=True), sse(*sent), last=3)] == sent


# What is ours


OURS = preset(force={"instructions": "SECRET"})
ECHO = (
    '{"type":"response.%s", "response" : {"id":"r","instructions": %s,"n":1.50,'
    '"input":[{"role":"developer","content":"SECRET"}],"text":"SECRET?","é":1},"x":1e999}'
)
KINDS = ["created", "queued", "in_progress", "completed", "incomplete", "failed", "new"]
INSTRUCTIONS = ['"SECRET \\" \\u00e9 }"', '[{"content":"SECRET"}]', "null", "7", "{}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_no_snapshot_shows_a_prompt_that_is_ours(kind: str, instructions: str) -> None:
    (got,) = events(OURS, sse((ECHO % (kind, instructions)).encode()))
    bare = ECHO.replace('[{"role":"developer","content":"SECRET"}]', "null")
    assert got.data == (bare % (kind, "null")).encode()


@pytest.mark.parametrize("member", ["instructions", "input", "prompt"])
@pytest.mark.parametrize("table", ["defaults", "force"])
def test_a_prompt_is_ours_wherever_the_preset_has_it(table: str, member: str) -> None:
    data = json.dumps({"type": "response.created", "response": {member: "SECRET"}}).encode()
    (got,) = events(preset(**{table: {member: "SECRET"}}), sse(data))
    assert json.loads(got.data) == {"type": "response.created", "response": {member: None}}


def test_a_prompt_that_is_none_of_ours_is_shown_byte_for_byte() -> None:
    data = (ECHO % ("created", '"THEIRS"')).encode()
    (got,) = events(preset(force={"temperature": 1}), sse(data))
    assert got.data == data


UNTOUCHED = [
    b'{"type":"response.output_text.delta","delta":"\\"response\\":{\\"instructions\\":1}"}',
    b'{"type":"response.custom_tool_call_input.done","input":"x","response":7}',
    b'{"type":"response.output_text.delta","delta":"\\u003cb\\u003e", "x": 1.0}',
    b'{"type":"response.created","response":{"id":"r"}}',
    b'{"type":"response.created","response":[{"instructions":"x"}]}',
    b"[DONE]",
    b"",
    b'{"delta":"\xff\xfe"}',
]


@pytest.mark.parametrize("data", UNTOUCHED)
def test_all_else_stays_byte_for_byte(data: bytes) -> None:
    (got,) = events(OURS, sse(data))
    assert got.data == data


HIDDEN = [
    '{"response":{"instructions":"SECRET","instructions":"SECRET"}}',
    '{"response":{"instructions":"x"},"response":{"instructions":"SECRET"}}',
    '{"response":{"instruct\\u0069ons":"SECRET"}}',
    '{"respons\\u0065":{"instructions":"SECRET"}}',
    '{"instructions":"SECRET"}',
    '{"response":{"instructions":"\\ud800 SECRET","n":NaN}}',
    '{"response":{"instructions":["SECRET"' + ',{"a":[1]}' * 50 + "]}}",
    '{"response":{"n":' + "9" * 10_000 + ',"instructions":"SECRET"}}',
    '{"response":{"n":' + "[" * 100_000 + "]" * 100_000 + ',"instructions":"SECRET"}}',
    '{"response":{"instructions":"SECRET"',
    '{"response":{"instructions":"SEC\tRET SECRET"}}',
    '{"response":{"instructions" "SECRET"}}',
    '{"response":{"instructions":"SECRET",}}',
    '[{"response":{"instructions":"SECRET"}}]',
    'x {"response":{"instructions":"SECRET"}}',
]


@pytest.mark.parametrize("text", HIDDEN, ids=range(len(HIDDEN)))
def test_no_odd_json_shows_a_prompt_that_is_ours(text: str) -> None:
    (got,) = events(OURS, b"event: response.created\n" + sse(text.encode()))
    assert b"SECRET" not in got.data
    assert got.name == b"response.created"


def test_a_last_event_without_its_blank_line_shows_none_either() -> None:
    frames = Responses().frames(OURS, 1 << 20)
    assert frames.feed(b'data: {"response":{"instructions":"SECRET"}}\n') == []
    assert [each.data for each in frames.rest()] == [b'{"response":{"instructions":null}}']


# How large the end may be


def large(kind: str, form: str, size: int = 5000) -> bytes:
    """Return an event of some size with its type in one of the places that servers have it in."""
    head, body = f'"type":"response.{kind}"', '"response":{"x":"' + "x" * size + '"}'
    members = f"{body},{head}" if form == "last" else f"{head},{body}"
    if form == "name":
        members, name = body, b"event: response." + kind.encode() + b"\n"
    else:
        name = b""
    return name + sse(b"{" + members.encode() + b"}")


@pytest.mark.parametrize("step", [1, 700, 10_000])
@pytest.mark.parametrize("form", ["first", "last", "name"])
@pytest.mark.parametrize(
    ("kind", "size", "fits"),
    [
        *((kind, 5000, True) for kind in ("completed", "incomplete", "failed", "done")),
        *((kind, 5000, False) for kind in ("created", "output_item.done", "in_progress")),
        ("created", 800, True),
        ("completed", 9000, False),
    ],
)
@pytest.mark.parametrize("given", [preset(), OURS], ids=["plain", "ours"])
def test_the_end_may_be_larger_than_other_events(
    given: Preset, form: str, step: int, kind: str, size: int, fits: bool
) -> None:
    frames = Responses().frames(given, 1000)
    stream = large(kind, form, size)
    got = [e for at in range(0, len(stream), step) for e in frames.feed(stream[at : at + step])]
    assert (len(got), frames.overflow) == (int(fits), not fits)

"""The shapes of a streamed response as servers send it, each through a real run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.config.presets import Preset
from tests.support import OK, Call, running, scripted, sse
from tests.upstream.protocols.shapes import sends

CHUNKED = OK.replace(b"Connection: close", b"Transfer-Encoding: chunked")
DONE = b"[DONE]"
USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 9,
}
ASKED = {"model": "m", "input": "Hello?"}
RESPONSES = {"default": Preset.model_validate({"protocol": "responses"})}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """However an upstream behaves, the gateway logs no error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


# Events


def of(kind: str, /, **members: Any) -> bytes:
    """Return the data of an event."""
    return json.dumps({"type": f"response.{kind}", **members}).encode()


def snap(kind: str, /, status: str | None = None, **members: Any) -> bytes:
    """Return the data of a snapshot; its status is its kind."""
    return of(kind, response={"id": "r", "error": None, "status": status or kind, **members})


def delta(text: Any, kind: str = "output_text") -> bytes:
    """Return a piece of the answer."""
    return of(f"{kind}.delta", output_index=0, content_index=0, item_id="i", delta=text)


def message(*texts: str, kind: str = "output_text") -> dict[str, Any]:
    """Return an item with these texts."""
    member = "refusal" if kind == "refusal" else "text"
    content = [{"type": kind, member: text} for text in texts]
    return {"type": "message", "role": "assistant", "content": content}


def item(*texts: str) -> bytes:
    """Return the end of an item."""
    return of("output_item.done", output_index=0, item=message(*texts))


def part(text: str) -> bytes:
    """Return the end of a part."""
    return of("content_part.done", part={"type": "output_text", "text": text})


def named(data: bytes, name: str = "") -> bytes:
    """Return an event as OpenAI sends it: its name is its type."""
    name = name or str(json.loads(data)["type"])
    return b"event: " + name.encode() + b"\n" + sse(data)


def numbered(*data: bytes) -> list[bytes]:
    """Return events with numbers from 0."""
    each = [{**json.loads(one), "sequence_number": number} for number, one in enumerate(data)]
    return [json.dumps(one).encode() for one in each]


def framed(body: bytes, *, whole: bool = True) -> bytes:
    """Return a chunked answer; one that is not whole lacks the last chunk."""
    piece = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return CHUNKED + piece + (b"0\r\n\r\n" if whole else b"")


def closed(*data: bytes) -> bytes:
    """Return events whose end only the close of the connection tells."""
    return OK + sse(*data)


@dataclass(frozen=True)
class Shape:
    """What an upstream sends, and what becomes of it."""

    answer: bytes
    state: str
    reason: str | None = None
    text: str = ""
    usage: Any = None  # None: none, or an estimate.
    code: str = ""
    says: str = ""


def done(answer: bytes, text: str = "hello", reason: str = "completed", **more: Any) -> Shape:
    """Return a shape that is whole."""
    return Shape(answer, "done", reason, text, **more)


def failed(answer: bytes, text: str = "hel", says: str = "BOOM", **more: Any) -> Shape:
    """Return a shape that is an error."""
    return Shape(answer, "failed", None, text, says=says, **{"code": "upstream_error", **more})


def truncated(answer: bytes, text: str = "hello", **more: Any) -> Shape:
    """Return a shape that is not whole."""
    return Shape(answer, "truncated", text=text, **{"code": "upstream_cut", **more})


CREATED, RUNS = snap("created", "in_progress"), snap("in_progress")
HEL, LO, HELLO = delta("hel"), delta("lo"), delta("hello")
ADDED = of("output_item.added", output_index=0, item={"type": "message", "content": []})
TEXT = of("output_text.done", text="hello")
END = snap("completed", output=[message("hello")], usage=USAGE)
CUT = snap("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE)
BOOM = {"code": "server_error", "message": "BOOM"}
FAILED = snap("failed", error=BOOM, usage=USAGE)
ERROR = b'{"type":"error","code":"server_error","message":"BOOM","param":null,"sequence_number":3}'
WHOLE = [CREATED, RUNS, ADDED, HEL, LO, TEXT, part("hello"), item("hello"), END]
BARE = json.dumps({"error": BOOM}).encode()

ENDS = {
    "OpenAI's: names and numbers": done(OK + b"".join(map(named, numbered(*WHOLE))), usage=USAGE),
    "transformers': numbers, no names": done(closed(*numbered(*WHOLE)), usage=USAGE),
    "aimock's: names, no numbers": done(OK + b"".join(map(named, WHOLE)), usage=USAGE),
    "LiteLLM's: DONE after it": done(closed(*WHOLE, DONE), usage=USAGE),
    "background's: queued first": done(
        closed(snap("created", "queued"), snap("queued"), *WHOLE[1:]), usage=USAGE
    ),
    "names that lie": done(OK + named(HELLO, "response.failed") + sse(END), usage=USAGE),
    "incomplete": done(closed(HELLO, CUT), reason="max_output_tokens", usage=USAGE),
    "filtered": done(
        closed(HELLO, snap("incomplete", incomplete_details={"reason": "content_filter"})),
        reason="content_filter",
    ),
    "incomplete without a reason": done(closed(HELLO, snap("incomplete")), reason="incomplete"),
    "completed that is incomplete": done(
        closed(HELLO, snap("completed", "incomplete", incomplete_details={"reason": "steered"})),
        reason="steered",
    ),
    "OpenRouter's done": done(closed(HELLO, snap("done", "completed"))),
    "completed without a snapshot": done(closed(HELLO, of("completed"))),
    "completed with a snapshot that is none": done(closed(HELLO, of("completed", response=[1]))),
    "spaces": done(closed(HELLO, b'{ "type" : "response.completed" }')),
    "twice": done(closed(HELLO, END, CUT, END), usage=USAGE),
    "text after the end": done(closed(HELLO, END, delta(" more"), DONE), usage=USAGE),
    "an error after the end": done(closed(HELLO, END, ERROR, FAILED), usage=USAGE),
    "a last event without a blank line": done(framed(sse(HELLO) + b"data: " + END), usage=USAGE),
    "no end": truncated(closed(CREATED, HELLO)),
    "no end in a whole body": truncated(framed(sse(CREATED, HELLO))),
    "no end but all of the text": truncated(framed(sse(*WHOLE[:-1]))),
    "DONE alone proves nothing": truncated(closed(HELLO, DONE)),
    "an end cut in the middle": truncated(framed(sse(HELLO) + b"data: " + END[:-9])),
    "an end in a text": truncated(closed(delta('{"type":"response.completed"}'), DONE),
                                  '{"type":"response.completed"}'),
    "cancelled there": Shape(
        closed(HELLO, snap("cancelled")), "truncated", "cancelled", "hello",
        code="upstream_broke_off", says="cancelled",
    ),
    "cancelled in a snapshot of another kind": Shape(
        closed(HELLO, snap("in_progress", "cancelled"), HELLO), "truncated", "cancelled", "hello",
        code="upstream_broke_off",
    ),
    "nothing but snapshots": failed(
        closed(CREATED, RUNS, DONE), "", "without an answer", code="empty_answer"
    ),
    "DONE and nothing else": failed(closed(DONE), "", "without an answer", code="empty_answer"),
    "an empty body": failed(framed(b""), "", "without an answer", code="empty_answer"),
}  # fmt: skip

FAILURES = {
    "failed": failed(closed(HEL, FAILED), usage=USAGE),
    "LiteLLM's, with DONE": failed(OK + sse(HEL) + named(FAILED) + sse(DONE), usage=USAGE),
    "failed without words": failed(closed(HEL, snap("failed")), says="reported an error"),
    "completed that failed": failed(closed(HEL, snap("completed", "failed", error=BOOM))),
    "completed with an error": failed(closed(HEL, snap("completed", error=BOOM))),
    "an error event": failed(closed(HEL, ERROR)),
    "a named one": failed(OK + sse(HEL) + named(ERROR)),
    "OpenAI's, with failed after it": failed(closed(HEL, ERROR, FAILED), usage=USAGE),
    "with completed after it": failed(closed(HEL, ERROR, END), usage=USAGE),
    "an error by its name alone": failed(OK + sse(HEL) + named(b'"BOOM"', "error")),
    "an error member": failed(closed(HEL, BARE)),
    "object error": failed(closed(HEL, b'{"object":"error","message":"BOOM"}')),
    "an error in a snapshot": failed(closed(HEL, snap("in_progress", error=BOOM))),
    "an error as the first event": failed(closed(ERROR), ""),
    "a bare error": failed(OK + sse(HEL) + BARE),
    "last words": failed(closed(HEL, b'{"message":"BOOM"}')),
    "an error cut off": failed(OK + sse(HEL) + b"data: " + ERROR),
    "DONE after an error": failed(closed(HEL, ERROR, DONE)),
    "a tool's error is none": done(
        closed(of("mcp_call.failed", error="BOOM", message="BOOM", status="failed"), HELLO,
               of("output_item.done", item={"type": "mcp_call", "error": "BOOM"}), END),
        usage=USAGE,
    ),
    "the words of tools are none": done(
        closed(of("code_interpreter_call_code.done", code="404 # failed", text="BOOM"), HELLO, END),
        usage=USAGE,
    ),
    "keepalives are none": done(closed(b'{"type":"keepalive"}', *WHOLE), usage=USAGE),
}  # fmt: skip

WORDS = {
    "a refusal": done(closed(delta("hel", "refusal"), delta("lo", "refusal"), END), usage=USAGE),
    "thoughts and calls are no text": done(
        closed(delta("hm", "reasoning_text"), delta("hm", "reasoning_summary_text"),
               delta("{", "function_call_arguments"), *WHOLE), usage=USAGE
    ),
    "two messages": done(closed(HEL, LO, of("output_text.done", text="hello"), delta("!"),
                                snap("completed", output=[message("hello"), message("!")])),
                         "hello!"),
    "only the end of the text": done(closed(TEXT, part("hello"), item("hello"), END), usage=USAGE),
    "only the end of a refusal": done(closed(of("refusal.done", refusal="hello"), END),
                                      usage=USAGE),
    "only the end of the part": done(closed(part("hello"), item("hello"), END), usage=USAGE),
    "only the end of the item": done(closed(item("hel", "lo"), END), usage=USAGE),
    "only the end of the response": done(closed(CREATED, END), usage=USAGE),
    "only the end of an incomplete response": done(
        closed(snap("incomplete", output=[message("hel"), {"type": "reasoning"}, message("lo")])),
        reason="incomplete",
    ),
    "a refusal at the end": done(
        closed(snap("completed", output=[message("hello", kind="refusal")]))
    ),
    "what failed with its text": failed(
        closed(snap("failed", error=BOOM, output=[message("hel")]))
    ),
    "no text": done(closed(snap("completed", output=[{"type": "function_call"}])), ""),
    "empty pieces first": done(closed(delta(""), TEXT, END), usage=USAGE),
    "types that are wrong": done(
        closed(HEL, *(delta(text) for text in (None, 7, ["x"], {"x": "y"})), LO,
               b'[]', b'7', b'null', b'"response.completed"', b'{"type":7}', b'{"type":["x"]}',
               snap("completed", output=7)), "hello"
    ),
    "items that are wrong": done(
        closed(snap("completed", output=[7, None, {"type": 7}, {"type": "message", "content": 7},
                                         {"type": "message", "content": [7, {"type": []}, {}]},
                                         message("hello")]))
    ),
    "half a pair": done(closed(b'{"type":"response.output_text.delta","delta":"\\ud83d"}',
                               b'{"type":"response.output_text.delta","delta":"\\ude00"}',
                               of("completed")), "\U0001f600"),
}  # fmt: skip

USAGES = {
    "null": done(closed(HELLO, snap("completed", usage=None))),
    "a list": done(closed(HELLO, snap("completed", usage=[1]))),
    "only in the end": done(
        closed(snap("created", usage={"input_tokens": 1}), HELLO, END), usage=USAGE
    ),
    "odd numbers": done(
        closed(HELLO, b'{"type":"response.completed","response":{"usage":{"a":1e999,"b":NaN,'
               b'"input_tokens":"7","c":' + b"9" * 30 + b"}}}"),
        usage={"a": None, "b": None, "input_tokens": "7", "c": int("9" * 30)},
    ),
    "of what was cancelled": Shape(
        closed(HELLO, snap("cancelled", usage=USAGE)), "truncated", "cancelled", "hello", USAGE,
        code="upstream_broke_off",
    ),
    "a shape that is deep": done(
        closed(HELLO, b'{"type":"response.completed","response":{"usage":{"a":1,"b":'
               + b'{"b":' * 300 + b"1" + b"}" * 300 + b"}}}"),
        usage={"a": 1, "b": {"b": {"b": {"b": {"b": {"b": {"b": None}}}}}}},
    ),
}  # fmt: skip

SHAPES = {**ENDS, **FAILURES, **WORDS}
SHAPES |= {f"usage {name}": shape for name, shape in USAGES.items()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_ends_as_its_upstream_meant_it(shape: Shape) -> None:
    async with (
        scripted(sends(shape.answer)) as up,
        running(upstream_url=up.url, presets=RESPONSES) as gate,
    ):
        url = await gate.ticket(ASKED)
        shown = await gate.read(url + "&format=text")
        got, answer = await gate.read(url), await gate.completion(url)
    assert (got.end["state"], got.end["finish_reason"]) == (shape.state, shape.reason)
    usage = None if (got.end["usage"] or {}).get("estimated") else got.end["usage"]
    assert usage == shape.usage
    assert ("failure" in got.names) == (shape.state != "done")
    if shape.state != "done":
        assert got.failure["code"] == shape.code
        assert shape.says in got.failure["message"]
    texts = [each.data for each in shown.events if each.name not in (b"failure", b"end")]
    assert (answer["text"], b"".join(texts)) == (shape.text, shape.text.encode())
    assert {each.name for each in shown.events} <= {b"", b"failure", b"end"}
    assert len(up.calls) == 1


# Cut anywhere


# The events, which of them closes the answer, and whether it is whole then.
CUTS = {
    "completed": ([*numbered(*WHOLE), DONE], 9, True),
    "incomplete": ([*numbered(CREATED, HEL, LO, CUT), DONE], 4, True),
    "text at the end": (numbered(CREATED, END), 2, True),
    "failed": ([*numbered(CREATED, HEL, FAILED), DONE], 3, False),
    "error": ([*numbered(CREATED, HEL, LO), ERROR, DONE], 5, False),
    "cancelled": (numbered(CREATED, HEL, snap("cancelled")), 3, False),
}
BODIES: dict[str, Callable[[bytes], bytes]] = {
    "closed": lambda body: OK + body,
    "cut": lambda body: framed(body, whole=False),
    "framed": framed,
}


@pytest.mark.parametrize("how", BODIES)
@pytest.mark.parametrize("name", CUTS)
async def test_an_answer_cut_at_any_event_is_done_only_with_its_end(name: str, how: str) -> None:
    data, closing, is_whole = CUTS[name]

    async def script(call: Call) -> None:
        await call.send(BODIES[how](sse(*data[: call.json["input"]])))

    async with scripted(script) as up, running(upstream_url=up.url, presets=RESPONSES) as gate:
        for sent in range(len(data) + 1):
            got = await gate.read(await gate.ticket({"input": sent}))
            assert (got.end["state"] == "done") == (is_whole and sent >= closing)
            assert got.data == data[: min(sent, closing)]


async def test_what_the_end_does_not_fit_into_ends_the_log_before_it() -> None:
    """Its log has no room for the end: a page that reads it has no whole answer, and is told so."""
    end = snap("completed", output=[message("x" * 9000)])
    given = {"presets": RESPONSES, "max_event": 4096, "max_log": 8192}
    async with (
        scripted(sends(closed(CREATED, delta("x" * 3000), end))) as up,
        running(upstream_url=up.url, **given) as gate,
    ):
        got = await gate.read(await gate.ticket(ASKED))
    assert (got.end["state"], got.failure["code"]) == ("truncated", "log_full")
    assert len(got.data) == 2


@pytest.mark.parametrize(
    ("size", "state", "code"), [(30_000, "done", ""), (40_000, "truncated", "event_too_large")]
)
async def test_an_end_that_repeats_a_long_answer_ends_it(size: int, state: str, code: str) -> None:
    end = snap("completed", output=[message("x" * size)], usage=USAGE)
    data = [*(delta("x" * 3000) for _ in range(size // 3000)), end]
    async with (
        scripted(sends(closed(*data))) as up,
        running(upstream_url=up.url, presets=RESPONSES, max_event=4096) as gate,
    ):
        got = await gate.read(await gate.ticket(ASKED))
    assert got.end["state"] == state
    assert (got.failure["code"] if "failure" in got.names else "") == code
    assert (got.end["usage"] == USAGE) == (state == "done")


async def test_only_the_end_may_be_larger_than_an_event() -> None:
    data = [snap("created", "in_progress", instructions="x" * 5000), *WHOLE]
    async with (
        scripted(sends(closed(*data))) as up,
        running(upstream_url=up.url, presets=RESPONSES, max_event=4096) as gate,
    ):
        got = await gate.read(await gate.ticket(ASKED))
    assert (got.end["state"], got.failure["code"]) == ("truncated", "event_too_large")


# From end to end


async def test_a_page_gets_the_events_as_they_came_and_a_resume_gets_the_rest() -> None:
    sent = numbered(*WHOLE)
    async with (
        scripted(sends(OK + b"".join(map(named, sent)))) as up,
        running(upstream_url=up.url, presets=RESPONSES) as gate,
    ):
        url = await gate.ticket(ASKED)
        got = await gate.read(url)
        assert got.data == sent
        assert got.names == [*(json.loads(each)["type"] for each in sent), "end"]
        assert (got.end["state"], got.end["usage"]) == ("done", USAGE)
        assert up.calls[0].json == {**ASKED, "stream": True}
        for at, event_id in enumerate(got.ids[:-1]):
            rest = await gate.read(url, last_id=event_id)
            assert rest.data == sent[at + 1 :]
            shown = await gate.read(url + "&format=text", last_id=event_id)
            before, pieces = (at >= 3) + (at >= 4), [b"hel", b"lo"]
            assert shown.data == pieces[before:]


async def test_a_page_gets_no_prompt_of_the_preset_back() -> None:
    forced = {"protocol": "responses", "force": {"instructions": "SECRET"}}
    echo = {"instructions": "SECRET", "input": "SECRET"}
    kinds = [("created", "queued"), ("queued", ""), ("in_progress", ""), ("completed", "")]
    sent = numbered(*(snap(kind, status or None, **echo) for kind, status in kinds))
    sent.insert(3, HELLO)
    async with (
        scripted(sends(OK + b"".join(map(named, sent)))) as up,
        running(upstream_url=up.url, presets={"default": Preset.model_validate(forced)}) as gate,
    ):
        url = await gate.ticket(ASKED)
        got = await gate.read(url)
        answer = await gate.completion(url)
    assert up.calls[0].json["instructions"] == "SECRET"
    assert b"SECRET" not in got.raw
    assert "SECRET" not in json.dumps(answer)
    assert got.data == [each.replace(b'"SECRET"', b"null") for each in sent]
    assert got.end["state"] == "done"


async def test_a_page_that_asks_for_a_background_is_refused() -> None:
    async with running(presets=RESPONSES) as gate:
        answer = await gate.post({**ASKED, "background": True})
    assert (answer.status_code, answer.json()["code"]) == (400, "field_not_allowed")
    assert "background" in answer.json()["detail"]

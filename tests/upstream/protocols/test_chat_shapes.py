"""The shapes of a chat completion as public servers send it, each through a real run."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runs.endings import Ending, ending_events, natural_ending
from gateway.sse import Event, parse
from gateway.upstream.protocols.chat_state import ChatState
from gateway.upstream.protocols.chat_text import ChatText
from gateway.upstream.protocols.complaints import retryable
from tests.support import OK, Call, Transcript, ask, chunk, running, scripted, sse
from tests.upstream.protocols.shapes import sends

CHUNKED = OK.replace(b"Connection: close", b"Transfer-Encoding: chunked")
STOP = chunk("", finish="stop")
DONE = b"[DONE]"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
ROLE = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """However an upstream behaves, the gateway logs no error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


def framed(body: bytes, *, whole: bool = True) -> bytes:
    """Return a chunked answer; one that is not whole lacks the last chunk."""
    piece = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return CHUNKED + piece + (b"0\r\n\r\n" if whole else b"")


def with_length(body: bytes) -> bytes:
    """Return an answer whose head tells its length."""
    return OK.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body)) + body


def closed(*data: bytes) -> bytes:
    """Return events whose end only the close of the connection tells."""
    return OK + sse(*data)


def named(name: str, data: bytes) -> bytes:
    """Return one event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def of(*choices: dict[str, Any], **members: Any) -> bytes:
    """Return the data of a chunk with these choices and members."""
    return json.dumps({"choices": choices, **members}).encode()


def delta(index: int = 0, /, finish: Any = None, **members: Any) -> dict[str, Any]:
    """Return one choice."""
    return {"index": index, "delta": members, "finish_reason": finish}


def parts(*content: Any) -> bytes:
    """Return a chunk whose content is a list."""
    return of(delta(content=list(content)))


def indexed(index: str, *more: bytes) -> bytes:
    """Return a stream whose only choice has this number."""
    text = b'{"choices":[{"index":%s,"delta":{"content":"hello"}}]}'
    last = b'{"choices":[{"index":%s,"delta":{},"finish_reason":"stop"}]}'
    return closed(text % index.encode(), last % index.encode(), *more)


@dataclass(frozen=True)
class Shape:
    """What an upstream sends, and what becomes of it."""

    answer: bytes
    state: str
    reason: str | None = None
    text: str = ""
    usage: Any = None  # None: none, or an estimate.
    says: str = ""  # In the failure's message.
    code: str = ""
    n: int = 1


def done(answer: bytes, text: str = "hello", reason: str | None = "stop", **more: Any) -> Shape:
    """Return a shape that is whole."""
    return Shape(answer, "done", reason, text, **more)


def failed(answer: bytes, text: str = "", says: str = "BOOM", **more: Any) -> Shape:
    """Return a shape that is an error."""
    return Shape(answer, "failed", None, text, says=says, **more)


def truncated(answer: bytes, text: str = "hello", **more: Any) -> Shape:
    """Return a shape that is not whole."""
    return Shape(answer, "truncated", more.pop("reason", None), text, **more)


HALF = chunk("half")
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
LAST = b"data: " + chunk("lo", finish="stop")
BARE = b'{"error":{"code":400,"message":"BOOM","type":"x"}}'
PRETTY = b'{\n  "error": {\n\n    "message": "BOOM"\n  }\n}\n'
WITH_LINE = sse(chunk("hel"))
HELLO = chunk("hello")
END = {"index": 0, "delta": {}, "finish_reason": "stop"}

ENDS = {
    "a finish reason and DONE": done(closed(HELLO, STOP, DONE)),
    "a finish reason alone": done(closed(HELLO, STOP)),
    "text and finish in one": done(closed(chunk("hello", finish="length")), reason="length"),
    "DONE without a reason": done(closed(HELLO, DONE), reason=None),
    "no end": truncated(closed(HELLO)),
    "no end in a whole body": truncated(framed(sse(HELLO))),
    "tool calls and DONE": done(closed(of(delta(tool_calls=[{"index": 1}])), DONE), "", None),
    "reasoning and DONE": done(closed(of(delta(reasoning_content="hm")), DONE), "", None),
    "no answer but DONE": failed(closed(DONE), says="without an answer", code="empty_answer"),
    "a role and DONE": failed(closed(ROLE, DONE), says="without", code="empty_answer"),
    "usage and DONE": failed(
        closed(of(usage=USAGE), DONE), says="without", code="empty_answer", usage=USAGE
    ),
    "comments and DONE": failed(
        OK + b": hi\n\n" + sse(DONE), says="without", code="empty_answer"
    ),
    "an empty whole body": failed(framed(b""), says="without", code="empty_answer"),
    "a body of length 0": failed(with_length(b""), says="without", code="empty_answer"),
    "comments in a whole body": failed(framed(b": hi\n\n"), says="without", code="empty_answer"),
    "an empty body that may be cut": truncated(OK, ""),
    **{
        f"DONE in white space {space!r}": done(OK + sse(HELLO) + space + b"\n\n", reason=None)
        for space in (b"data: [DONE] ", b"data:  [DONE]", b"data: [DONE]\t", b"data:[DONE]")
    },
    "DONE and an empty line of data": done(
        OK + sse(HELLO) + b"data: [DONE]\ndata:\n\n", reason=None
    ),
    "DONE with a name": done(OK + sse(HELLO) + named("done", DONE), reason=None),
    "DONE in quotes": truncated(closed(HELLO, b'"[DONE]"')),
    "DONE as a text": truncated(closed(chunk("[DONE]")), "[DONE]"),
    **{
        f"the word {word!r} as a reason": truncated(
            closed(chunk("hel", finish=word), chunk("lo", finish=word))
        )
        for word in ("null", "None", "", "NULL", " null ")
    },
    "a null reason and DONE": done(closed(chunk("hello", finish="null"), DONE), reason=None),
    "a null reason and a real one": done(closed(chunk("hello", finish="null"), STOP)),
    "a reason that is a number": truncated(closed(HELLO, of(delta(finish=1)))),
    "a reason on every chunk and DONE": done(
        closed(chunk("hel", finish="stop"), chunk("lo", finish="length"), DONE), reason="length"
    ),
    "a reason on every chunk in a whole body": done(
        framed(sse(chunk("hel", finish="stop"), chunk("lo", finish="stop")))
    ),
    "a reason on every chunk, cut": truncated(
        closed(chunk("hel", finish="stop"), chunk("lo", finish="stop")), reason="stop"
    ),
    "a reason on the first chunk, cut": truncated(
        closed(chunk("", finish="stop"), chunk("hel"), chunk("lo")), reason="stop"
    ),
    "a reason on the first chunk, whole body": truncated(
        framed(sse(chunk("", finish="stop"), HELLO)), reason="stop"
    ),
    "a reason on the first chunk and DONE": done(closed(chunk("", finish="stop"), HELLO, DONE)),
    "an error where every chunk has a reason": Shape(
        closed(chunk("a", finish="stop"), chunk("b", finish="stop"), b'{"error":"BOOM"}', DONE),
        "failed", "stop", "ab", says="BOOM",
    ),
    "an error after the finish": done(closed(HELLO, STOP, b'{"error":"BOOM"}', DONE)),
    "an error as a reason after the finish": done(closed(HELLO, STOP, of(delta(finish="error")))),
    "broken off after the finish": done(closed(HELLO, STOP, chunk("", finish="abort"), DONE)),
    "broken off": truncated(
        closed(HELLO, chunk("", finish="insufficient_system_resource"), DONE),
        reason="insufficient_system_resource", code="upstream_broke_off",
    ),
    **{
        f"broken off: {word}": truncated(
            closed(HELLO, chunk("", finish=word), DONE), reason=word, code="upstream_broke_off"
        )
        for word in ("ABORT", "aborted", "cancelled", "timeout")
    },
    **{
        f"the reason {word} is an error": Shape(
            closed(HELLO, chunk("", finish=word), DONE), "failed", word, "hello"
        )
        for word in ("ERROR", "network_error", "error_limit", "failed")
    },
    **{
        f"the reason {word} is a finish": done(closed(chunk("hello", finish=word)), reason=word)
        for word in ("content_filter", "sensitive", "error-free", "tool_calls", "MAX_TOKENS")
    },
    "text after DONE": done(closed(HELLO, STOP, DONE, chunk("more"), DONE)),
    "many events without an answer and DONE": failed(
        closed(*[ROLE] * 9, DONE), says="without", code="empty_answer"
    ),
    "an answer after many events without one": done(closed(*[ROLE] * 9, HELLO, DONE), reason=None),
    "a coding that tells no end, a reason on every chunk, cut": truncated(
        OK.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: identity\r\n\r\n")
        + sse(chunk("hel", finish="stop"), chunk("lo", finish="stop")), reason="stop"
    ),
    "broken off in a whole body": truncated(
        framed(sse(HELLO, chunk("", finish="abort"))), reason="abort", code="upstream_broke_off"
    ),
}  # fmt: skip

CHOICES = {
    "n ignored, DONE": done(closed(HELLO, STOP, DONE), n=2),
    "n ignored, whole body": done(framed(sse(HELLO, STOP)), n=2),
    "n ignored, with a length": done(with_length(sse(HELLO, STOP)), n=2),
    "n ignored, closed": done(closed(HELLO, STOP), n=2),
    "n, one finished, cut": truncated(framed(sse(HELLO, STOP), whole=False), n=2, reason="stop"),
    "n, one of two finished": truncated(
        closed(HELLO, chunk("b", index=1), STOP), n=2, reason="stop"
    ),
    "n, one of two finished, whole body": truncated(
        framed(sse(HELLO, chunk("b", index=1), STOP)), n=2, reason="stop"
    ),
    "n, one of two finished, DONE": truncated(
        closed(HELLO, chunk("b", index=1), STOP, DONE), n=2, reason="stop"
    ),
    "n, both finished": done(
        framed(sse(HELLO, chunk("b", index=1, finish="x"), STOP), whole=False), n=2
    ),
    "n, the other one first": done(
        closed(chunk("b", index=1), HELLO, chunk("", index=1, finish="x"), STOP), n=2
    ),
    "n in one event without numbers": done(
        closed(of({"delta": {"content": "hello"}}, {"delta": {"content": "b"}}),
               of({"finish_reason": "stop"}, {"finish_reason": "x"})), n=2
    ),
    "another choice that nobody asked for": done(
        closed(HELLO, chunk("b", index=1), STOP, chunk("", index=1, finish="x"))
    ),
    **{
        f"the number {index}{more}": done(indexed(index, *more))
        for index in ("null", '"0"', "1", "0.0", '"1"', "1.0", "-1", "true", '"x"', "1.5", "[]")
        for more in ([], [DONE])
    },
    "no number": done(closed(of({"delta": {"content": "hello"}}), of({"finish_reason": "stop"}))),
}  # fmt: skip

TEXTS = {
    "parts": done(closed(
        parts(THOUGHT), parts({"type": "text", "text": "hel"}), parts({"text": "lo"}), STOP
    )),
    "parts and a text": done(closed(
        parts(THOUGHT, {"type": "text", "text": "hel"}), chunk("lo"), STOP
    )),
    "parts that are nonsense": done(closed(
        HELLO, parts(None, 1, [], {}, {"text": 1}, {"type": []}, {"type": "x", "text": "no"}), STOP
    )),
    "parts that are texts": done(closed(parts("hel"), parts("lo"), STOP)),
    "one part": done(closed(of(delta(content={"type": "text", "text": "hello"})), STOP)),
    "a refusal": done(closed(of(delta(content=None, refusal="hello")), STOP)),
    "the old completions": done(closed(
        of({"index": 0, "text": "hel"}), of({"index": 0, "text": "lo", "finish_reason": "stop"})
    )),
    "a message": done(closed(
        of({"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"})
    )),
    "a message beside the deltas": done(closed(
        of({**delta(content="hel"), "message": {"content": "hel"}}),
        of({**delta(content="lo"), "message": {"content": "hello"}}),
        of({**delta(finish="stop"), "message": {"content": "hello"}}),
    )),
    "a message after the deltas": done(closed(
        HELLO, of({"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"})
    )),
    "content null": done(closed(of(delta(content=None)), HELLO, STOP)),
    "thoughts beside it": done(closed(
        of(delta(content=None, reasoning_content="hm")), HELLO, STOP
    )),
    "Workers AI": done(closed(b'{"response":"hel"}', b'{"response":"lo"}', DONE), reason=None),
    "the events named message": done(
        OK + b"".join(named("message", each) for each in (HELLO, STOP, DONE))
    ),
    "the events named otherwise": done(
        OK + b"".join(named("delta", each) for each in (HELLO, STOP, DONE))
    ),
    "invalid UTF-8 beside the reason": done(closed(
        HELLO, b'{"choices":[{"delta":{"content":""},"finish_reason":"stop"}],"x":"\xff"}'
    )),
    "a number that nobody reads beside the reason": done(closed(
        HELLO, b'{"choices":[{"index":0,"finish_reason":"stop"}],"x":' + b"1" * 5000 + b"}"
    )),
}  # fmt: skip

RESTS = {
    "one newline at a whole end": done(framed(WITH_LINE + LAST + b"\n")),
    "no newline at a whole end": done(framed(WITH_LINE + LAST)),
    "CR LF at a whole end": done(framed(WITH_LINE + LAST + b"\r\n")),
    "CR at a whole end": done(framed(WITH_LINE + LAST + b"\r")),
    "no newline, with a length": done(with_length(WITH_LINE + LAST)),
    "DONE alone at a whole end": done(framed(sse(HELLO) + b"data: [DONE]"), reason=None),
    "half an event at a whole end": truncated(framed(WITH_LINE + LAST[:-1]), "hel"),
    "an event at the end of a cut body": truncated(
        framed(WITH_LINE + LAST, whole=False), "hel"
    ),
    "DONE at an end that may be a cut": truncated(OK + sse(HELLO) + b"data: [DONE]"),
    "DONE and a newline there": truncated(OK + sse(HELLO) + b"data: [DONE]\n"),
    "DONE in a cut body": truncated(framed(sse(HELLO) + b"data: [DONE]", whole=False)),
    "half of DONE": truncated(OK + sse(HELLO) + b"data: [DONE"),
    "DONE after an error": failed(
        OK + sse(chunk("hel"), b'{"error":{"message":"BOOM"}}') + b"data: [DONE]", "hel"
    ),
    "an event at an end that may be a cut": truncated(OK + WITH_LINE + LAST, "hel"),
}  # fmt: skip

ERRORS = {
    "object": failed(closed(
        b'{"object":"error","message":"BOOM","type":"BadRequestError","code":400}', DONE
    )),
    "object after text": failed(
        closed(HALF, b'{"object":"error","message":"BOOM","code":500}', DONE), "half"
    ),
    "object whose message is one": failed(closed(
        b'{"object":"error","message":{"detail":[{"msg":"BOOM"}]}}', DONE
    )),
    "a named event": failed(
        OK + sse(HALF) + named("error", b'{"message":"BOOM","code":503}') + sse(DONE), "half"
    ),
    "a named event with a text": failed(
        OK + sse(HALF) + named("error", b"BOOM") + sse(DONE), "half"
    ),
    "a named event with a JSON text": failed(OK + named("error", b'"BOOM"')),
    "a named event with an error": failed(OK + named("error", BARE) + sse(DONE)),
    "a named event without words": failed(OK + named("error", b"") + sse(DONE), says="error"),
    "a named event in capitals": failed(OK + named("Error", b"BOOM") + sse(DONE)),
    "a named event before a finish": failed(OK + named("error", b"BOOM") + sse(HALF, DONE), "half"),
    "type": failed(closed(b'{"type":"error","message":"BOOM"}', DONE)),
    "type with an error": failed(closed(
        b'{"type":"error","error":{"type":"overloaded_error","message":"BOOM"}}', DONE
    )),
    "a text": failed(closed(b'{"error":"BOOM"}', DONE)),
    "an error in an error": failed(closed(b'{"error":{"error":{"message":"BOOM"}}}', DONE)),
    "errors": failed(closed(b'{"success":false,"errors":[{"message":"BOOM","code":1}]}', DONE)),
    "errors as texts": failed(closed(b'{"errors":["BOOM"]}', DONE)),
    "Groq": failed(closed(of(x_groq={"id": "r", "error": "BOOM"}), DONE)),
    "Groq with an object": failed(closed(of(x_groq={"error": {"message": "BOOM"}}), DONE)),
    "beside the choices": failed(closed(of(delta(), error={"message": "BOOM"}), DONE)),
    "beside a finish": Shape(
        closed(HALF, of(END, error={"message": "BOOM"}), DONE), "failed", "stop", "half",
        says="BOOM",
    ),
    "inside a choice": failed(
        closed(HALF, of({**delta(), "error": {"message": "BOOM"}}), DONE), "half"
    ),
    "inside a choice that failed": Shape(
        closed(of({**delta(finish="error"), "error": "BOOM"}), DONE), "failed", "error",
        says="BOOM",
    ),
    "a reason and no more": Shape(
        closed(HALF, of(delta(finish="error")), DONE), "failed", "error", "half"
    ),
    "in a list": failed(closed(HALF, b"[" + BARE + b"]", DONE), "half"),
    "in several lines": failed(OK + b"data: {\ndata: \"error\":\ndata: \"BOOM\"}\n\n" + sse(DONE)),
    "a code and words": failed(closed(HALF, b'{"code":500,"message":"BOOM"}', DONE), "half"),
    **{
        f"no JSON, as {why}": failed(closed(HALF, b'{"error": "BOOM%s"}' % words), "half")
        for why, words in {
            "quotes are not escaped": b', said "x"',
            "a backslash is none of an escape": rb" in C:\dir",
            "a tab stands in it": b"\tx",
            "its first line is all of the event": b"\n\nmore",
        }.items()
    },
    "no JSON, in an object": failed(
        closed(HALF, b'{"error": {"code": 500, "message": "BOOM, said "x""}}'), "half"
    ),
    "no JSON, by its type": failed(
        closed(HALF, b'{"type": "error", "error": {"message": "BOOM, said "x""}}'), "half"
    ),
    "no JSON, and nothing but quotes": failed(closed(HALF, b'{"error": ""BOOM" is none"}'), "half"),
    "no JSON that says that there is no error": truncated(
        closed(HALF, b'{"error": "", "choices": "x"y}'), "half"
    ),
    "a status and words": failed(closed(HALF, b'{"status":"error","message":"BOOM"}'), "half"),
    **{
        f"error {none.decode()} is none": done(closed(
            b'{"choices":[{"index":0,"delta":{"content":"hello"}}],"error":%s}' % none, STOP, DONE
        ))
        for none in (b"null", b"{}", b'""', b"false", b"[]", b"0")
    },
    "a code 0 beside the choices is none": done(closed(
        of(delta(content="hello"), error={"code": 0, "message": ""}), STOP, DONE
    )),
    "MiniMax's 0 is none": done(closed(HELLO, of(END, base_resp={"status_code": 0}), DONE)),
    "MiniMax": failed(closed(b'{"base_resp":{"status_code":1004,"status_msg":"BOOM"}}', DONE)),
    "a flag beside the words": failed(
        closed(HALF, b'{"error":true,"message":"BOOM"}', DONE), "half"
    ),
    "words under another name": failed(
        closed(HALF, b'{"error_code":336,"error_msg":"BOOM"}', DONE), "half"
    ),
    "an exception": failed(closed(b'{"__type":"ThrottlingException","message":"BOOM"}', DONE)),
    "a detail": failed(closed(HALF, b'{"detail":"BOOM"}', DONE), "half"),
    "a list of details": failed(closed(b'{"detail":[{"msg":"BOOM"}]}', DONE)),
    "words alone": failed(closed(b'{"code":"Internal","message":"BOOM"}', DONE)),
    "a code and words before the usage": failed(
        closed(HALF, b'{"code":500,"message":"BOOM"}', of(usage=USAGE), DONE), "half", usage=USAGE
    ),
    "a snapshot of another protocol": failed(
        closed(b'{"type":"response.failed","response":{"error":{"message":"BOOM"}}}', DONE)
    ),
    "a field": failed(OK + sse(HALF) + b"error: BOOM\n\n" + sse(DONE), "half"),
    "a field with an object": failed(OK + sse(HALF) + b'error: {"message":"BOOM"}\n\n', "half"),
    "a field after the finish": done(OK + sse(HELLO, STOP) + b"error: BOOM\n\n" + sse(DONE)),
    "words after the finish": done(closed(HELLO, STOP, b'{"message":"Bye.","detail":"x"}', DONE)),
    "a kind and words are none": done(
        closed(HELLO, b'{"type":"saved","message":"x"}', DONE), reason=None
    ),
    "a named event with a text at a whole end": failed(
        framed(sse(HALF) + b"event: error\ndata: BOOM"), "half"
    ),
    "an error at an end that may be a cut": failed(
        OK + sse(HALF) + b"data: " + BARE + b"\n", "half"
    ),
    "an error at the end of a cut body": failed(
        framed(sse(HALF) + b"data: " + BARE, whole=False), "half"
    ),
    "errors [] is none": done(closed(HELLO, of(END, errors=[]), DONE)),
    "Groq's null is none": done(closed(HELLO, of(END, x_groq={"error": None}), DONE)),
    "an error in a text is none": done(
        closed(chunk('{"error":"BOOM"}'), STOP), '{"error":"BOOM"}'
    ),
    "bare": failed(OK + BARE),
    "bare, a blank line": failed(OK + BARE + b"\n\n"),
    "bare, pretty": failed(OK + PRETTY),
    "bare, whole body": failed(with_length(PRETTY)),
    "bare, cut": failed(framed(BARE, whole=False)),
    "bare, in a list": failed(OK + b"[" + BARE + b"]"),
    "bare, and DONE": failed(OK + BARE + b"\n\n" + sse(DONE)),
    "bare, after text": failed(OK + sse(HALF) + BARE + b"\n\n", "half"),
    "bare, after text, and DONE": failed(OK + sse(HALF) + BARE + b"\n\n" + sse(DONE), "half"),
    "bare, in another shape": failed(OK + b'{"object":"error","message":"BOOM","code":400}'),
    "bare detail": failed(OK + b'{"detail":"BOOM"}'),
    "bare after the finish": done(OK + sse(HELLO, STOP) + BARE + b"\n\n" + sse(DONE)),
    "a bare text": failed(OK + b"BOOM", says="", code="upstream_not_a_stream"),
    "a page": failed(
        OK + b"<html>\n\n<h1>Log in</h1>\n", says="", code="upstream_not_a_stream"
    ),
    "a bare completion": failed(
        OK + b'{"choices":[{"message":{"content":"Hi"}}]}', says="", code="upstream_not_a_stream"
    ),
    "the start of an event": truncated(OK + b"dat", ""),
    "an event cut in its data": truncated(OK + b'data: {"error":"BO', ""),
}  # fmt: skip

USAGES = {
    "at the top": done(closed(HELLO, of(END, usage=USAGE), DONE), usage=USAGE),
    "in the choice": done(closed(HELLO, of({**END, "usage": USAGE}), DONE), usage=USAGE),
    "Groq's": done(closed(HELLO, of(END, x_groq={"usage": USAGE}), DONE), usage=USAGE),
    "alone": done(closed(HELLO, STOP, of(usage=USAGE), DONE), usage=USAGE),
    "and then an empty one": done(
        closed(HELLO, of(END, usage=USAGE), of(usage={}), DONE), usage=USAGE
    ),
    "and then null": done(closed(HELLO, of(END, usage=USAGE), of(usage=None), DONE), usage=USAGE),
    "and then nulls": done(
        closed(HELLO, of(END, usage=USAGE), of(usage={"total_tokens": None}), DONE), usage=USAGE
    ),
    "in two events": done(
        closed(of(delta(content="hello"), usage={"a": 1, "d": {"x": 1}}),
               of(END, usage={"b": 2, "d": {"y": 2}})),
        usage={"a": 1, "d": {"x": 1, "y": 2}, "b": 2},
    ),
    "in every event": done(
        closed(of(delta(content="hello"), usage={"a": 1}), of(END, usage={"a": 2})), usage={"a": 2}
    ),
    "numbers that are none": done(
        closed(HELLO, b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":'
               b'{"a":1e999,"b":NaN,"c":-Infinity,"d":[-1e999],"e":{"f":1E+400},"g":1}}', DONE),
        usage={"a": None, "b": None, "c": None, "d": [None], "e": {"f": None}, "g": 1},
    ),
    "huge numbers": done(
        closed(HELLO, of(END, usage={"a": 10**300})), usage={"a": 10**300}
    ),
    "a shape without an end": done(
        closed(HELLO, b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"a":1,'
               b'"b":' + b'{"b":' * 900 + b"1" + b"}" * 900 + b"}}"),
        usage={"a": 1, "b": {"b": {"b": {"b": {"b": {"b": {"b": None}}}}}}},
    ),
}  # fmt: skip

ARGUMENTS = '{"usage":{"a":1},"error":"no","finish_reason":"stop","text":"no"}'
CALL = {"index": 0, "function": {"name": "f", "arguments": ARGUMENTS}}
LATE = {**USAGE, "cost": 0.0001, "cost_details": {"upstream_inference_cost": None}}
BEAT = b": OPENROUTER PROCESSING\n\n"


def cumulative(text: str, count: int, finish: str | None = None) -> bytes:
    """Return a chunk with its role and the usage so far, as some send in each."""
    told = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    return of(delta(content=text, role="assistant", finish=finish), usage=told)


def without_reason(**members: Any) -> bytes:
    """Return a chunk whose choice has no member for a reason."""
    return of({"index": 0, "delta": members})


# As each server words the usual answer; where it does so is said in the name.
SERVERS = {
    "OpenAI: obfuscation, usage alone": done(closed(
        ROLE, of(delta(content="hello"), obfuscation="x9", usage=None), STOP, of(usage=USAGE), DONE
    ), usage=USAGE),
    "OpenAI: log probabilities": done(closed(
        of({**delta(content="hello"), "logprobs": {"content": [{"token": "no", "bytes": [1]}]}}),
        STOP, DONE,
    )),
    "OpenAI: sound and its transcript": done(closed(
        of(delta(audio={"id": "a", "transcript": "no"})), of(delta(audio={"data": "UklGRg=="})),
        STOP, DONE,
    ), ""),
    "OpenAI: calls of tools whose arguments speak of ends": done(closed(
        of(delta(tool_calls=[CALL])), of(delta(tool_calls=[CALL])),
        chunk("", finish="tool_calls"), DONE,
    ), "", "tool_calls"),
    "the same calls, cut": truncated(closed(of(delta(tool_calls=[CALL]))), ""),
    "Azure: filters before, beside and after": done(closed(
        of(prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
        ROLE, HELLO, of({"index": 0, "content_filter_offsets": {}, "content_filter_results": {}}),
        STOP, DONE,
    )),
    "Azure: filtered": done(closed(
        of(prompt_filter_results=[]), HELLO,
        of({**END, "finish_reason": "content_filter", "content_filter_results": {}}), DONE,
    ), reason="content_filter"),
    "OpenRouter: heartbeats, and usage beside an empty choice": done(
        OK + BEAT + BEAT + sse(HELLO) + BEAT + sse(STOP, of(delta(content=""), usage=LATE), DONE),
        usage=LATE,
    ),
    "OpenRouter: an error beside its reason": Shape(
        OK + BEAT + sse(HALF, of(delta(content="", finish="error"),
                                 error={"code": 502, "message": "BOOM"}), DONE),
        "failed", "error", "half", says="BOOM",
    ),
    "DeepSeek: thoughts first, and keep-alives": done(
        OK + b": keep-alive\n\n" + sse(of(delta(content=None, reasoning_content="hm")))
        + b": keep-alive\n\n" + sse(of(delta(content="hello", reasoning_content=None)), STOP, DONE)
    ),
    "Mistral: usage in the last chunk, unasked": done(
        closed(ROLE, HELLO, of(delta(content="", finish="stop"), usage=USAGE), DONE), usage=USAGE
    ),
    "Mistral: an error as a reason": Shape(
        closed(HALF, chunk("", finish="error"), DONE), "failed", "error", "half"
    ),
    "vLLM: usage in each chunk": done(closed(
        cumulative("hel", 1), cumulative("lo", 2), cumulative("", 2, "stop"), DONE
    ), usage=USAGE),
    "vLLM: usage in each chunk, cut": truncated(
        closed(cumulative("hel", 1), cumulative("lo", 2)), usage=USAGE
    ),
    "vLLM: an error, then DONE": failed(closed(
        HALF, b'{"error":{"message":"BOOM","type":"InternalServerError","code":500}}', DONE
    ), "half"),
    "Gemini's: role and usage in each chunk, no DONE": done(closed(
        cumulative("hel", 1), cumulative("lo", 2, "stop")
    ), usage=USAGE),
    "transformers: no reason until the end, no DONE": done(closed(
        without_reason(role="assistant"), without_reason(content="hello"),
        of(END, usage=USAGE)
    ), usage=USAGE),
    "transformers: n ignored": done(framed(sse(
        without_reason(content="hello"), of(END, usage=USAGE)
    )), usage=USAGE, n=2),
    "LiteLLM: its provider broke, no DONE": failed(closed(
        HALF, b'{"error":{"message":"BOOM","type":"None","param":"None","code":"500"}}'
    ), "half"),
    "LiteLLM: usage beside one empty choice": done(closed(
        HELLO, STOP, of({"index": 0, "delta": {}}, usage=USAGE), DONE
    ), usage=USAGE),
    "DashScope: the word null until the end, cut": truncated(closed(
        chunk("hel", finish="null"), chunk("lo", finish="null")
    )),
}  # fmt: skip

SHAPES = {**ENDS, **CHOICES, **TEXTS, **RESTS, **ERRORS, **SERVERS}
SHAPES |= {f"usage {name}": shape for name, shape in USAGES.items()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_ends_as_its_upstream_meant_it(shape: Shape) -> None:
    async with scripted(sends(shape.answer)) as up, running(upstream_url=up.url) as gate:
        url = await gate.ticket(ask(n=shape.n) if shape.n > 1 else None)
        shown = await gate.read(url + "&format=text")
        got, answer = await gate.read(url), await gate.completion(url)
    assert (got.end["state"], got.end["finish_reason"]) == (shape.state, shape.reason)
    usage = None if (got.end["usage"] or {}).get("estimated") else got.end["usage"]
    assert usage == shape.usage
    assert "failure" not in got.names or shape.state != "done"
    if shape.state != "done":
        assert shape.says in got.failure["message"]
        assert shape.code in {"", got.failure["code"]}
    texts = [each.data for each in shown.events if each.name not in (b"failure", b"end")]
    assert (answer["text"], b"".join(texts)) == (shape.text, shape.text.encode())
    assert {each.name for each in shown.events} <= {b"", b"failure", b"end"}
    assert {**got.end, "text": shape.text} == {k: answer[k] for k in [*got.end, "text"]}
    assert len(up.calls) == 1


TOLD = {
    "strict, DONE without a reason": truncated(closed(HELLO, DONE)),
    "strict, a reason and DONE": done(closed(HELLO, STOP, DONE)),
    "strict, a reason alone": done(closed(HELLO, STOP)),
    "strict, no answer but DONE": failed(closed(DONE), says="without", code="empty_answer"),
    "a reason that the preset calls broken off": truncated(
        closed(HELLO, chunk("", finish="Pause"), DONE), reason="Pause", code="upstream_broke_off"
    ),
    "one that all do": truncated(
        closed(HELLO, chunk("", finish="abort"), DONE), reason="abort", code="upstream_broke_off"
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", TOLD.values(), ids=TOLD)
async def test_a_preset_may_trust_done_less_and_know_further_reasons(shape: Shape) -> None:
    async with scripted(sends(shape.answer)) as up:
        told = {"url": up.url, "strict_end": True, "broken_off": ["pause"]}
        async with running(presets={"default": told}) as gate:
            got = await gate.read(url := await gate.ticket())
            answer = await gate.completion(url)
    assert (got.end["state"], got.end["finish_reason"]) == (shape.state, shape.reason)
    assert (answer["text"], answer["state"]) == (shape.text, shape.state)
    assert shape.state == "done" or shape.code in {"", got.failure["code"]}


PROOFS = {
    "reason": [ROLE, chunk("hel"), chunk("lo"), STOP, of(usage=USAGE), DONE],
    "DONE": [ROLE, chunk("hel"), chunk("lo"), DONE],
    "every": [chunk("hel", finish="stop"), chunk("lo", finish="stop"), DONE],
    "n": [chunk("a"), chunk("b", index=1), STOP, chunk("", index=1, finish="stop"), DONE],
    "error": [chunk("hel"), b'{"error":"BOOM"}', DONE],
    "broken off": [chunk("hel"), chunk("", finish="abort"), DONE],
}
PROVEN = {"reason": 4, "DONE": 4, "every": 3, "n": 4, "error": 9, "broken off": 9}


@pytest.mark.parametrize("how", ["closed", "cut"])
@pytest.mark.parametrize(
    ("name", "sent"), [(name, at) for name, each in PROOFS.items() for at in range(len(each) + 1)]
)
async def test_an_answer_cut_at_any_event_is_done_only_with_a_proof(
    name: str, sent: int, how: str
) -> None:
    body = sse(*PROOFS[name][:sent])
    answer = OK + body if how == "closed" else framed(body, whole=False)
    async with scripted(sends(answer)) as up, running(upstream_url=up.url) as gate:
        got = await gate.read(await gate.ticket(ask(n=2) if name == "n" else None))
    # One chunk with text and a reason is how many servers end: only a second one tells.
    alone = name == "every" and sent == 1
    assert (got.end["state"] == "done") == (sent >= PROVEN[name] or alone)
    assert got.data == PROOFS[name][:sent]


async def held(*answer: bytes, **changes: Any) -> Transcript:
    """Return what a viewer gets of an upstream that keeps its connection open after this."""

    async def script(call: Call) -> None:
        await call.send(*answer)
        await call.left.wait()

    given = {"upstream_stall": 0.5, **changes}
    async with scripted(script) as up, running(upstream_url=up.url, **given) as gate:
        return await gate.read(await gate.ticket())


@pytest.mark.parametrize("end", [b"data: [DONE] \n\n", b"data:\t[DONE]\n\n", b"data:[DONE]\n\n"])
async def test_done_in_white_space_ends_a_stream_whose_connection_stays_open(end: bytes) -> None:
    got = await held(OK, sse(HELLO), end, upstream_stall=30)
    assert got.end["state"] == "done"


async def test_a_reason_on_every_chunk_cuts_nothing_off_that_still_comes() -> None:
    async def script(call: Call) -> None:
        await call.send(OK)
        for letter in "0123456789":
            await call.send(sse(chunk(letter, finish="stop")))
            await asyncio.sleep(0.2)
        await call.send(sse(STOP, DONE))

    async with scripted(script) as up, running(upstream_url=up.url, upstream_stall=1.5) as gate:
        url = await gate.ticket()
        assert (await gate.read(url)).end["state"] == "done"
        assert (await gate.completion(url))["text"] == "0123456789"


async def test_usage_that_comes_a_while_after_the_finish_is_waited_for() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(HELLO, STOP))
        await asyncio.sleep(1)
        await call.send(sse(of(usage=USAGE), DONE))

    async with scripted(script) as up, running(upstream_url=up.url) as gate:
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.end["usage"]) == ("done", USAGE)


@pytest.mark.parametrize(
    ("sent", "state", "said"),
    [
        (sse(chunk("a", finish="stop"), chunk("b", finish="stop")), "done", ""),
        (sse(chunk("a", finish="stop"), chunk("b")), "stalled", "silent"),
        (BARE, "failed", "BOOM"),
        (sse(HALF) + PRETTY, "failed", "BOOM"),
        (sse(b'{"code":500,"message":"BOOM"}'), "failed", "BOOM"),
        (named("error", b"BOOM"), "failed", "BOOM"),
        (sse(HALF, chunk("", finish="abort")), "truncated", "abort"),
    ],
)
async def test_what_was_said_before_a_silence_is_its_end(
    sent: bytes, state: str, said: str
) -> None:
    got = await held(OK, sent)
    assert got.end["state"] == state
    assert not said or said in got.failure["message"]


async def test_a_flood_of_comments_ends_the_run() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(HELLO))
        while not call.left.is_set():
            await call.send(b": nothing to say\n\n" * 1000)

    async with scripted(script) as up, running(upstream_url=up.url, max_log=65536) as gate:
        got = await gate.read(await gate.ticket())
    assert (got.end["state"], got.failure["code"]) == ("truncated", "upstream_noise")
    assert not got.failure["retryable"]
    assert got.data == [HELLO]


MENDED = [408, 429, 500, 502, 503, 504, 529, "429", "503", None, 7, "x", "rate_limit_exceeded"]
MENDED += ["overloaded_error", "server_error", "InternalServerError", "UNAVAILABLE"]
NOT_MENDED = [400, 401, 402, 403, 404, 413, 422, "400", "401 Unauthorized", "insufficient_quota"]
NOT_MENDED += ["context_length_exceeded", "model_not_found", "invalid_api_key"]
NOT_MENDED += ["PERMISSION_DENIED", "invalid_request_error", "BadRequestError"]
RETRYABLE = [*((code, True) for code in MENDED), *((code, False) for code in NOT_MENDED)]


@pytest.mark.parametrize(("code", "again"), RETRYABLE)
@pytest.mark.parametrize("member", ["code", "type", "status"])
def test_an_error_that_asking_again_cannot_mend_is_not_retryable(
    member: str, code: Any, again: bool
) -> None:
    assert retryable({"message": "BOOM", member: code}) == again


def test_a_bill_outweighs_the_status_that_it_comes_with() -> None:
    assert not retryable({"code": 429, "type": "insufficient_quota"})
    assert retryable({"code": 429, "type": "invalid_request_error"})


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (b'{"error":{"message":"BOOM","code":400}}', False),
        (b'{"error":"BOOM","code":401}', False),
        (b'{"object":"error","message":"BOOM","code":400}', False),
        (b'{"error":{"message":"BOOM","code":"503"}}', True),
        (b'{"error":{"message":"BOOM"},"choices":[]}', True),
    ],
)
async def test_a_failure_says_whether_asking_again_may_mend_it(error: bytes, again: bool) -> None:
    async with scripted(sends(closed(error, DONE))) as up, running(upstream_url=up.url) as gate:
        got = await gate.read(await gate.ticket())
    assert (got.failure["message"], got.failure["retryable"]) == ("BOOM", again)


def test_an_error_is_one_also_when_it_is_read_from_the_log() -> None:
    """There it has the name that a browser gets."""
    seen = ChatState()
    for event in parse(b"event: upstream-error\ndata: BOOM\nid: 1-1\n\ndata: [DONE]\nid: 1-2\n\n"):
        seen.see(event)
    assert (seen.error, seen.finished) == ({"message": "BOOM"}, False)


UNBOUNDED = [{"a": "x" * 10_000}, {"x" * 10_000: 1}, {str(i): i for i in range(9999)}]


@pytest.mark.parametrize("members", UNBOUNDED, ids=["value", "name", "number"])
def test_a_usage_is_bounded_as_it_goes_into_every_answer(members: dict[str, Any]) -> None:
    seen = ChatState()
    for _ in range(3):
        seen.see(Event(of(END, usage={"total_tokens": 1, **members})))
    assert seen.usage is not None
    assert seen.usage["total_tokens"] == 1
    assert len(json.dumps(seen.usage)) < 3000


def test_choices_without_end_cost_no_more_than_their_bytes() -> None:
    seen, began = ChatState(), time.process_time()
    for number in range(50_000):
        seen.see(Event(b'{"choices":[{"index":%d,"finish_reason":"x"}]}' % number))
    assert time.process_time() - began < 5  # 0.6; a look at all of them each time took minutes.
    assert seen.finished


def test_a_usage_to_which_each_event_adds_is_bounded_as_a_whole() -> None:
    seen = ChatState()
    for number in range(90):
        more = {f"{number}": {f"{each}": "x" * 900 for each in range(90)}}
        seen.see(Event(of(END, usage={"total_tokens": number, **more})))
    assert seen.usage is not None
    assert seen.usage["total_tokens"] == 89
    assert len(json.dumps(seen.usage)) < 200_000
    for number in range(9000):
        seen.see(Event(of(END, usage={"details": {f"{number % 90}": {f"{number}": number}}})))
    assert len(json.dumps(seen.usage)) < 200_000


NAMES = [
    "choices",
    "index",
    "delta",
    "message",
    "content",
    "text",
    "type",
    "finish_reason",
    "usage",
]
NAMES += ["error", "errors", "x_groq", "object", "code", "status", "role", "refusal", "response"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "error", "a"]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(NAMES), each, max_size=5)
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), values, max_size=6), max_size=4))
def test_no_shape_of_an_event_breaks_anything(chunks: list[dict[str, Any]]) -> None:
    seen, text = ChatState(2), ChatText()
    for each in chunks:
        data = json.dumps(each).encode()
        seen.see(Event(data, b"error" if "code" in each else b""))
        seen.hear(data)
        assert isinstance(text.text_of(Event(data)), str)
    seen.end(framed=True)
    told = ending_events(natural_ending(seen, strayed=True) or Ending("truncated"), seen, 1)
    assert "NaN" not in str(told)
    assert "Infinity" not in str(told)
    assert isinstance(seen.retryable, bool)

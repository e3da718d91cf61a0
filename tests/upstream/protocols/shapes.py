"""Shapes: what an upstream sends and what becomes of it, for the tests of each protocol."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateway.config.presets import Preset
from gateway.runs.endings import Ending, ending_events, natural_ending
from gateway.sse import Event
from gateway.upstream.protocols.base import CompletionState, Protocol
from gateway.upstream.protocols.table import protocol_of
from tests.support import Call, Script, Served, Transcript, ask, running, scripted

LENGTH = 1 << 20  # Bytes that an event may have.


@dataclass(frozen=True)
class Shape:
    """What an upstream sends, and what becomes of it."""

    body: bytes
    state: str
    reason: str | None = None
    text: str = ""
    usage: Any = None  # None: none, or an estimate.
    says: str = ""  # In the failure's message.
    code: str = ""
    framed: bool = True  # Whether HTTP tells the end of the body.
    type: str = ""  # Of the content, where it is not the protocol's own.
    status: int = 200


def data(value: Any) -> bytes:
    """Return JSON as upstreams write it."""
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Any, name: str = "") -> bytes:
    """Return one server-sent event."""
    line = value if isinstance(value, bytes) else data(value)
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: " + line + b"\n\n"


def answer(shape: Shape, kind: str) -> bytes:
    """Return the response that carries a shape."""
    head = b"HTTP/1.1 %d X\r\nContent-Type: %s\r\n" % (shape.status, (shape.type or kind).encode())
    length = b"Content-Length: %d\r\n" % len(shape.body) if shape.framed else b""
    return head + length + b"Connection: close\r\n\r\n" + shape.body


@asynccontextmanager
async def before(sent: bytes, preset: dict[str, Any]) -> AsyncIterator[tuple[Served, list[Call]]]:
    """Run a gateway with a default preset before an upstream that sends this, then closes."""

    async def script(call: Call) -> None:
        await call.send(sent)

    async with scripted(script) as up:
        given = {"url": up.url, "api_key": "sk-of-the-tests", **preset}
        async with running(drain=0.2, presets={"default": given}) as gate:
            yield gate, up.calls


async def check(shape: Shape, kind: str, preset: dict[str, Any], body: Any = None) -> Transcript:
    """Play a shape through a real run; check its end, its text and `/completion`."""
    async with before(answer(shape, kind), preset) as (gate, calls):
        url = await gate.ticket(body or ask())
        shown = await gate.read(url + "&format=text")
        got, told = await gate.read(url), await gate.completion(url)
    assert (got.end["state"], got.end["finish_reason"]) == (shape.state, shape.reason), got.names
    usage = None if (got.end["usage"] or {}).get("estimated") else got.end["usage"]
    assert usage == shape.usage
    assert "failure" not in got.names or shape.state != "done"
    if shape.state != "done":
        assert shape.says in got.failure["message"]
        assert shape.code in {"", got.failure["code"]}
    texts = [each.data for each in shown.events if each.name not in (b"failure", b"end")]
    assert (told["text"], b"".join(texts).decode()) == (shape.text, shape.text)
    assert {each.name for each in shown.events} <= {b"", b"failure", b"end"}
    assert {**got.end, "text": shape.text} == {k: told[k] for k in [*got.end, "text"]}
    assert len(calls) == 1
    return got


def read(
    preset: Preset, *pieces: bytes, framed: bool, whole: bool = True
) -> tuple[CompletionState, list[Event], str]:
    """Return what a protocol makes of a body in these pieces: its state, events and text.

    One that is not `whole` breaks off.
    """
    protocol = protocol_of(preset)
    frames, seen, text = protocol.frames(preset, LENGTH), protocol.completion(), protocol.text()
    events: list[Event] = []
    for piece in pieces:
        for each in frames.feed(piece):
            if not seen.closed:
                seen.see(each)
                events.append(each)
    if whole and not seen.closed:
        for each in frames.rest() if framed else []:
            if protocol.is_whole(each):
                seen.see(each)
                events.append(each)
        seen.end(framed=framed)
    frames.abandon()
    seen.hear(frames.strays)
    seen.look_back()
    for each in frames.rest():
        seen.suspect(each)
    return seen, events, "".join(text.text_of(each) for each in events)


def state(seen: CompletionState) -> str:
    """Return the state of a stream that ends with this."""
    if seen.error is not None:
        return "failed"
    ending = natural_ending(seen, strayed=False)
    return ending.state if ending else "truncated"


def survives(protocol: Protocol, events: Iterable[Event], seen: CompletionState) -> None:
    """Check that no events break whoever reads them, and that what is told of them is JSON."""
    text = protocol.text()
    for each in events:
        assert isinstance(protocol.closes(each), bool)
        assert isinstance(text.text_of(each), str)
        seen.see(each)
        seen.hear(each.data)
        seen.suspect(each)
    seen.end(framed=True)
    ending = natural_ending(seen, strayed=True) or Ending("truncated")
    told = str(ending_events(ending, seen, 1))
    assert "NaN" not in told
    assert "Infinity" not in told
    assert isinstance(seen.retryable, bool)


def sends(answer: bytes) -> Script:
    """Return the script of an upstream that sends this, then closes."""

    async def script(call: Call) -> None:
        await call.send(answer)

    return script

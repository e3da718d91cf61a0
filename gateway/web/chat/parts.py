"""Parts: an answer as the parts of a UI message stream, whoever's it was. Pure.

A function of the log's events from the start of the answer: any replica makes the same parts of
them, under the same ids, wherever it is cut. Of the parts that come of one event the last has the
event's id: who goes on from there lacks none.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from gateway.eventlog.entries import EventId
from gateway.sse import OURS, Event, Parser, encode, without_id
from gateway.upstream.protocols.api import json_of
from gateway.upstream.protocols.problems import problem_of
from gateway.upstream.protocols.readings import (
    Called,
    CallOver,
    Given,
    Key,
    Noted,
    Reading,
    Readings,
    Said,
    Source,
    Thought,
    ThoughtOver,
    finish_of,
)

DONE = without_id(b"[DONE]")

_BROKEN = "The answer broke off before it was whole."
_NO_JSON = "The model wrote no valid JSON for this tool."

Parts = list[dict[str, Any]]


class Call:
    """A call of a tool whose input is not whole."""

    def __init__(self, call_id: str, name: str) -> None:
        self.named = {"toolCallId": call_id, "toolName": name}
        self.given: list[str] = []

    def whole(self, noted: Noted) -> dict[str, Any]:
        """Return the part that has all of its input."""
        told = {**self.named, **({"providerMetadata": noted} if noted else {})}
        text = "".join(self.given)
        try:
            given = json.loads(text or "{}")
            json.dumps(given, allow_nan=False)  # A page could not read what this refuses.
        except (ValueError, RecursionError):
            return {"type": "tool-input-error", **told, "input": text, "errorText": _NO_JSON}
        return {"type": "tool-input-available", **told, "input": given}


class UiParts:
    """Frames of a log in, parts out, but those that a caller has who was at `after`."""

    def __init__(
        self,
        stream_id: str,
        message_id: str,
        readings: Callable[[], Readings],
        after: EventId | None = None,
    ) -> None:
        self.state = ""  # What the stream ended with.
        self.void = False  # Whether what was sent is void, and cannot be taken back.
        self._stream_id = stream_id
        self._message_id = message_id
        self._make = readings
        self._after = after
        self._parser = Parser(limit=sys.maxsize)  # A large event comes in slices.
        self._begun = False
        self._had_some = False  # Of what `after` is an event of.
        self._failure: dict[str, Any] | None = None
        self._begin()

    def _begin(self) -> None:
        self._readings = self._make()
        self._count = 0  # Parts that have an id of ours.
        self._open: tuple[str, Key, str] | None = None  # Kind, block and id of what goes on.
        self._calls: dict[Key, Call] = {}
        self._call_ids: set[str] = set()
        self._urls: set[str] = set()

    def start(self) -> bytes:
        """Return what an answer begins with, for who has nothing of it."""
        return b"" if self._after else self._started()

    def _started(self) -> bytes:
        return _framed([{"type": "start", "messageId": self._message_id}, {"type": "start-step"}])

    def frames(self, frames: bytes) -> bytes:
        """Return the parts of frames; of what comes after they are void nothing."""
        told: list[bytes] = []
        for event in self._parser.feed(frames):
            parts = self._of(event)
            if self.void:
                break
            if not self._had(event) and parts:
                if self._after:
                    told += [] if self._had_some else [self._started()]
                    self._after = None
                self._begun = True
                told.append(_framed(parts, event.id))
        return b"".join(told)

    def _had(self, event: Event) -> bool:
        """Whether the caller has what came of an event; who was at another answer has nothing."""
        if self._after is None:
            return False
        place = EventId.parse(event.id.decode())
        had = place is not None and place <= self._after
        self._had_some |= had
        return had

    def _of(self, event: Event) -> Parts:
        if event.name not in OURS:
            return [part for each in self._readings.of(event) for part in self._read(each)]
        if event.name == b"failure":
            self._failure = json.loads(event.data)
        elif event.name == b"end":
            told = json.loads(event.data)
            self.state = told["state"]
            return self._end(told.get("finish_reason"))
        else:
            self.void = self._begun or self._had_some
            self._begin()
        return []

    def _read(self, reading: Reading) -> Parts:
        match reading:
            case Said(text, block):
                return self._add("text", block, text)
            case Thought(text, block):
                return self._add("reasoning", block, text)
            case ThoughtOver(block, noted):
                return self._thought_over(block, noted)
            case Called(key, name, call_id):
                return self._called(key, name, call_id)
            case Given(key, text) if key in self._calls:
                call = self._calls[key]
                call.given.append(text)
                told = {"toolCallId": call.named["toolCallId"], "inputTextDelta": text}
                return [{"type": "tool-input-delta", **told}]
            case CallOver(key, noted) if key in self._calls:
                return [self._calls.pop(key).whole(noted)]
            case Source(url, title) if url not in self._urls:
                self._urls.add(url)
                told = {"sourceId": self._next_id(), "url": url}
                return [{"type": "source-url", **told, **({"title": title} if title else {})}]
        return []

    def _add(self, kind: str, block: Key, text: str) -> Parts:
        parts: Parts = []
        if self._open is None or self._open[:2] != (kind, block):
            parts = self._close()
            self._open = (kind, block, self._next_id())
            parts.append({"type": f"{kind}-start", "id": self._open[2]})
        return [*parts, {"type": f"{kind}-delta", "id": self._open[2], "delta": text}]

    def _close(self, noted: Noted | None = None) -> Parts:
        if self._open is None:
            return []
        (kind, _, part_id), self._open = self._open, None
        more = {"providerMetadata": noted} if noted else {}
        return [{"type": f"{kind}-end", "id": part_id, **more}]

    def _thought_over(self, block: Key, noted: Noted) -> Parts:
        """Close what is being thought; what is shown to nobody is a part all the same."""
        parts: Parts = []
        if self._open is None or self._open[0] != "reasoning":
            if not noted:
                return []
            parts = self._close()
            self._open = ("reasoning", block, self._next_id())
            parts.append({"type": "reasoning-start", "id": self._open[2]})
        return parts + self._close(noted)

    def _called(self, key: Key, name: str, call_id: str) -> Parts:
        if not call_id or call_id in self._call_ids:
            call_id = self._next_id()
        self._call_ids.add(call_id)
        call = self._calls[key] = Call(call_id, name)
        return [*self._close(), {"type": "tool-input-start", **call.named}]

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._stream_id}-{self._count}"

    def _end(self, reason: str | None) -> Parts:
        if self.state == "cancelled":
            return [{"type": "abort"}]
        if self.state != "done":
            message = problem_of(self._failure).message if self._failure else ""
            return [{"type": "error", "errorText": message or _BROKEN}]
        parts = self._close() + [call.whole({}) for call in self._calls.values()]
        finish = finish_of(reason)
        if finish == "stop" and self._call_ids:
            finish = "tool-calls"  # Some have no word of their own for it.
        return [*parts, {"type": "finish-step"}, {"type": "finish", "finishReason": finish}]


def _framed(parts: Parts, event_id: bytes = b"") -> bytes:
    data = [json_of(each) for each in parts]
    last = encode(data[-1], event_id) if event_id else without_id(data[-1])
    return b"".join([*map(without_id, data[:-1]), last])

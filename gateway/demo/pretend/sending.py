"""Sending: an answer's events at their pace, and what goes wrong with them on the way."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from gateway.demo.pretend.base import Answer, Event, Terms
from gateway.demo.pretend.faults import Fault
from gateway.demo.pretend.text import Object
from gateway.sse import comment

_CUTS = ("cut", "cuts")


async def paced(answer: Answer, terms: Terms) -> AsyncIterator[Event]:
    """Yield an answer's events at the asked pace, up to a fault of the answer itself."""
    (fault, number, _), told, events = terms.fault, 0, answer.events()
    for index in count():
        if fault == "queued" and index == answer.before_queue:
            await asyncio.sleep(number)
        event = next(events, None)
        if event is None:
            return
        if fault in ("stall", "error", "failed") and told >= number:
            if fault == "stall":
                await asyncio.Event().wait()  # Until whoever reads this goes.
            for each in answer.broken(fault, index):
                yield each
            return
        if event.tells:
            await asyncio.sleep(terms.interval)
        yield event
        told += event.tells


@dataclass(frozen=True, slots=True)
class Line:
    """One connection, by which events are sent to one client."""

    framed: Callable[[Event], bytes]
    hang_up: Callable[[], None]
    fault: Fault
    call: Object  # What is remembered of its request.

    async def blocks(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """Yield the bytes of these events, up to a fault of the connection."""
        fault, number, told, index, cut = self.fault.name, self.fault.number, 0, 0, False
        async with aclosing(events) as given:  # type: ignore[type-var]
            async for event in given:
                block = self._block(index, event)
                if fault in (*_CUTS, "close") and told >= number:
                    cut = fault in _CUTS
                    if cut:
                        yield block[: len(block) // 2]
                    break
                if fault == "no-done" and event.last:
                    break
                yield block
                told += event.tells
                index += 1
                self.call["served"] = told
        self.call["closed"] = "finished"
        if cut:
            self.hang_up()
            await asyncio.Event().wait()

    def _block(self, index: int, event: Event) -> bytes:
        """Return one event as the fault wants it written."""
        fault = self.fault.name
        if fault == "named":
            event = event._replace(name={2: b"open", 4: b"end"}.get(index, b"chunk"))
        block = self.framed(event)
        block += comment(b"keep-alive") + b"\n" if fault == "comments" else b""
        return block.replace(b"\n", b"\r\n") if fault == "crlf" else block


async def gzipped(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the body compressed, flushed with each of its parts."""
    squeeze = zlib.compressobj(wbits=31)
    async for block in body:
        yield squeeze.compress(block) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    yield squeeze.flush()

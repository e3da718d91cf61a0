"""Composite: a response that carries a user's channel and several of their streams at once.

Nothing here reads or resumes a log: the parts are viewers like any other. Their events are sent one
after another under names that tell whose they are, each with the positions in all of them as its
id.
"""

import asyncio

from starlette.types import Receive, Scope, Send

from gateway.eventlog.fanout import Fanout
from gateway.web.event_stream import MUCH, left
from gateway.web.parts import Part, Parts
from gateway.web.positions import Positions
from gateway.web.responses import STREAM_HEADERS


class CompositeStream:
    """One viewer's response, until it leaves or is sent on; streams that end do not end it."""

    status_code = 200

    def __init__(self, fanout: Fanout, parts: Parts, positions: Positions, first: bytes) -> None:
        self.raw_headers = list(STREAM_HEADERS)
        self._fanout = fanout
        self._parts = parts
        self._positions = positions
        self._first = first
        self._at_once = 0  # Bytes sent since others had their turn.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames as they come; a viewer who leaves or does not read ends it."""
        extensions, parts = scope.get("extensions", {}), self._parts
        if parts.channel.viewer is not None:  # It hears of all that is sent, and so of the time.
            parts.channel.viewer.abort = extensions.get("gateway.abort")
        closed = extensions.get("gateway.closed")
        leaving = None if closed else asyncio.create_task(left(receive, parts.leave))
        if closed:
            closed.add(parts.leave)
            scope["headers"].clear()  # Nobody asks any more; a browser's are some kilobytes.
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(send)
        finally:
            if closed:
                closed.discard(parts.leave)
            if leaving:
                leaving.cancel()
            await parts.close()

    async def _send_all(self, send: Send) -> None:
        await self._send(self._parts.channel, self._first, send)
        self._parts.begin()
        while part := await self._parts.next():
            await self._show(part, send)
            self._parts.back(part)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _show(self, part: Part, send: Send) -> None:
        """Send a part's next slice, with the rest of an event that it is cut in."""
        while True:
            chunk = await part.take(self._fanout)
            await self._send_renamed(part, chunk, send)
            if part.whole or part.finished:
                return
            await part.more(self._fanout)

    async def _send_renamed(self, part: Part, chunk: bytes, send: Send) -> None:
        """Send a slice, in parts: of small events the ids make many times as much."""
        pieces, size = list[bytes](), 0
        for piece in part.renamed(chunk, self._positions):
            pieces.append(piece)
            size += len(piece)
            if size >= MUCH:
                await self._send(part, b"".join(pieces), send)
                pieces, size = [], 0
        if size:
            await self._send(part, b"".join(pieces), send)

    async def _send(self, part: Part, body: bytes, send: Send) -> None:
        viewers = {each.viewer for each in (self._parts.channel, part) if each.viewer}
        for viewer in viewers:
            viewer.sending()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        for viewer in viewers:
            viewer.sent()
        self._at_once += len(body)
        if self._at_once >= MUCH:  # Of all parts: a socket that takes it must not keep the others.
            self._at_once = 0
            await asyncio.sleep(0)

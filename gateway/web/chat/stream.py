"""Stream: one viewer's answer as a UI message stream, from its start to its end.

These clients take the close of a connection for an end. So what is cut off here (a replica leaves,
or the answer was begun anew) never ends cleanly: the connection is broken off, and they ask again.
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from gateway.eventlog.fanout import Fanout
from gateway.runs.redemption import Opened
from gateway.sse import HEARTBEAT
from gateway.web.chat.parts import DONE, UiParts
from gateway.web.event_stream import MUCH, EventStream, made
from gateway.web.responses import STREAM_HEADERS, Headers

_HEADERS: Headers = [*STREAM_HEADERS, (b"x-vercel-ai-ui-message-stream", b"v1")]


class UiStream(EventStream):
    """One viewer's response; `shown` is called once they have all of it."""

    __slots__ = ("_parts", "_shown")

    def __init__(
        self,
        fanout: Fanout,
        opened: Opened,
        parts: UiParts,
        shown: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(fanout, opened, b"")
        self.raw_headers = list(_HEADERS)
        self._parts = parts
        self._shown = shown

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send_parts(send)
        if self._parts.state:
            if not self.viewer.gone:
                await self._shown()
            await send({"type": "http.response.body", "body": DONE, "more_body": False})
        elif closed := scope.get("extensions", {}).get("gateway.closed"):
            await closed.hang_up()
        else:
            raise ConnectionAbortedError("The answer is not whole.")  # Its server closes then.

    async def _send_parts(self, send: Send) -> None:
        viewer, parts = self.viewer, self._parts
        body = parts.start()  # At once: it flushes the head, and a page shows that it is awaited.
        while True:
            if body:
                viewer.sending()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                viewer.sent()
            elif viewer.lagging:
                await self.fanout.turn(viewer)
            elif not viewer.has_more:
                await viewer.wait()
            if viewer.finished or parts.void or parts.state:
                return
            body = viewer.take()
            if body and body != HEARTBEAT:
                taken, body = body, await made(parts.frames, body, self.fanout.work)
                if len(taken) >= MUCH:
                    await asyncio.sleep(0)

"""Heartbeats: as events, for pages that have to see for themselves that a connection lives.

Nothing in a stream knows of it: its own heartbeat is replaced on the way out, of whoever asked.
"""

from starlette.types import Message, Receive, Scope, Send

from gateway.sse import HEARTBEAT, HEARTBEAT_EVENT
from gateway.web.endpoint import AnyResponse


class HeartbeatEvents:
    """A stream whose heartbeats are events without an id, so a reader's position stays."""

    def __init__(self, stream: AnyResponse) -> None:
        self.raw_headers = stream.raw_headers
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""

        async def sending(message: Message) -> None:
            if "body" in message:
                message["body"] = _shown(message["body"])
            await send(message)

        extensions = dict(scope.get("extensions", {}))
        if write := extensions.get("gateway.write"):
            extensions["gateway.write"] = lambda chunk: write(_shown(chunk))
        await self._stream({**scope, "extensions": extensions}, receive, sending)


def _shown(body: bytes) -> bytes:
    """Return a part of a stream; no other line than a heartbeat is a colon alone."""
    if body == HEARTBEAT or body.endswith(b"\n" + HEARTBEAT):
        return body.removesuffix(HEARTBEAT) + HEARTBEAT_EVENT
    return body

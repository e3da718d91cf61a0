"""HTTP/1.0: an application for callers who know no chunks; the close ends a long body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


async def without_chunks(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application for such a caller."""
    cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
    endless = False

    async def sending(message: Message) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = all(name.lower() != b"content-length" for name, _ in message["headers"])
            if endless:
                cycle.chunked_encoding = cycle.keep_alive = False
        elif endless and scope["method"] != "HEAD":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, sending)

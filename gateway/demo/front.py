"""Front: what stands before the demo's replicas, as nginx does elsewhere.

Everything goes to the replica that is the first to live. Where that dies its callers are cut off,
as a proxy cuts them off, and an EventSource comes back by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.auth.base import Caller
from gateway.demo.page import Sessions
from gateway.demo.plain import PLAIN
from gateway.demo.replicas import Replicas
from gateway.errors import Unavailable
from gateway.sse import retry
from gateway.web.requests import cookies_of

_OF_ONE_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_COME_BACK = retry(1000) + b"\n"

Message = dict[str, Any]


@dataclass(slots=True)
class _Line:
    """A connection that is open, what it is for, and what cuts it."""

    path: str
    names: list[str]  # What its URL names: a ticket, or an ask of the plain loop.
    subject: str | None  # Whose channel it is.
    cut: Callable[[], None]


class Front:
    """An ASGI application that asks the first replica, and the next where that is gone.

    `token` is the service token by which it pushes, `prefix` the path that the gateway is under.
    """

    def __init__(self, replicas: Replicas, sessions: Sessions, token: str, prefix: str) -> None:
        self._replicas = replicas
        self._sessions = sessions
        self._token = token
        self._prefix = prefix
        self._lines: list[_Line] = []
        # A connection each: one that was kept open may be that of a replica that is dead by now.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    def cut(self, ticket: str) -> int:
        """Cut the connections to a ticket's stream, or to what a plain loop asks; say how many."""
        paths = (f"{self._prefix}/stream", PLAIN)
        return _cut([e for e in self._lines if e.path in paths and ticket in e.names])

    def cut_channel(self, subject: str) -> int:
        """Cut the connections to a user's channel; say how many."""
        return _cut([each for each in self._lines if each.subject == subject])

    async def push(
        self, subject: str, event: str | None, data: Any, *, message_id: str | None = None
    ) -> str:
        """Store a message in a user's channel, as an app's server does; raises Unavailable."""
        message = {"event": event, "data": data, "message_id": message_id}
        headers = {"Authorization": f"Bearer {self._token}"}
        path = f"{self._prefix}/users/{subject}/events"
        for replica in self._replicas.listening:
            with suppress(httpx.TransportError):
                url, told = replica.url + path, {k: v for k, v in message.items() if v is not None}
                answer = await self._http.post(url, json=told, headers=headers)
                if answer.is_success:
                    return str(answer.json()["id"])
        raise Unavailable("store_unavailable", reason="no replica took the message")

    def kill(self) -> dict[str, Any] | None:
        """Kill the replica that has everything; return which, None where it is the only one."""
        killed = self._replicas.kill()
        return None if killed is None else killed.told()

    def told(self) -> list[dict[str, Any]]:
        """Return what there is to be said of each replica, the one that has everything first."""
        return [each.told() for each in self._replicas.living]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        line = await self._line(scope)
        self._lines.append(line)
        try:
            await self._pass(line, scope, _Body(receive), send)
        finally:
            self._lines.remove(line)

    async def _line(self, scope: Scope) -> _Line:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        names = query.get("ticket", []) + query.get("ask", [])
        cut = scope.get("extensions", {}).get("gateway.abort") or _nothing
        subject = None
        if scope["path"] == f"{self._prefix}/events":
            request = Request(scope)
            caller = Caller(request.headers, cookies_of(request))
            subject = (await self._sessions.find(caller)).subject
        return _Line(scope["path"], names, subject, cut)

    async def _pass(self, line: _Line, scope: Scope, body: "_Body", send: Send) -> None:
        answer = await self._answer(scope, body)
        if answer is None:
            await _nobody(scope)(scope, body.receive, send)
            return
        pouring = asyncio.create_task(_poured(answer, send))
        gone = asyncio.create_task(body.gone())
        try:
            await asyncio.wait({pouring, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pouring.done() and not pouring.result():
                line.cut()
        finally:
            for task in (pouring, gone):
                task.cancel()
            await asyncio.wait({pouring, gone})
            await answer.aclose()

    async def _answer(self, scope: Scope, body: "_Body") -> httpx.Response | None:
        """Return the head of an answer, None where nobody gives one."""
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = [each for each in scope["headers"] if each[0] not in _OF_ONE_HOP]
        has_body = {b"content-length", b"transfer-encoding"} & dict(scope["headers"]).keys()
        for replica in self._replicas.listening:
            content = body.parts() if has_body else None
            request = httpx.Request(
                scope["method"], replica.url + path, headers=headers, content=content
            )
            with suppress(httpx.TransportError):
                return await self._http.send(request, stream=True)
            if body.begun:
                return None  # Whoever died may have done what was asked for.
        return None


def _cut(lines: list[_Line]) -> int:
    for each in lines:
        each.cut()
    return len(lines)


def _nothing() -> None:
    """Cut nothing: another server than ours lends no way to."""


class _Body:
    """The rest of a request, which can be read once."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self._over = False
        self.begun = False

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield it."""
        self.begun = True
        while not self._over:
            message = await self.receive()
            self._over = not message.get("more_body", False)
            yield message.get("body", b"")

    async def gone(self) -> None:
        """Return once the caller has gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def _poured(answer: httpx.Response, send: Send) -> bool:
    """Send an answer on as it comes; return False where it broke off."""
    headers = [each for each in answer.headers.raw if each[0].lower() not in _OF_ONE_HOP]
    start: Message = {"type": "http.response.start", "status": answer.status_code}
    await send(start | {"headers": headers})
    try:
        async for part in answer.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except httpx.TransportError:
        return False
    await send({"type": "http.response.body", "body": b""})
    return True


def _nobody(scope: Scope) -> Any:
    """Return what is said where no replica answers; an EventSource is told to come back."""
    if b"text/event-stream" in dict(scope["headers"]).get(b"accept", b""):
        return Response(_COME_BACK, media_type="text/event-stream")
    problem = {"type": "about:blank", "title": "No replica answers", "code": "no_replica"}
    return JSONResponse(problem, 502, media_type="application/problem+json")

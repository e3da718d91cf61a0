"""Page: the demo's, which stands where an app of one's own would: it sets the session cookie.

Whoever opens it is let in, as somebody new. So it is for a loopback, or for a secret that no other
app signs with.
"""

import secrets
import time
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.base import Caller, Finding
from gateway.errors import Rejected, Unavailable
from gateway.web.requests import cookies_of

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = (
    *("demo.html", "demo.css", "demo.js", "plain.js", "second.js", "spoken.js", "story.js"),
    *("many.js", "tiles.js", "session.js", "snippets.js", "gateway.js"),
)
NEWS: Final = (
    "Your export is ready.",
    "Anna answered your comment.",
    "Job 7 is done.",
    "Your credit is low.",
)  # What an app tells its users.


class Sessions(Protocol):
    """Makes the cookie of a session, and reads it again."""

    cookie: str

    def sign(self, subject: str) -> str:
        """Return the cookie's value for a subject."""

    async def find(self, caller: Caller) -> Finding:
        """Return whose session a request shows."""


class Replica(Protocol):
    """The gateway that is in this process."""

    def cut(self, ticket: str) -> int:
        """Cut off the viewers of a ticket's stream; raises Rejected."""

    def cut_channel(self, subject: str) -> int:
        """Cut off the viewers of a user's channel."""

    async def push(
        self, subject: str, event: str | None, data: Any, *, message_id: str | None = None
    ) -> str:
        """Store a message in a user's channel; raises Rejected and Unavailable."""


@runtime_checkable
class Group(Replica, Protocol):
    """Replicas of which one may be killed."""

    def kill(self) -> dict[str, Any] | None:
        """Kill the one that has everything; return which, None where it is the only one."""

    def told(self) -> list[dict[str, Any]]:
        """Return number, pid and whether it listens of each, the one that has everything first."""


def page(
    sessions: Sessions, replica: Replica | None = None, prefix: str = "", *, preset: str = ""
) -> list[BaseRoute]:
    """Return the page's routes.

    Without a replica the page says that it can neither cut nor push: that is done elsewhere. It is
    where an app would be, and `prefix` is the path that the gateway has beside it. With a `preset`,
    of responses, it asks that one, and the pretend upstream as a plain loop does.
    """
    own = _Page(sessions, replica, prefix, preset)
    return [
        Route("/", own.file, methods=["GET", "POST"]),
        Route("/static/{file}", own.file),
        Route("/demo/cut", own.cut, methods=["POST"]),
        Route("/demo/push", own.push, methods=["POST"]),
        Route("/demo/kill", own.kill, methods=["POST"]),
        Route("/demo/replicas", own.replicas),
    ]


class _Page:
    """What answers its URLs."""

    def __init__(
        self, sessions: Sessions, replica: Replica | None, prefix: str, preset: str
    ) -> None:
        self._sessions = sessions
        self._replica = replica
        told = {"gateway": prefix, "preset": preset, "kill": "yes" if self._group else ""}
        self._told = {f'data-{name}=""': f'data-{name}="{is_}"' for name, is_ in told.items()}

    @property
    def _group(self) -> Group | None:
        return self._replica if isinstance(self._replica, Group) else None

    async def file(self, request: Request) -> Response:
        """Serve one of the page's files, with a session for who has none."""
        name = request.path_params.get("file", "demo.html")
        if name not in FILES:
            return Response(status_code=404)
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        # The page posts where its cookie is refused: signed by an earlier demo, its secret gone.
        if self._sessions.cookie not in cookies_of(request) or request.method == "POST":
            headers["Set-Cookie"] = self._cookie(request)
        if name == "demo.html":
            text = (STATIC / name).read_text("utf-8")
            for nothing, told in self._told.items():
                text = text.replace(nothing, told, 1)
            return HTMLResponse(text, headers=headers)
        return FileResponse(STATIC / name, headers=headers)

    def _cookie(self, request: Request) -> str:
        """Return the Set-Cookie of somebody new."""
        value = self._sessions.sign(f"demo-{secrets.token_hex(6)}")
        # The header is the client's to forge, and all it can spoil is its own cookie.
        secure = "; Secure" if request.headers.get("x-forwarded-proto") == "https" else ""
        return f"{self._sessions.cookie}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"

    async def cut(self, request: Request) -> Response:
        """Cut off who watches a ticket; without one, who watches the caller's channel."""
        if self._replica is None:
            return await self._elsewhere(request)
        ticket = request.query_params.get("ticket")
        try:
            if ticket is not None:
                return JSONResponse({"closed": self._replica.cut(ticket)})
            return JSONResponse({"closed": self._replica.cut_channel(await self._subject(request))})
        except Rejected:
            return JSONResponse({"closed": 0})

    async def push(self, request: Request) -> Response:
        """Push news to the caller, as an app's server would to any of its users."""
        if self._replica is None:
            return await self._elsewhere(request)
        name = f"news-{secrets.token_hex(3)}"
        news = {"id": name, "text": secrets.choice(NEWS), "at": int(time.time() * 1000)}
        try:
            subject = await self._subject(request)
            stored = await self._replica.push(subject, None, news, message_id=name)
        except (Rejected, Unavailable) as error:
            told = {"code": error.code, "title": error.title, "detail": error.detail}
            return JSONResponse(told, error.status)
        return JSONResponse({"id": stored, "message_id": name}, 202)

    async def kill(self, request: Request) -> Response:
        """Kill the replica that has everything."""
        if self._group is None:
            return await self._elsewhere(request)
        killed = self._group.kill()
        return JSONResponse({"killed": killed}, 200 if killed else 409)

    async def replicas(self, request: Request) -> Response:
        """Tell of the replicas."""
        if self._group is None:
            return await self._elsewhere(request)
        return JSONResponse(self._group.told())

    async def _elsewhere(self, request: Request) -> Response:
        """Say that the gateway is elsewhere, and whose channel it is to be told about there."""
        caller = Caller(request.headers, cookies_of(request))
        return JSONResponse({"subject": (await self._sessions.find(caller)).subject}, 404)

    async def _subject(self, request: Request) -> str:
        finding = await self._sessions.find(Caller(request.headers, cookies_of(request)))
        if finding.subject is None:
            raise Rejected("not_authenticated", "Log in, then try again.", reason=finding.reason)
        return finding.subject

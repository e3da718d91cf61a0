"""Users: what an app's server asks for one of its users, whom the URL names.

A subject may have any printable character, a slash too, so the path is read as it was sent: once it
is decoded, nobody can tell where a name ends.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth.base import usable
from gateway.auth.service import ServiceTokens
from gateway.errors import Rejected
from gateway.runs.logout import Logout
from gateway.web.endpoint import AnyResponse
from gateway.web.responses import reply
from gateway.web.tickets import TicketEndpoints
from gateway.web.usage import UsageEndpoints


class UserEndpoints:
    """What is asked with a service token, whoever's page or none it comes from."""

    def __init__(
        self,
        service: ServiceTokens,
        tickets: TicketEndpoints,
        usage: UsageEndpoints,
        logout: Logout,
    ) -> None:
        self._service = service
        self._tickets = tickets
        self._usage = usage
        self._logout = logout

    async def create(self, request: Request) -> AnyResponse:
        """POST /users/{subject}/tickets: as POST /tickets, on behalf of a user."""
        return await self._tickets.answer(request, self._subject(request), on_behalf=True)

    async def log_out(self, request: Request) -> AnyResponse:
        """DELETE /users/{subject}/streams: cancel all that a user has under way."""
        return reply({"cancelled": await self._logout.of(self._subject(request))})

    async def usage(self, request: Request) -> AnyResponse:
        """GET /users/{subject}/usage: as GET /usage, of a user."""
        return await self._usage.answer(request, self._subject(request))

    def _subject(self, request: Request) -> str:
        self._service.check(request.headers)
        return named(request.path_params["subject"])


def named(subject: object) -> str:
    """Return who is named, as authenticators would; raises Rejected."""
    known = usable(subject)
    if known is None:
        raise Rejected("bad_subject", "It takes 1 to 256 printable characters.")
    return known


class UserPaths:
    """The URLs below `/users/`: what answers each by its last name, and what all others."""

    def __init__(
        self, prefixes: Iterable[str], named: Mapping[str, ASGIApp], nowhere: ASGIApp
    ) -> None:
        self._prefixes = frozenset(prefixes)
        self._named = named
        self._nowhere = nowhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or say that there is no such URL."""
        app = self._nowhere
        match self._parts(scope):
            case [subject, name] if name in self._named:
                app = self._named[name]
                scope["path_params"] = {"subject": _decoded(subject)}
            case [subject, "tickets", preset] if preset:
                app = self._named["tickets"]
                scope["path_params"] = {"subject": _decoded(subject), "preset": _decoded(preset)}
        await app(scope, receive, send)

    def _parts(self, scope: Scope) -> list[str]:
        """Return the parts of the path after `/users/`, as they were sent."""
        root = scope.get("root_path", "")
        here = {unquote(root) + each for each in self._prefixes} | self._prefixes
        # A server need not show what was sent; what it decoded is not to be decoded again.
        raw: bytes = scope.get("raw_path") or quote(scope["path"], errors="replace").encode()
        path = raw.decode("latin-1").partition("?")[0]
        start = path.find("/users/")
        while start >= 0:
            if unquote(path[:start]) in here:
                return path[start + 7 :].split("/")
            start = path.find("/users/", start + 1)
        return []


def _decoded(part: str) -> str:
    """Return what a part of a path says, "" where it is no UTF-8: that names nobody."""
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        return ""

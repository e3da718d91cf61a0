"""Endpoint: one URL's methods, who may ask, and the one place where errors become answers."""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth.base import Caller
from gateway.auth.chain import Chain
from gateway.errors import Rejected, Unavailable
from gateway.telemetry.base import Telemetry
from gateway.web.life import Life
from gateway.web.mount import Mount
from gateway.web.origins import Origins
from gateway.web.requests import TEXT_ALONE, accepts, cookies_of
from gateway.web.responses import Headers, Retry, rejected, unavailable

logger = logging.getLogger("gateway.web.endpoint")


class AnyResponse(Protocol):
    """What answers a request: an ASGI callable, whose headers can be added to until it is sent."""

    raw_headers: Headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""


Call = Callable[[Request], Awaitable[AnyResponse]]

_COOKIE = "gateway.cookie"  # In a request's scope: what is to be set in its answer.
_ALLOWED_HEADERS = (
    "Content-Type, Idempotency-Key, Last-Event-ID, Accept, Authorization, X-Stream-Ref"
)
_OF_SDKS = re.compile(  # They tell of themselves.
    r"x-api-key|(?:x-stainless|anthropic|openai)-[a-z0-9-]{1,40}", re.IGNORECASE
)
_MOST_HEADERS = 32  # Of those that one preflight may have.


class Guards:
    """What is asked of every caller first: from which page, and who; both raise Rejected."""

    def __init__(self, origins: Origins, chain: Chain, mount: Mount) -> None:
        self._origins = origins
        self._chain = chain
        self._mount = mount

    async def caller(self, request: Request) -> str:
        """Return the subject who asks, from a page of ours or from none."""
        self._origins.check(request.headers)
        return await self._subject(request)

    async def viewer(self, request: Request) -> str:
        """Return the same of who opens a stream: no image, no typed-in link, no prefetch does."""
        self._origins.check_stream(request.headers)
        return await self._subject(request)

    async def _subject(self, request: Request) -> str:
        headers, client = request.headers, request.client
        posted = request.method == "POST" and "origin" in headers  # And it was checked.
        peer = client.host if client else ""
        finding = await self._chain.find(Caller(headers, cookies_of(request), peer, posted))
        if finding.cookie:
            path = self._mount.cookie_path(request.scope.get("root_path", ""))
            request.scope[_COOKIE] = f"{finding.cookie}; Path={path}"
        if finding.subject is None:
            told = "Log in, then try again."
            raise Rejected("not_authenticated", told, reason=finding.reason)
        return finding.subject


class Methods:
    """One URL: what answers each of its methods."""

    def __init__(
        self,
        origins: Origins,
        retry: Retry,
        life: Life,
        telemetry: Telemetry,
        **calls: Call,
    ) -> None:
        self._origins = origins
        self._retry = retry
        self._life = life
        self._telemetry = telemetry
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the stream of a GET outlives this object's frame only."""
        if scope["type"] == "http":
            answer = await self._answer(Request(scope, receive))
            if answer is not None:
                await answer(scope, receive, send)

    async def _answer(self, request: Request) -> AnyResponse | None:
        try:
            answer: AnyResponse = await self._dispatch(request)
        except ClientDisconnect:
            return None
        except Rejected as error:
            answer = self._rejected(error, request)
        except Unavailable as error:
            self._telemetry.refused(error.code)
            answer = self.unavailable(error, request)
        except Exception:
            logger.exception("%s %s broke", request.method, request.url.path)
            answer = self._rejected(Rejected("internal"), request)
        answer.raw_headers += self._origins.cors(request.headers)
        if cookie := request.scope.get(_COOKIE):
            answer.raw_headers.append((b"set-cookie", cookie.encode("latin-1")))
        if self._life.draining:
            answer.raw_headers.append((b"connection", b"close"))
        return answer

    def _rejected(self, error: Rejected, request: Request) -> Response:
        self._telemetry.refused(error.code)
        return self.rejected(error, request)

    def rejected(self, error: Rejected, request: Request) -> Response:
        """Return a refusal as this URL's callers read it."""
        return rejected(error)

    def unavailable(self, error: Unavailable, request: Request) -> Response:
        """Return what will pass as they read it."""
        return unavailable(error, self._retry, self.opens_stream(request))

    def opens_stream(self, request: Request) -> bool:
        """Whether a caller gives up for ever on anything but a stream."""
        if request.query_params.get("format") in TEXT_ALONE:
            return False
        return request.method == "GET" and accepts(request)[0]

    async def _dispatch(self, request: Request) -> AnyResponse:
        self._life.check()
        if request.method == "OPTIONS":
            return self._preflight(request)
        call = self._calls.get(request.method)
        if call is None:
            allowed = ", ".join(self._calls)
            raise Rejected("method_not_allowed", f"Allowed: {allowed}.", {"Allow": allowed})
        return await call(request)

    def _preflight(self, request: Request) -> Response:
        self._origins.check(request.headers)
        headers = {
            "Allow": ", ".join(self._calls),
            "Access-Control-Allow-Methods": ", ".join(self._calls),
            "Access-Control-Allow-Headers": ", ".join([_ALLOWED_HEADERS, *_of_sdks(request)]),
            "Access-Control-Max-Age": "600",
            "Vary": "Access-Control-Request-Headers",
        }
        return Response(None, 204, headers)


def _of_sdks(request: Request) -> list[str]:
    """Return the headers of SDKs that a page is about to send: which, each version has its own."""
    asked = request.headers.get("access-control-request-headers", "")
    names = {each.strip().lower(): None for each in asked.split(",")}
    return [name for name in names if _OF_SDKS.fullmatch(name)][:_MOST_HEADERS]

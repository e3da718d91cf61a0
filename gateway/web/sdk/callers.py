"""Callers: who asks, by the key that an SDK was given.

It is a service token, and then the request says for whom it is; or a JWT, where logins are such. A
page on our own origin has its cookie, and any key.
"""

from typing import Any, NamedTuple

from starlette.requests import Request

from gateway.auth.base import different_lines
from gateway.auth.service import ServiceTokens
from gateway.errors import Rejected
from gateway.web.endpoint import Guards
from gateway.web.requests import words_in
from gateway.web.users import named

SERVICE = ""  # Whose the aliases are that an app's server looks up without saying for whom.

_NOBODYS = "The key is neither one of GATEWAY_SERVICE_TOKENS nor a user's."


class SdkCaller(NamedTuple):
    """Who asks: a subject, or an app's server that may say for whom."""

    subject: str  # "" where it has not said so yet.
    server: str = ""  # What the server itself is called, "" for a user.

    def acting_for(self, told: Any) -> str:
        """Return the subject, by what a request tells; raises Rejected if that names nobody."""
        if self.subject or not self.server:
            return self.subject
        return self.server if told in (None, "") else named(told)

    @property
    def lookup(self) -> str:
        """Whose aliases are looked up."""
        return self.subject or SERVICE


class SdkCallers:
    """Judges keys."""

    def __init__(self, service: ServiceTokens, guards: Guards) -> None:
        self._service = service
        self._guards = guards

    async def of(
        self, request: Request, *, watches: bool = False, has_body: bool = False
    ) -> SdkCaller:
        """Return who asks; raises Rejected and Unavailable. `watches`: it opens a stream.

        `has_body`: its body may say for whom it is, and its query does not.
        """
        for key in request.headers.getlist("x-api-key"):  # Anthropic's SDKs; two keys are nobody's.
            request.scope["headers"].append((b"authorization", f"Bearer {key}".encode("latin-1")))
        server = self._service.owner(request.headers)
        if server:
            if len(different_lines(request.headers, "x-subject")) > 1:  # One may be a page's own.
                raise Rejected("bad_subject", "X-Subject names two.")
            query = "" if has_body else request.query_params.get("user", "")
            told = words_in(request, "x-subject") or query
            return SdkCaller(named(told) if told else "", server)
        guard = self._guards.viewer if watches else self._guards.caller
        try:
            return SdkCaller(await guard(request))
        except Rejected as error:
            keyed = "authorization" in request.headers and error.reason != "expired"
            if error.code != "not_authenticated" or not keyed:
                raise
            raise Rejected("not_authenticated", _NOBODYS, reason=error.reason) from None

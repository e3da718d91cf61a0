"""Usage: what a user has spent and has left, told to the user or to the app's server."""

from datetime import date

from starlette.requests import Request

from gateway.errors import Rejected
from gateway.limits.statement import Statements, day_of
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.responses import reply


class UsageEndpoints:
    """Where statements are asked for."""

    def __init__(self, guards: Guards, statements: Statements) -> None:
        self._guards = guards
        self._statements = statements

    async def own(self, request: Request) -> AnyResponse:
        """GET /usage: what who asks has spent and has left."""
        return await self.answer(request, await self._guards.caller(request))

    async def answer(self, request: Request, subject: str) -> AnyResponse:
        """Answer with a subject's, of the days that the URL names."""
        first, last = _day(request, "from"), _day(request, "to")
        return reply((await self._statements.of(subject, first, last)).told())


def _day(request: Request, name: str) -> date | None:
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise Rejected("bad_range", f"Name `{name}` once.")
    return day_of(given[0]) if given else None

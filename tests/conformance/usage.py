"""Usage: what a user has spent and has left, told to the user and to the app's server."""

from typing import Any
from urllib.parse import quote

from tests.conformance.promise import equal, holds, promise, refused
from tests.conformance.server import Server
from tests.conformance.wire import Answer

_NAMES = ("day", "preset", "model")
_NUMBERS = (
    *("streams", "prompt_tokens", "completion_tokens", "cached_tokens", "estimated_tokens"),
    "cost",
)
_WRONG = (
    *("from=yesterday", "to=", "from=2026-02-30", "from=2026-01-01&from=2026-01-01"),
    *("from=2026-01-02&to=2026-01-01", "from=2016-01-01&to=2026-01-01"),
)


@promise()
async def what_a_user_has_spent_and_has_left_is_told(server: Server) -> None:
    await server.ended()
    answer = await server.ask("GET", "/usage")
    equal("the status", answer.status, 200)
    equal("Cache-Control", answer.headers.get("cache-control"), "no-store")
    days = answer.object.get("days")
    holds(isinstance(days, list) and days, f"nothing is booked of a stream that ended: {answer}")
    for row in days or ():
        _is_row(row)
    for account in (answer.object, *answer.object.get("presets", {}).values()):
        limits, left = account.get("limits"), account.get("remaining")
        holds(isinstance(limits, dict) and isinstance(left, dict), f"no limits in {account}")
        equal("what is left is told", sorted(left or ()), sorted(limits or ()))


def _is_row(row: dict[str, Any]) -> None:
    for name in _NAMES:
        holds(isinstance(row.get(name), str), f"{name} is {row.get(name)!r}")
    for name in _NUMBERS:
        number = type(row.get(name)) in (int, float)
        holds(number and row[name] >= 0, f"{name} is {row.get(name)!r}")


@promise()
async def without_a_cookie_no_usage_is_told(server: Server) -> None:
    refused(await server.ask("GET", "/usage", cookie=""), 401, "not_authenticated")


@promise()
async def days_that_cannot_be_told_are_refused_with_400(server: Server) -> None:
    for query in _WRONG:
        refused(await server.ask("GET", f"/usage?{query}"), 400, "bad_range")


async def _of_user(server: Server, query: str = "", token: str = "") -> Answer:
    url = f"/users/{quote(server.options.user, safe='')}/usage{query}"
    sent = {"Authorization": f"Bearer {token or server.options.service_token}"}
    return await server.ask("GET", url, cookie="", headers=sent)


@promise("service_token", "user")
async def a_server_is_told_what_its_user_is(server: Server) -> None:
    await server.ended()
    own, told = await server.ask("GET", "/usage"), await _of_user(server)
    equal("the status", told.status, 200)
    equal("what is told", sorted(told.object), sorted(own.object))
    holds(told.object.get("days"), f"nothing is booked of a stream that ended: {told}")
    refused(await _of_user(server, token="x" * 16), 401, "not_authenticated")
    refused(await _of_user(server, "?from=yesterday"), 400, "bad_range")

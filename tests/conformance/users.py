"""Users: what an app's server asks for a user with a service token, and a log-out."""

import asyncio
from typing import Any
from urllib.parse import quote

from tests.conformance.promise import equal, has, holds, promise, refused, within
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Answer, Stream, Ticket, Unkept

_WAITING = 20  # Tickets that nobody redeems: what runs must not wait for them.


async def _ask(server: Server, method: str, path: str, *, token: str = "", **more: Any) -> Answer:
    """Ask for a user as an app's server does: without a cookie, from no page."""
    sent = {"Authorization": f"Bearer {token or server.options.service_token}"}
    return await server.ask(method, path, cookie="", headers=sent, **more)


def _path(server: Server, *parts: str) -> str:
    return "/".join(["/users", quote(server.options.user, safe=""), *parts])


async def _made(server: Server, body: Any) -> Ticket:
    answer = await _ask(server, "POST", _path(server, "tickets"), json=body)
    if answer.status != 201:
        raise Unkept(f"there is no ticket: {answer}")
    return server.told(str(answer.object.get("stream_url", "")))


@promise("service_token", "user")
async def a_server_makes_a_ticket_that_its_user_redeems(server: Server) -> None:
    ticket = await _made(server, server.body())
    has("what is told", await server.completion(ticket), {"state": "cached"})
    stream = await server.read(ticket.stream)
    equal("the status", stream.status, 200)
    has("its end", stream.end, {"state": "done"})


@promise("service_token", "user", "other_cookie")
async def a_ticket_made_for_a_user_is_nobody_elses(server: Server) -> None:
    ticket = await _made(server, server.body())
    for cookie, status, code in (
        (server.options.other_cookie, 404, "ticket_not_found"),
        ("", 401, "not_authenticated"),
    ):
        refused(await server.ask("GET", ticket.stream, cookie=cookie), status, code)
    alone = await _ask(server, "GET", ticket.stream)
    refused(alone, 401, "not_authenticated")
    has("what is told", await server.completion(ticket), {"state": "cached"})


@promise("service_token", "user")
async def without_a_service_token_nothing_is_done_for_a_user(server: Server) -> None:
    ticket = await server.ticket()
    whole = server.options.service_token
    for token in ("x" * 16, whole[:-1], whole + "x"):
        for method, name in (("POST", "tickets"), ("DELETE", "streams")):
            more: dict[str, Any] = {"json": server.body()} if method == "POST" else {}
            answer = await _ask(server, method, _path(server, name), token=token, **more)
            refused(answer, 401, "not_authenticated")
            equal("WWW-Authenticate", answer.headers.get("www-authenticate"), "Bearer")
            equal("the reason", answer.object.get("reason"), "bad_cookie")
    answer = await server.ask("DELETE", _path(server, "streams"))  # The user's cookie is none.
    refused(answer, 401, "not_authenticated")
    equal("the reason", answer.object.get("reason"), "no_cookie")
    has("what is told", await server.completion(ticket), {"state": "cached"})


@promise("service_token")
async def a_subject_that_no_login_could_name_is_refused_with_400(server: Server) -> None:
    for subject in ("", "%00", "%FF", "x" * 257):
        for method, name in (("POST", "tickets"), ("DELETE", "streams")):
            more: dict[str, Any] = {"json": server.body()} if method == "POST" else {}
            answer = await _ask(server, method, f"/users/{subject}/{name}", **more)
            refused(answer, 400, "bad_subject")


@promise("service_token", "user")
async def a_log_out_ends_what_runs_within_a_second_and_cancels_what_waits(server: Server) -> None:
    await _ask(server, "DELETE", _path(server, "streams"))  # What other promises have left.
    waiting = [await server.ticket() for _ in range(_WAITING)]
    running = await server.ticket(server.long())
    async with server.open(running.stream, headers={"Accept": STREAM}) as stream:
        await stream.until(lambda each: each.events)
        out = asyncio.ensure_future(_ask(server, "DELETE", _path(server, "streams")))
        async with within(1.5, "the end of what runs"):  # The second, and the way there and back.
            await stream.rest()
        answer = await out
    _cancelled(stream)
    equal("the status", answer.status, 200)
    equal("what is cancelled", answer.object, {"cancelled": _WAITING + 1})
    for ticket in waiting:
        has("what is told", await server.completion(ticket), {"state": "cancelled"})


@promise("service_token", "user")
async def a_log_out_may_be_repeated_and_leaves_alone_what_comes_after_it(server: Server) -> None:
    for _ in range(2):
        answer = await _ask(server, "DELETE", _path(server, "streams"))
    equal("the status", answer.status, 200)
    equal("what is cancelled", answer.object, {"cancelled": 0})
    ticket = await server.ticket()
    has("what is told", await server.completion(ticket), {"state": "cached"})


def _cancelled(stream: Stream) -> None:
    holds(stream.names[-1:] == ["end"], f"the last event is no end: {stream.tail!r}")
    has("its end", stream.end, {"state": "cancelled"})

"""Callers: who may ask at all, and that nothing has begun where somebody may not."""

import secrets
from collections.abc import AsyncIterator

from tests.conformance.promise import equal, holds, promise, refused
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Answer, Ticket

_REASONS = ("no_cookie", "bad_cookie", "expired", "no_subject")


async def _asked(
    server: Server, ticket: Ticket, cookie: str | None = None, **headers: str
) -> AsyncIterator[Answer]:
    """Yield the answers of all that can be done with a ticket."""
    for method, url in (
        ("GET", ticket.stream),
        ("GET", ticket.completion),
        ("DELETE", ticket.stream),
        ("POST", ticket.cancel),
    ):
        yield await server.ask(method, url, cookie=cookie, headers=headers)


async def _nothing_began(server: Server, ticket: Ticket) -> None:
    told = await server.completion(ticket)
    equal("the state afterwards", told.get("state"), "cached")


@promise()
async def without_a_valid_cookie_everything_is_refused_with_401(server: Server) -> None:
    ticket = await server.ticket()
    name = server.options.cookie.partition("=")[0]
    for cookie in ("", f"{name}={secrets.token_hex(16)}"):
        made = await server.post(server.body(), cookie=cookie)
        for answer in [made, *[each async for each in _asked(server, ticket, cookie)]]:
            refused(answer, 401, "not_authenticated")
            reason = answer.object.get("reason")
            holds(reason in (_REASONS if cookie else _REASONS[:1]), f"the reason is {reason}")
    await _nothing_began(server, ticket)


@promise("other_cookie")
async def a_ticket_of_another_user_is_refused_with_404(server: Server) -> None:
    ticket = await server.ticket()
    async for answer in _asked(server, ticket, server.options.other_cookie):
        refused(answer, 404, "ticket_not_found")
    await _nothing_began(server, ticket)


@promise()
async def a_ticket_that_nobody_issued_is_refused_with_404(server: Server) -> None:
    value = (await server.ticket()).value
    middle = len(value) // 2
    turned = value[:middle] + ("a" if value[middle] != "a" else "b") + value[middle + 1 :]
    for forged in (turned, value[:-2], "x", "%00", ""):
        url = f"/stream?ticket={forged}"
        refused(await server.ask("GET", url), 404, "ticket_not_found")
        refused(await server.ask("DELETE", url), 404, "ticket_not_found")
    refused(await server.ask("GET", "/stream"), 404, "ticket_not_found")


@promise()
async def who_accepts_no_stream_is_refused_with_406(server: Server) -> None:
    ticket = await server.ticket()
    for accept in ("application/json", f"{STREAM};q=0", "text/html"):
        answer = await server.ask("GET", ticket.stream, headers={"Accept": accept})
        refused(answer, 406, "not_acceptable")
    await _nothing_began(server, ticket)


@promise()
async def a_head_redeems_nothing_and_is_refused_with_405(server: Server) -> None:
    ticket = await server.ticket()
    answer = await server.ask("HEAD", ticket.stream)
    equal("the status", answer.status, 405)
    await _nothing_began(server, ticket)


@promise()
async def an_image_a_link_and_a_prefetch_are_refused_with_403(server: Server) -> None:
    ticket = await server.ticket()
    for headers, code in (
        ({"Sec-Fetch-Dest": "image"}, "not_a_stream_request"),
        ({"Sec-Fetch-Dest": "document"}, "not_a_stream_request"),
        ({"Sec-Purpose": "prefetch"}, "prefetch"),
        ({"Sec-Purpose": "prefetch;prerender"}, "prefetch"),
        ({"Purpose": "prefetch"}, "prefetch"),
    ):
        refused(await server.ask("GET", ticket.stream, headers=headers), 403, code)
    await _nothing_began(server, ticket)


@promise()
async def a_foreign_page_is_refused_with_403(server: Server) -> None:
    ticket = await server.ticket()
    for headers in (
        {"Origin": "https://foreign.invalid"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        made = await server.ask("POST", "/tickets", headers=headers, json=server.body())
        refused(made, 403, "foreign_origin")
        async for answer in _asked(server, ticket, **headers):
            refused(answer, 403, "foreign_origin")
            allowed = answer.headers.get("access-control-allow-origin")
            equal("Access-Control-Allow-Origin", allowed, None)
    await _nothing_began(server, ticket)

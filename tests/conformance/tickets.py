"""Tickets: POST /tickets, what it refuses, and its Idempotency-Key."""

import asyncio
import json
import secrets

from tests.conformance.promise import Skip, equal, holds, promise, refused
from tests.conformance.server import Server

JSON = {"Content-Type": "application/json"}
TOO_LARGE = 1 << 40


@promise()
async def a_ticket_is_made_with_201_and_says_where_its_stream_is(server: Server) -> None:
    answer = await server.post(server.body())
    equal("the status", answer.status, 201)
    told = answer.object
    holds(isinstance(told.get("ticket"), str) and told["ticket"], f"no ticket in {told}")
    url = str(told.get("stream_url"))
    equal("the ticket in stream_url", server.told(url).value, told["ticket"])
    holds(len(url.encode()) < 2048, f"stream_url has {len(url)} characters, promised below 2048")
    equal("Location", answer.headers.get("location"), url)
    seconds = told.get("expires_in")
    holds(type(seconds) is int and seconds > 0, f"expires_in is {seconds!r}")
    equal("Cache-Control", answer.headers.get("cache-control"), "no-store")


@promise("pretend")
async def a_ticket_asks_nobody_upstream(server: Server) -> None:
    body = server.body()
    await server.ticket(body)
    equal("requests upstream", await server.calls(body), 0)


@promise()
async def a_preset_that_is_unknown_is_refused_with_404(server: Server) -> None:
    answer = await server.post(server.body(), url="/tickets/there-is-no-such-preset")
    refused(answer, 404, "preset_not_found")


@promise()
async def a_body_that_is_no_json_by_its_type_is_refused_with_415(server: Server) -> None:
    content = json.dumps(server.body()).encode()
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
        {**JSON, "Content-Encoding": "gzip"},
    ):
        answer = await server.ask("POST", "/tickets", headers=headers, content=content)
        refused(answer, 415, "unsupported_media_type")


@promise()
async def a_body_that_is_no_json_object_is_refused_with_400(server: Server) -> None:
    for content in (b"", b"{", b'{"a": NaN}', b'{"a": 1} {}', b"{'a': 1}"):
        answer = await server.ask("POST", "/tickets", headers=JSON, content=content)
        refused(answer, 400, "not_json")
    for content in (b"[]", b'"{}"', b"1", b"null"):
        answer = await server.ask("POST", "/tickets", headers=JSON, content=content)
        refused(answer, 400, "not_an_object")


@promise()
async def a_completion_that_is_not_to_be_streamed_is_refused_with_400(server: Server) -> None:
    answer = await server.post({**server.body(), "stream": False})
    refused(answer, 400, "stream_required")


@promise()
async def a_body_that_says_it_is_too_large_is_refused_with_413_before_it_comes(
    server: Server,
) -> None:
    refused(await server.declare("/tickets", TOO_LARGE), 413, "body_too_large")


@promise()
async def a_key_used_again_gives_the_same_ticket_with_200(server: Server) -> None:
    body, key = server.body(), secrets.token_hex(16)
    first = await server.post(body, idempotency_key=key)
    again = await server.post(body, idempotency_key=key)
    turned = await server.post(dict(reversed(body.items())), idempotency_key=key)
    equal("the statuses", [each.status for each in (first, again, turned)], [201, 200, 200])
    for other in (again, turned):
        for name in ("ticket", "stream_url"):
            equal(f"the {name} again", other.object.get(name), first.object.get(name))


@promise()
async def a_key_used_for_another_body_is_refused_with_422(server: Server) -> None:
    body, key = server.body(), secrets.token_hex(16)
    equal("the first status", (await server.post(body, idempotency_key=key)).status, 201)
    other = await server.post({**body, "seed": 7}, idempotency_key=key)
    refused(other, 422, "idempotency_mismatch")


@promise("other_cookie")
async def a_key_is_of_one_user_only(server: Server) -> None:
    body, key = server.body(), secrets.token_hex(16)
    mine = await server.post(body, idempotency_key=key)
    other = server.options.other_cookie
    theirs = await server.post({**body, "seed": 7}, cookie=other, idempotency_key=key)
    equal("the statuses", [mine.status, theirs.status], [201, 201])
    holds(mine.object.get("ticket") != theirs.object.get("ticket"), "both have one ticket")


@promise()
async def a_key_longer_than_255_characters_is_refused_with_400(server: Server) -> None:
    answer = await server.post(server.body(), idempotency_key="k" * 256)
    refused(answer, 400, "bad_idempotency_key")


@promise()
async def a_ticket_that_nobody_redeems_runs_out_with_410(server: Server) -> None:
    answer = await server.post(server.body())
    ticket = server.told(str(answer.object.get("stream_url")))
    wait = int(answer.object["expires_in"]) + 1.5
    if wait > server.options.seconds - 2:
        raise Skip(f"it takes {wait:g} s: --seconds {wait + 5:.0f} or more")
    await asyncio.sleep(wait)
    refused(await server.ask("GET", ticket.stream), 410, "ticket_expired")
    known = await server.ask("GET", ticket.completion)
    if known.status == 200:
        equal("the state", known.object.get("state"), "expired")
    else:
        refused(known, 410, "ticket_expired")

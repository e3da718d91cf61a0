"""Channels: what an app's server pushes to a user, and how the user's pages have it."""

from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tests.conformance.promise import equal, promise, refused
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Answer, Unkept


async def _asked(server: Server, path: str, message: Any, *, token: str = "") -> Answer:
    sent = {"Authorization": f"Bearer {token or server.options.service_token}"}
    return await server.ask("POST", path, cookie="", headers=sent, json=message)


def _path(server: Server) -> str:
    return f"/users/{quote(server.options.user, safe='')}/events"


async def _pushed(server: Server, **message: Any) -> str:
    """Push a message to the user; return its id."""
    answer = await _asked(server, _path(server), message)
    if answer.status != 202:
        raise Unkept(f"the message is not stored: {answer}")
    return str(answer.object.get("id", ""))


@promise("service_token", "user")
async def a_message_reaches_its_user_once_in_order_and_after_a_cut_the_rest_does(
    server: Server,
) -> None:
    async with server.open("/events") as stream:
        await stream.until(lambda each: each.raw.endswith(b"\n\n"))
        first = [await _pushed(server, data=f"m{number}", event="news") for number in range(3)]
        await stream.until(lambda each: len(each.events) >= 3)
    equal("the ids", stream.ids, first)
    equal("the names", stream.names, ["news"] * 3)
    waits = [await _pushed(server, data={"n": number}) for number in range(3)]
    async with server.open("/events", first[-1]) as stream:
        await stream.until(lambda each: len(each.events) >= 3)
    equal("the ids after a cut", stream.ids, waits)
    async with server.open("/events?from=start") as stream:
        await stream.until(lambda each: each.ids[-6:] == [*first, *waits])


@promise("service_token", "user")
async def a_page_that_was_cut_before_its_first_message_has_a_position(server: Server) -> None:
    async with server.open("/events") as stream:
        await stream.until(lambda each: each.raw.endswith(b"\n\n"))
    position = stream.raw.rpartition(b"id: ")[2].strip().decode()
    pushed = await _pushed(server, data="meanwhile")
    async with server.open("/events", position) as stream:
        await stream.until(lambda each: each.events)
    equal("the ids", stream.ids[:1], [pushed])


@promise("service_token", "user")
async def a_message_id_is_stored_once_and_for_no_other_message(server: Server) -> None:
    name = uuid4().hex
    first = await _pushed(server, data="once", message_id=name)
    equal("the id", await _pushed(server, data="once", message_id=name), first)
    other = await _asked(server, _path(server), {"data": "twice", "message_id": name})
    refused(other, 422, "message_id_reused")
    after = await _pushed(server, data="after")
    async with server.open("/events", first) as stream:
        await stream.until(lambda each: each.events)
    equal("what follows", stream.ids[:1], [after])


@promise("service_token", "user")
async def a_message_that_cannot_be_is_refused_by_its_code(server: Server) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "bad_data"),
        *(
            ({"data": "x", "event": each}, "bad_event")
            for each in ("end", "gap", "1", "a\n", "open")
        ),
        *(({"data": "x", "ttl": each}, "bad_ttl") for each in (0, -1, "1", 1e12)),
        ({"data": "x", "message_id": ""}, "bad_message_id"),
        ({"data": "x", "mesage_id": "k"}, "unknown_member"),
    ]
    for message, code in wrong:
        refused(await _asked(server, _path(server), message), 400, code)
    refused(await _asked(server, "/events", {"data": "x", "subjects": []}), 400, "bad_subjects")


@promise("service_token", "user")
async def nobody_writes_to_a_channel_without_a_service_token(server: Server) -> None:
    for path in (_path(server), "/events"):
        answer = await _asked(server, path, {"data": "x"}, token="x" * 16)
        refused(answer, 401, "not_authenticated")
    answer = await server.ask("GET", "/events", cookie="", headers={"Accept": STREAM})
    refused(answer, 401, "not_authenticated")

"""Repeats: a POST that is answered with the stream, and the same POST sent again."""

import secrets

from tests.conformance.promise import equal, holds, promise, same
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Answer, Stream


@promise()
async def a_post_that_names_an_event_stream_is_answered_with_it(server: Server) -> None:
    posted = await server.posted()
    equal("the status", posted.stream.status, 200)
    again = await server.read(posted.ticket.stream)
    equal("the bytes at Content-Location", again.bare, posted.stream.bare)


@promise()
async def its_repeat_with_a_last_event_id_gets_the_rest_of_the_same_stream(server: Server) -> None:
    posted = await server.posted()
    for at in {1, len(posted.stream.events) - 1} - {0}:
        last_id = posted.stream.ids[at - 1]
        rest = await server.read("/tickets", last_id, body=posted.body)
        same(f"what follows {last_id}", rest.events, posted.stream.events[at:])
        where = rest.headers.get("content-location")
        equal("Content-Location", where, posted.stream.headers["content-location"])


@promise()
async def its_repeat_that_has_the_end_gets_204(server: Server) -> None:
    posted = await server.posted()
    over = await server.read("/tickets", posted.stream.ids[-1], body=posted.body)
    equal("the status and the bytes", (over.status, over.raw), (204, b""))


@promise()
async def a_last_event_id_with_another_body_starts_nothing(server: Server) -> None:
    posted = await server.posted()
    other = {**posted.body, "seed": 7}
    _is_gone(await _post(server, other, posted.stream.ids[0]))


@promise("other_cookie")
async def a_last_event_id_of_another_user_starts_nothing(server: Server) -> None:
    posted = await server.posted()
    cookie = server.options.other_cookie
    _is_gone(await _post(server, posted.body, posted.stream.ids[0], cookie=cookie))


async def _post(server: Server, body: object, last_id: str, **more: str) -> Answer:
    sent = {"Accept": STREAM, "Last-Event-ID": last_id}
    cookie = more.pop("cookie", None)
    headers = {**sent, **more}
    return await server.ask("POST", "/tickets", cookie=cookie, headers=headers, json=body)


def _is_gone(answer: Answer) -> None:
    """A server whose store has just been started cannot know yet."""
    code = answer.object.get("code") if answer.status in (410, 503) else None
    gone = (answer.status, code) in ((410, "log_expired"), (503, "not_yet"))
    holds(gone, f"promised 410 log_expired or 503 not_yet, got {answer}")


@promise()
async def with_a_key_a_repeat_attaches_and_is_paid_for_once(server: Server) -> None:
    body, key = server.body(), {"Idempotency-Key": secrets.token_hex(16)}
    first = await server.read("/tickets", body=body, headers=key)
    again = await server.read("/tickets", body=body, headers=key)
    equal("the bytes again", again.bare, first.bare)
    rest = await server.read("/tickets", first.ids[0], body=body, headers=key)
    same("the rest", rest.events, first.events[1:])
    over = await server.read("/tickets", first.ids[-1], body=body, headers=key)
    equal("the status after the end", over.status, 204)
    where = {each.headers.get("content-location") for each in (first, again, rest)}
    equal("the number of streams", len(where), 1)
    other = await _post(server, {**body, "seed": 7}, first.ids[0], **key)
    equal("another body", (other.status, other.object["code"]), (422, "idempotency_mismatch"))
    if server.options.pretend:
        equal("requests upstream", await server.calls(body), first.end["attempts"])


@promise()
async def a_post_sent_again_on_purpose_is_a_new_stream(server: Server) -> None:
    posted = await server.posted()
    async with server.open("/tickets", body=posted.body) as again:
        await again.until(_has_an_event)
        where = again.headers.get("content-location", "")
        holds(where != posted.stream.headers["content-location"], "it is the same stream")
        await server.ask("DELETE", server.told(where).stream)


def _has_an_event(stream: Stream) -> bool:
    return bool(stream.events)

"""Answers: GET /completion, and cancelling."""

from tests.conformance.promise import Skip, equal, has, promise
from tests.conformance.server import Server
from tests.conformance.text import deltas, joined, plain
from tests.conformance.wire import Stream, Ticket

UNSET = {"text": "", "attempts": 0} | dict.fromkeys(
    ("finish_reason", "usage", "tokens", "last_event_id")
)
_OF_THE_END = ("state", "finish_reason", "usage", "tokens", "preset", "attempts")


@promise()
async def a_completion_of_an_unredeemed_ticket_is_empty_and_starts_nothing(server: Server) -> None:
    ticket = await server.ticket()
    for _ in range(2):
        has("the completion", await server.completion(ticket), {"state": "cached", **UNSET})


@promise()
async def a_completion_equals_what_was_streamed(server: Server) -> None:
    ended = await server.ended()
    told = await server.completion(ended.ticket)
    end = ended.stream.end
    text = told.get("text")
    wanted = {name: end.get(name) for name in _OF_THE_END}
    has("all but the text", told, {**wanted, "last_event_id": ended.stream.ids[-1]})
    spoken = await server.read(f"{ended.ticket.stream}&format=text")
    equal("the text", plain(str(text)), plain(joined(spoken.events)))
    if (said := deltas(ended.stream.events)) is not None:
        equal("the text", plain(str(text)), plain(said))


@promise()
async def a_completion_of_a_running_stream_is_its_beginning(server: Server) -> None:
    ticket = await server.ticket(server.long())
    async with server.open(ticket.stream) as stream:
        await stream.until(lambda stream: stream.events)
        told = await server.completion(ticket)
        if told["state"] != "streaming":
            raise Skip("it had ended before it was looked at; --pretend makes it long")
        await stream.until(lambda stream: told["last_event_id"] in stream.ids)
        await server.ask("DELETE", ticket.stream)
    at = stream.ids.index(told["last_event_id"]) + 1
    if (said := deltas(stream.events[:at])) is not None:
        equal("the text", plain(told["text"]), plain(said))


async def _cancelled(server: Server, ticket: Ticket, state: str = "cancelled") -> None:
    answer = await server.ask("DELETE", ticket.stream)
    equal("the answer", (answer.status, answer.object.get("state")), (200, state))


@promise()
async def a_cancel_ends_a_running_stream_for_all_its_viewers(server: Server) -> None:
    ticket = await server.ticket(server.long())
    async with server.open(ticket.stream) as first, server.open(ticket.stream) as second:
        for stream in (first, second):
            await stream.until(lambda stream: stream.events)
        told = (await server.ask("DELETE", ticket.stream)).object
        for stream in (first, second):
            equal("the state of the end", (await stream.rest()).end["state"], told.get("state"))
    if told["state"] != "cancelled":
        raise Skip(f"it was {told['state']} before it was cancelled; --pretend makes it long")
    equal("the number of failures", first.names.count("failure"), 0)
    equal("the bytes of the second", second.bare, first.bare)
    await _cancelled(server, ticket)
    equal("the state", (await server.completion(ticket))["state"], "cancelled")
    equal("a reconnect", (await server.read(ticket.stream, first.ids[-1])).status, 204)


@promise()
async def a_ticket_that_is_cancelled_first_starts_nothing(server: Server) -> None:
    body = server.body()
    ticket = await server.ticket(body)
    await _cancelled(server, ticket)
    await _cancelled(server, ticket)
    _ends_at_once(await server.read(ticket.stream))
    if server.options.pretend:
        equal("requests upstream", await server.calls(body), 0)


@promise()
async def a_closing_page_cancels_with_a_post_of_anything(server: Server) -> None:
    for content, kind in ((b"", ""), (b"bye", "text/plain;charset=UTF-8")):
        ticket = await server.ticket()
        headers = {"Content-Type": kind} if kind else {}
        answer = await server.ask("POST", ticket.cancel, headers=headers, content=content)
        equal("the answer", (answer.status, answer.object.get("state")), (200, "cancelled"))
        _ends_at_once(await server.read(ticket.stream))


def _ends_at_once(stream: Stream) -> None:
    equal("the names", stream.names, ["end"])
    unset = {"finish_reason": None, "usage": None, "attempts": 0}
    has("the end", stream.end, {"state": "cancelled", **unset})


@promise()
async def a_cancel_after_the_end_tells_how_it_ended(server: Server) -> None:
    ended = await server.ended()
    await _cancelled(server, ended.ticket, ended.stream.end["state"])
    again = await server.read(ended.ticket.stream)
    equal("the bytes afterwards", again.bare, ended.stream.bare)

"""Composites: the channel and several streams over one connection."""

from collections.abc import Sequence

from tests.conformance.promise import equal, promise, refused
from tests.conformance.server import Server
from tests.conformance.wire import STREAM, Ended, Stream


async def _both(server: Server) -> tuple[Ended, Ended]:
    return await server.ended(), await server.posted()


def _url(tickets: Sequence[str]) -> str:
    return "/events?" + "&".join(f"ticket={each}" for each in tickets)


def _of(stream: Stream, number: int) -> list[tuple[str, str]]:
    """Return the names and data of a ticket's events."""
    mine = [each for each in stream.events if each.name.partition(".")[0] == f"{number}"]
    return [(each.name.partition(".")[2], each.data) for each in mine]


def _over(stream: Stream, count: int = 2) -> bool:
    return all(f"{number}.end" in stream.names for number in range(1, count + 1))


@promise()
async def streams_come_over_one_connection_as_they_come_alone(server: Server) -> None:
    both = await _both(server)
    async with server.open(_url([each.ticket.value for each in both])) as stream:
        await stream.until(_over)
    for number, each in enumerate(both, 1):
        alone = [(event.name, event.data) for event in each.stream.events]
        equal(f"what ticket {number} shows", _of(stream, number), alone)
    equal("how many ids there are", len(set(stream.ids)), len(stream.ids))


@promise()
async def one_id_goes_on_in_all_streams_of_a_connection_also_of_a_longer_list(
    server: Server,
) -> None:
    both = await _both(server)
    tickets = [each.ticket.value for each in both]
    async with server.open(_url(tickets[:1])) as first:
        await first.until(lambda each: len(each.events) >= 2)
    half = [(event.name, event.data) for event in both[0].stream.events][2:]
    async with server.open(_url(tickets), first.ids[1]) as rest:
        await rest.until(_over)
    equal("the rest of the first", _of(rest, 1), half)
    middle = len(rest.events) // 2
    async with server.open(_url(tickets), rest.ids[middle]) as last:
        await last.until(lambda each: len(each.events) >= len(rest.events) - middle - 1)
    for number in (1, 2):
        seen = [each.partition(".")[0] for each in rest.names[: middle + 1]].count(f"{number}")
        equal(f"the rest of {number}", _of(last, number), _of(rest, number)[seen:])


@promise()
async def a_connection_that_cannot_carry_its_tickets_is_refused_as_a_whole(server: Server) -> None:
    ticket = (await server.ended()).ticket.value
    for tickets, status, code in (
        ([ticket, ticket], 400, "bad_tickets"),
        ([ticket] * 33, 400, "bad_tickets"),
        ([ticket, "x"], 404, "ticket_not_found"),
    ):
        answer = await server.ask("GET", _url(tickets), headers={"Accept": STREAM})
        refused(answer, status, code)


@promise("other_cookie")
async def a_connection_with_a_ticket_of_another_user_is_refused_with_404(server: Server) -> None:
    ticket = (await server.ended()).ticket.value
    sent = {"Accept": STREAM}
    other = server.options.other_cookie
    refused(
        await server.ask("GET", _url([ticket]), cookie=other, headers=sent), 404, "ticket_not_found"
    )

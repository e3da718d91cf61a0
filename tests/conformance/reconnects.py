"""Reconnects: what follows a Last-Event-ID (WHATWG HTML §9.2.4), and where nothing does."""

from tests.conformance.events import Event, place
from tests.conformance.promise import equal, holds, promise, same
from tests.conformance.server import Server
from tests.conformance.wire import Ended, Stream

MOST = 8  # Places of a stream that are tried.


def _places(ended: Ended) -> list[int]:
    """Return after how many events to go on: at both ends, and between."""
    last = len(ended.stream.events) - 1
    step = max(1, last // MOST)
    return sorted({*range(1, last, step), last} - {0})


@promise()
async def a_reconnect_gets_exactly_the_rest(server: Server) -> None:
    ended = await server.ended()
    for at in _places(ended):
        last_id = ended.stream.ids[at - 1]
        rest = await server.read(ended.ticket.stream, last_id)
        same(f"what follows {last_id}", rest.events, ended.stream.events[at:])


@promise()
async def a_running_stream_that_is_cut_again_and_again_comes_whole_and_once(
    server: Server,
) -> None:
    ticket = await server.ticket(server.body(tokens=60, interval=0.02))
    seen: list[Event] = []
    while not seen or seen[-1].name != "end":
        last_id = seen[-1].id if seen else ""
        async with server.open(ticket.stream, last_id) as stream:
            await stream.until(_enough)
            seen += stream.events
    same("all of it", seen, (await server.read(ticket.stream)).events)


def _enough(stream: Stream) -> bool:
    return len(stream.events) >= 5 or "end" in stream.names


@promise()
async def a_reconnect_that_has_the_end_gets_204(server: Server) -> None:
    ended = await server.ended()
    last_id = ended.stream.ids[-1]
    for url, sent in (
        (ended.ticket.stream, last_id),
        (f"{ended.ticket.stream}&last_event_id={last_id}", ""),
        (f"{ended.ticket.stream}&format=text", last_id),
    ):
        over = await server.read(url, sent)
        equal("the status and the bytes", (over.status, over.raw), (204, b""))


@promise()
async def an_id_in_the_query_will_do_and_the_header_wins(server: Server) -> None:
    ended = await server.ended()
    events, url = ended.stream.events, ended.ticket.stream
    for name in ("last_event_id", "lastEventId"):
        rest = await server.read(f"{url}&{name}={events[0].id}")
        same(f"what follows {name}", rest.events, events[1:])
    newer = await server.read(f"{url}&last_event_id={events[0].id}", events[-2].id)
    same("what follows the header", newer.events, events[-1:])
    empty = await server.read(f"{url}&last_event_id=&lastEventId=", headers={"Last-Event-ID": ""})
    same("what follows nothing", empty.events, events)


@promise()
async def an_id_that_is_none_of_the_servers_replays_from_the_start(server: Server) -> None:
    ended = await server.ended()
    for last_id in ("x", "-", "1", "01-1", "1-1-1", "9" * 40 + "-1"):
        again = await server.read(ended.ticket.stream, last_id)
        same(f"what follows {last_id}", again.events, ended.stream.events)


@promise()
async def an_id_whose_place_is_gone_gets_a_gap_and_then_everything(server: Server) -> None:
    ended = await server.ended()
    epoch, _ = place(ended.stream.ids[-1])
    for asked in ("1-7", f"{epoch}-999999", f"{epoch + 1}-1"):
        told = await server.read(ended.ticket.stream, asked)
        equal(f"the first name after {asked}", told.names[:1], ["gap"])
        gap = told.events[0]
        first = place(ended.stream.ids[0])
        before = f"{first[0]}-{first[1] - 1}"
        equal("the id of the gap", gap.id, before)
        holds(f'"{asked}"' in gap.data and f'"{before}"' in gap.data, f"the gap says {gap.data}")
        same("what follows the gap", told.events[1:], ended.stream.events)


@promise()
async def who_goes_on_after_a_gap_gets_everything(server: Server) -> None:
    ended = await server.ended()
    first = place(ended.stream.ids[0])
    rest = await server.read(ended.ticket.stream, f"{first[0]}-{first[1] - 1}")
    same("what follows", rest.events, ended.stream.events)

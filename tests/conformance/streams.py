"""Streams: what an event stream is made of, from its headers to its end."""

import asyncio
import re
from itertools import pairwise

from tests.conformance.events import OURS, RESERVED, misframed, place
from tests.conformance.promise import equal, holds, promise, same, within
from tests.conformance.server import Server
from tests.conformance.text import deltas, joined, plain
from tests.conformance.wire import FINAL, Stream, is_stream

WITHOUT_FAILURE = frozenset({"done", "cancelled"})


@promise()
async def a_stream_has_the_type_and_the_headers_of_one(server: Server) -> None:
    stream = (await server.ended()).stream
    equal("the status", stream.status, 200)
    headers = stream.headers
    holds(is_stream(headers), f"Content-Type is {headers.get('content-type')!r}")
    equal("Cache-Control", headers.get("cache-control"), "no-store")
    equal("Content-Encoding", headers.get("content-encoding", "identity"), "identity")
    equal("Content-Length", headers.get("content-length"), None)
    equal("X-Content-Type-Options", headers.get("x-content-type-options"), "nosniff")
    if not ("via" in headers or headers.get("server", "").startswith("nginx")):
        equal("X-Accel-Buffering", headers.get("x-accel-buffering"), "no")


@promise()
async def a_stream_is_a_retry_line_and_one_block_an_event_with_its_id_last(server: Server) -> None:
    wrong = misframed((await server.ended()).stream.raw)
    holds(not wrong, wrong)


@promise()
async def ids_count_from_one_without_holes(server: Server) -> None:
    places = [place(each) for each in (await server.ended()).stream.ids]
    equal("the first number", places[0][1], 1)
    for before, after in pairwise(places):
        next_one = (before[0], before[1] + 1)
        holds(after == next_one or after[0] > before[0], f"after {before} comes {after}")


@promise()
async def no_event_has_a_name_that_means_something_to_a_browser(server: Server) -> None:
    names = set((await server.ended()).stream.names)
    equal("reserved names", names & RESERVED, set())


@promise()
async def the_last_event_is_end_and_then_the_connection_closes(server: Server) -> None:
    stream = (await server.ended()).stream
    end = stream.end
    equal("the number of ends", stream.names.count("end"), 1)
    missing = {"state", "finish_reason", "usage", "tokens", "preset", "attempts"} - set(end)
    holds(not missing, f"end has no {missing}")
    holds(end["state"] in FINAL, f"the state is {end['state']!r}")
    holds(type(end["attempts"]) is int, f"attempts is {end['attempts']!r}")
    for name, kind in (("finish_reason", str), ("usage", dict), ("tokens", dict), ("preset", str)):
        holds(end[name] is None or isinstance(end[name], kind), f"{name} is {end[name]!r}")


@promise()
async def a_failure_stands_before_an_end_that_went_wrong_and_nowhere_else(server: Server) -> None:
    stream = (await server.ended()).stream
    if stream.end["state"] in WITHOUT_FAILURE:
        equal("the number of failures", stream.names.count("failure"), 0)
        return
    failure = stream.failure
    equal("the number of failures", stream.names.count("failure"), 1)
    holds({"code", "message", "retryable"} <= set(failure), f"failure is {failure}")
    holds(isinstance(failure["retryable"], bool), f"retryable is {failure['retryable']!r}")


@promise()
async def who_looks_later_gets_the_same_bytes(server: Server) -> None:
    ended = await server.ended()
    again = await server.read(ended.ticket.stream)
    equal("the bytes", again.bare, ended.stream.bare)


@promise()
async def who_looks_later_accepting_anything_gets_the_same_bytes(server: Server) -> None:
    ended = await server.ended()
    again = await server.read(ended.ticket.stream, headers={"Accept": "text/html, */*;q=0.1"})
    equal("the bytes", again.bare, ended.stream.bare)


@promise()
async def all_viewers_of_a_running_stream_get_the_same_bytes(server: Server) -> None:
    ticket = await server.ticket(server.body(tokens=60, interval=0.02))
    async with server.open(ticket.stream) as first:
        await first.until(_has_an_event)
        async with server.open(ticket.stream) as second:
            late = [server.read(ticket.stream) for _ in range(3)]
            seen = await asyncio.gather(first.rest(), second.rest(), *late)
    holds(seen[0].end["state"] in FINAL, "it has no end")
    for each in seen[1:]:
        equal("the bytes of another viewer", each.bare, seen[0].bare)


def _has_an_event(stream: Stream) -> bool:
    return bool(stream.events)


@promise()
async def format_text_is_the_text_alone_with_the_ids_of_the_whole_stream(server: Server) -> None:
    ended = await server.ended()
    text = await server.read(f"{ended.ticket.stream}&format=text")
    whole = ended.stream
    wrong = misframed(text.raw)
    holds(not wrong, wrong)
    equal("its own names", set(text.names) - OURS, {""} if text.names[0] == "" else set())
    ids = [each for each in whole.ids if each in set(text.ids)]
    equal("its ids", text.ids, ids)
    equal("its last event", text.events[-1:], whole.events[-1:])
    holds("[DONE]" not in [each.data for each in text.events], "it has [DONE]")
    if (said := deltas(whole.events)) is not None:
        equal("its text", plain(joined(text.events)), plain(said))


@promise()
async def format_text_goes_on_after_an_id_too(server: Server) -> None:
    url = f"{(await server.ended()).ticket.stream}&format=text"
    text = await server.read(url)
    for at, last_id in list(enumerate(text.ids[:-1], 1))[:3]:
        same(f"what follows {last_id}", (await server.read(url, last_id)).events, text.events[at:])


@promise("pretend")
async def a_silent_stream_has_a_heartbeat_within_15_seconds(server: Server) -> None:
    ticket = await server.ticket(server.body(fault="stall:1"))
    async with server.open(ticket.stream) as stream:
        await stream.until(_has_an_event)
        try:
            async with within(17, "a heartbeat"):
                await stream.until(lambda stream: re.search(rb"\n\n(?::\n)+\Z", stream.raw))
        finally:
            await server.ask("DELETE", ticket.stream)


@promise()
async def the_first_bytes_come_at_once(server: Server) -> None:
    ticket = await server.ticket(server.body(fault="stall:0"))
    async with server.open(ticket.stream) as stream:
        async with within(5, "the retry line"):
            await stream.until(lambda stream: stream.raw.startswith(b"retry: "))
        await server.ask("DELETE", ticket.stream)

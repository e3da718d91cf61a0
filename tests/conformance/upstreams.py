"""Upstreams: how a stream ends that the pretend upstream spoils (`gateway upstream`, --pretend)."""

import asyncio
import json
from typing import Any

from tests.conformance.promise import equal, holds, promise
from tests.conformance.server import Server
from tests.conformance.wire import Ended

TOKENS = 6


async def _spoilt(server: Server, fault: str) -> Ended:
    body = server.body(fault=fault, tokens=TOKENS)
    ticket = await server.ticket(body)
    return Ended(body, ticket, await server.read(ticket.stream))


def _fails(ended: Ended, state: str, code: str, **more: Any) -> None:
    equal("the state", ended.stream.end["state"], state)
    failure = ended.stream.failure
    wanted = {"code": code, **more}
    equal("the failure", {name: failure.get(name) for name in wanted}, wanted)


def _chunks(ended: Ended) -> int:
    """Return how many events have content."""
    found = [each.data for each in ended.stream.events if each.data.startswith("{")]
    chunks = [each["choices"] for data in found if "choices" in (each := json.loads(data))]
    return sum(bool(each and each[0]["delta"].get("content")) for each in chunks)


@promise("pretend")
async def a_ticket_is_paid_for_once_however_many_redeem_it_at_once(server: Server) -> None:
    body = server.body()
    ticket = await server.ticket(body)
    seen = await asyncio.gather(*(server.read(ticket.stream) for _ in range(12)))
    for each in seen[1:]:
        equal("the bytes of another viewer", each.bare, seen[0].bare)
    equal("requests upstream", await server.calls(body), 1)


@promise("pretend")
async def a_whole_answer_ends_done_with_all_its_events(server: Server) -> None:
    for fault in ("", "comments", "crlf"):
        ended = await _spoilt(server, fault)
        end = ended.stream.end
        equal("the end", (end["state"], end["finish_reason"], end["attempts"]), ("done", "stop", 1))
        holds(isinstance(end["usage"], dict), f"the usage is {end['usage']!r}")
        equal("the chunks", _chunks(ended), TOKENS)
        equal("the last of the upstream", ended.stream.events[-2].data, "[DONE]")


@promise("pretend")
async def an_answer_without_done_is_done_if_it_told_its_finish(server: Server) -> None:
    equal("the state", (await _spoilt(server, "no-done")).stream.end["state"], "done")


@promise("pretend")
async def a_cut_answer_ends_truncated_with_what_came(server: Server) -> None:
    for fault in ("cut:3", "close:3"):
        ended = await _spoilt(server, fault)
        _fails(ended, "truncated", "upstream_cut", retryable=True)
        equal("the chunks", _chunks(ended), 3)


@promise("pretend")
async def an_error_in_the_answer_ends_failed(server: Server) -> None:
    ended = await _spoilt(server, "error:3")
    _fails(ended, "failed", "upstream_error", retryable=True)
    equal("the chunks", _chunks(ended), 3)


@promise("pretend")
async def a_refusal_of_the_upstream_ends_failed_with_its_status(server: Server) -> None:
    for status, retryable in ((401, False), (500, True)):
        ended = await _spoilt(server, f"status:{status}")
        _fails(ended, "failed", "upstream_refused", status=status, retryable=retryable)
        equal("requests upstream", await server.calls(ended.body), 1)


@promise("pretend")
async def only_a_sure_refusal_is_asked_again_and_attempts_tells_so(server: Server) -> None:
    ended = await _spoilt(server, "status:503:1")
    attempts = ended.stream.end["attempts"]
    equal("requests upstream", await server.calls(ended.body), attempts)
    state = "done" if attempts > 1 else "failed"  # It may be told never to ask again.
    equal(f"the state after {attempts} attempt(s)", ended.stream.end["state"], state)


@promise("pretend")
async def an_answer_that_is_no_stream_ends_failed(server: Server) -> None:
    for fault in ("html", "json"):
        _fails(await _spoilt(server, fault), "failed", "upstream_not_a_stream", retryable=False)


@promise("pretend")
async def names_of_the_upstream_are_kept_and_ours_get_a_prefix(server: Server) -> None:
    names = (await _spoilt(server, "named")).stream.names
    equal("the names", names[:5], ["chunk", "chunk", "upstream-open", "chunk", "upstream-end"])
    equal("the number of ends", names.count("end"), 1)

"""From a ticket to a viewer, without a request: whatever speaks to callers only translates."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.auth.tickets import Ticket
from gateway.errors import Rejected, Unavailable
from gateway.runs.redemption import NothingMore, Opened, Redemption
from tests.support import ScriptedUpstream, Served, running, scripted, settings, until, whole

ALICE = "alice"


@asynccontextmanager
async def asked(redis_url: str = "") -> AsyncIterator[tuple[Served, Ticket, ScriptedUpstream]]:
    """Run a replica, and ask it for a ticket."""
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, redis_url=redis_url) as gate,
    ):
        url = await gate.ticket()
        yield gate, gate.gateway.tickets.verify(url.partition("=")[2]), upstream


def redemption(gate: Served) -> Redemption:
    """Return what turns tickets into viewers."""
    return gate.gateway.supervisor.redemption


async def opened(gate: Served, ticket: Ticket, wanted: str = "") -> Opened:
    """Return the viewer of a ticket's stream."""
    found = await redemption(gate).open(ticket, ALICE, wanted)
    assert isinstance(found, Opened)
    return found


async def test_the_first_viewer_starts_the_run_and_all_others_attach_to_it(redis_url: str) -> None:
    async with asked(redis_url) as (gate, ticket, upstream):
        first, second = await opened(gate, ticket), await opened(gate, ticket)
        assert first.viewer.tail is second.viewer.tail
        await until(lambda: first.viewer.tail.ended)
        for each in (first, second):
            gate.gateway.fanout.detach(each.viewer)
            each.seat()
        assert len(upstream.calls) == 1


async def test_who_has_the_end_is_told_that_there_is_nothing_more(redis_url: str) -> None:
    async with asked(redis_url) as (gate, ticket, _):
        viewer, seat, _ = await opened(gate, ticket)
        await until(lambda: viewer.tail.ended)
        gate.gateway.fanout.detach(viewer)
        seat()
        record = await redemption(gate).record(ticket, ALICE)
        again = await redemption(gate).open(ticket, ALICE, record.end_id)
        assert isinstance(again, NothingMore)


async def test_another_ones_ticket_is_none_and_starts_nothing() -> None:
    async with asked() as (gate, ticket, upstream):
        with pytest.raises(Rejected, match="ticket_not_found"):
            await redemption(gate).open(ticket, "mallory", "")
        with pytest.raises(Rejected, match="ticket_not_found"):
            await redemption(gate).record(ticket, "mallory")
        assert upstream.calls == []


async def test_who_drains_claims_nothing_and_takes_nobodys_place() -> None:
    async with asked() as (gate, ticket, upstream):
        gate.gateway.supervisor.draining = True
        with pytest.raises(Unavailable, match="draining"):
            await redemption(gate).open(ticket, ALICE, "")
        gate.gateway.supervisor.draining = False
        assert (await redemption(gate).record(ticket, ALICE)).state == "cached"
        assert gate.gateway.records.limits.viewers.counts == {}
        assert upstream.calls == []


async def test_a_repeat_of_what_is_not_known_begins_nothing_anew() -> None:
    async with asked() as (gate, _, upstream):
        with pytest.raises(Rejected, match="new request"):
            await redemption(gate).of_repeat("", "digest")
        assert upstream.calls == []


async def test_what_was_prepared_for_one_protocol_is_not_sent_in_another() -> None:
    """A reload may come between a ticket and its redemption."""
    async with scripted(whole) as upstream, running(upstream_url=upstream.url, config="x") as gate:
        url = await gate.ticket()
        ticket = gate.gateway.tickets.verify(url.partition("=")[2])
        other = settings(presets={"default": {"url": upstream.url, "protocol": "anthropic"}})
        await gate.gateway.presets.reload(lambda before: other)
        with pytest.raises(Unavailable) as caught:
            await opened(gate, ticket)
        assert caught.value.code == "newer_record"
        assert upstream.calls == []

"""Completion: the answer so far as one object, or as soon as it is whole."""

import asyncio
import json
from typing import Any

from starlette.requests import Request

from gateway import clock
from gateway.auth.tickets import Ticket, Tickets
from gateway.eventlog.fanout import Fanout
from gateway.eventlog.viewer import Viewer
from gateway.runs.endings import FINAL
from gateway.runs.record import Record
from gateway.runs.redemption import Opened, Redemption
from gateway.runs.snapshot import CompletionSnapshots
from gateway.web.endpoint import AnyResponse, Guards
from gateway.web.requests import seconds_to_wait
from gateway.web.responses import LongReply, LongText

_LOOK = 0.5  # Seconds between two looks at a ticket that nobody has redeemed yet.


class CompletionEndpoint:
    """The answer of one stream, for who does not read it as it is written."""

    def __init__(
        self,
        guards: Guards,
        tickets: Tickets,
        redemption: Redemption,
        snapshots: CompletionSnapshots,
        fanout: Fanout,
        write_timeout: float,
    ) -> None:
        self._guards = guards
        self._tickets = tickets
        self._redemption = redemption
        self._snapshots = snapshots
        self._fanout = fanout
        self._write_timeout = write_timeout

    async def get(self, request: Request) -> AnyResponse:
        """GET /completion: the answer so far, or in the end, as one object."""
        subject = await self._guards.caller(request)
        ticket = self._tickets.verify(request.query_params.get("ticket", ""))
        seconds = seconds_to_wait(request)
        starts = request.query_params.get("start") == "1"
        record = await self._redemption.record(ticket, subject)
        if (seconds or starts) and record.state not in FINAL:
            await self._wait(request, ticket, record, clock.now() + seconds, starts)
            record = await self._redemption.record(ticket, subject)
        answer = await self._snapshots.of(record)
        result = json.loads(record.result) if record.result else {}
        data: dict[str, Any] = {
            "state": record.told(answer.last_id is not None),
            "finish_reason": result.get("finish_reason", answer.completion.finish_reason),
            "usage": result.get("usage", answer.completion.usage),
            "tokens": result.get("tokens"),
            **{name: result[name] for name in ("cost", "presets") if name in result},
            "preset": result.get("preset", record.preset),
            "last_event_id": answer.last_id,
            "attempts": result.get("attempts", record.attempts),
            **_failure(record, result),
            **({"ref": record.ref} if record.ref else {}),
        }
        return LongReply(LongText(data, "text", answer.text), self._write_timeout)

    async def _wait(
        self, request: Request, ticket: Ticket, record: Record, until: float, starts: bool
    ) -> None:
        """Return at the end of a stream, or when the time is over or nobody waits any more."""
        while record.state == "cached" and not starts:
            if record.expired or clock.now() + _LOOK > until or await request.is_disconnected():
                return
            await asyncio.sleep(_LOOK)
            record = await self._redemption.record(ticket, record.subject)
        opened = await self._redemption.open(ticket, record.subject, "")
        if isinstance(opened, Opened):
            try:
                await self._watch(request, opened.viewer, until)
            finally:
                self._fanout.detach(opened.viewer)
                opened.seat()

    async def _watch(self, request: Request, viewer: Viewer, until: float) -> None:
        leaving = asyncio.create_task(_left(request, viewer))
        try:
            async with asyncio.timeout(until - clock.now()):
                while not viewer.finished:
                    if viewer.lagging:
                        await self._fanout.turn(viewer)
                    elif not viewer.take():
                        await viewer.wait()
                    else:
                        await asyncio.sleep(0)
        except TimeoutError:
            pass
        finally:
            leaving.cancel()


def _failure(record: Record, result: dict[str, Any]) -> dict[str, Any]:
    """Return what went wrong; a cancel that came first has the last word."""
    wrong = record.state not in ("done", "cancelled")
    return {"failure": result["failure"]} if wrong and "failure" in result else {}


async def _left(request: Request, viewer: Viewer) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    viewer.leave()

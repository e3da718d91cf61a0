"""Whoever listens hears of each run, each viewer and each refusal once, and of no event."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.app import Gateway
from gateway.telemetry.base import NO_TELEMETRY, Telemetry
from tests.support import (
    OK,
    Call,
    Script,
    Served,
    ask,
    chunk,
    client,
    scripted,
    served,
    settings,
    sse,
    until,
    whole,
)


class Recording:
    """A listener that writes everything down."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def run_began(self, preset: str) -> None:
        self.heard.append(("run began", preset))

    def run_ended(self, preset: str, state: str) -> None:
        self.heard.append(("run ended", preset, state))

    def viewer_opened(self) -> None:
        self.heard.append(("viewer opened",))

    def viewer_closed(self) -> None:
        self.heard.append(("viewer closed",))

    def refused(self, code: str) -> None:
        self.heard.append(("refused", code))


@asynccontextmanager
async def heard(script: Script) -> AsyncIterator[tuple[Served, list[tuple[str, ...]]]]:
    """Run a gateway over a scripted upstream, and yield it with what is heard of it."""
    listener = Recording()
    async with scripted(script) as upstream:
        gateway = Gateway(settings(upstream_url=upstream.url), telemetry=listener)
        async with served(gateway.app, gateway) as url, client(url) as http:
            yield Served(gateway, url, http), listener.heard


async def many(call: Call) -> None:
    """The script of a completion in hundreds of events."""
    await call.send(OK)
    for number in range(300):
        await call.send(sse(chunk(f"{number} ")))
    await call.send(sse(chunk("", finish="stop"), b"[DONE]"))


@pytest.mark.parametrize("script", [whole, many])
async def test_a_run_and_its_viewers_are_heard_of_once_however_many_events(script: Script) -> None:
    async with heard(script) as (gate, said):
        url = await gate.ticket()
        assert said == []
        await gate.read(url)
        await until(lambda: len(said) == 4)
        assert set(said[:2]) == {("run began", "default"), ("viewer opened",)}
        assert set(said[2:]) == {("run ended", "default", "done"), ("viewer closed",)}
        await gate.read(url)
        await until(lambda: len(said) == 6)
        assert said[4:] == [("viewer opened",), ("viewer closed",)]


async def test_a_refusal_is_heard_of_with_its_code() -> None:
    async with heard(whole) as (gate, said):
        assert (await gate.http.post("/tickets", json=ask())).status_code == 401
        assert (await gate.http.get("/nowhere")).status_code == 404
        gate.gateway.supervisor.draining = True
        assert (await gate.http.get("/readyz")).status_code == 503
        gate.gateway.supervisor.draining = False
    codes = ("not_authenticated", "not_found", "draining")
    assert said == [("refused", code) for code in codes]


async def test_by_default_nobody_listens() -> None:
    silent: Telemetry = NO_TELEMETRY
    verbs = {name for name in vars(Telemetry) if not name.startswith("_")}
    assert verbs == {name for name in vars(type(silent)) if not name.startswith("_")}

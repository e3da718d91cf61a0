"""The plays of the long run before the pretend upstream: they find what is wrong, and only that."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.sdks import Heard
from tests.support import served
from tests.third_party.plays import PLAYS, Scene, setting
from tests.third_party.server import Question, Server, Way

FAULTS = {"whole": "", "error": "error:6", "early": "status:500", "asked again": "status:503:1"}


class Direct(Server):
    """The pretend upstream, with no server of others before it."""

    breaks = ("error",)
    early = ("early",)

    def question(self, way: Way, fate: str) -> Question:
        """Return one that says itself how it is to end."""
        if fate == "slow":
            return Question("m", more={"pretend": {"interval": 0.05}})
        return Question("m", more={"pretend": {"fault": FAULTS[fate]}})

    def provider(self, way: Way, fate: str) -> str:
        """Return its own URL."""
        return self.base


@asynccontextmanager
async def direct() -> AsyncIterator[Direct]:
    """Run it."""
    async with served(upstream(UpstreamOptions(tokens=60, interval=0.002))) as base:
        yield Direct(base)


@pytest.mark.parametrize("protocol", ["openai", "responses"])
async def test_before_an_upstream_that_is_right_nothing_differs(protocol: str) -> None:
    async with direct() as server:
        scene = await setting(server, Way(protocol))
        found = {name: await play(scene) for name, play in PLAYS.items()}
    assert found == {name: [] for name in PLAYS}


@pytest.mark.parametrize("name", [name for name in PLAYS if name != "once"])
async def test_a_play_finds_that_the_sdk_heard_something_else(name: str) -> None:
    async with direct() as server:
        found = await PLAYS[name](Scene(server, Way("openai"), Heard("Something else.", (1, 1))))
    assert any("text" in each for each in found)


async def test_a_provider_that_is_asked_twice_is_found() -> None:
    async with direct() as server:
        server.early = ("asked again",)
        found = await PLAYS["once"](await setting(server, Way("openai")))
    assert found == ["asked again: calls is 2, not 1", "asked again: attempts is 2, not 1"]

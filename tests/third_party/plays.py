"""The plays: what a gateway before a server of others must make of one of its answers.

Each returns the differences between what came and what should have: none, if all is well.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from tests.dialects import DIALECTS, asked, preset, resumed, said, some
from tests.sdks import SDKS, Heard
from tests.support import Served, running, until
from tests.third_party.relay import relaying
from tests.third_party.server import Server, Way

CUTS = (0.1, 0.3, 0.5, 0.7, 0.85)  # Of an answer's bytes; the proof of its end is in the last.
Play = Callable[["Scene"], Awaitable[list[str]]]


class Scene:
    """A gateway before one API of a server, and what a whole answer there is known to say."""

    def __init__(self, server: Server, way: Way, known: Heard) -> None:
        self.server = server
        self.way = way
        self.known = known

    def gateway(self, base: str = "", **changes: Any) -> AbstractAsyncContextManager[Served]:
        """Run a gateway before the server, or before what stands at `base` for it."""
        given = {"api_key": self.server.key, "retries": 2, **changes}
        where = base or self.server.base
        return running(presets={"default": preset(self.way.protocol, where, **given)})

    def asks(self, fate: str = "whole") -> dict[str, Any]:
        """Return what a page asks for an answer of that fate."""
        question = self.server.question(self.way, fate)
        return asked(self.way.protocol, question.prompt, question.model) | {**question.more}

    async def provider(self, fate: str) -> dict[str, Any]:
        """Return what the pretend upstream behind the server tells of its calls."""
        where = self.server.provider(self.way, fate)
        assert where is not None
        async with httpx.AsyncClient(trust_env=False) as http:
            return dict((await http.get(f"{where}/calls")).json())


async def setting(server: Server, way: Way) -> Scene:
    """Return a scene; the provider's own SDK says what a whole answer there is."""
    question = server.question(way, "whole")
    heard = await SDKS[way.protocol](server.base, question.prompt, question.model, server.key)
    return Scene(server, way, heard)


def differences(**pairs: tuple[Any, Any]) -> list[str]:
    """Return what is not as it should be, of pairs of what came and what should have."""
    return [
        f"{name.replace('_', ' ')} is {_short(got)}, not {_short(wanted)}"
        for name, (got, wanted) in pairs.items()
        if got != wanted
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:60]}…{text[-30:]}"


async def whole(scene: Scene) -> list[str]:
    """An answer from its first event to its end, by all that tells it."""
    async with scene.gateway() as gateway:
        url = await gateway.ticket(scene.asks())
        end = (await gateway.read(url)).end
        completion = await gateway.completion(url)
        text = await said(gateway, url)
    usual = DIALECTS[scene.way.protocol].reason
    return differences(
        state=(end["state"], "done"),
        finish_reason=(end["finish_reason"], usual),
        text=(completion["text"], scene.known.text),
        format_text=(text, scene.known.text),
        tokens=((end["tokens"]["prompt"], end["tokens"]["completion"]), scene.known.tokens),
        attempts=(end["attempts"], 1),
    )


async def resume(scene: Scene) -> list[str]:
    """A viewer that leaves twice in the middle, and comes back with its Last-Event-ID."""
    async with scene.gateway() as gateway:
        url = await gateway.ticket(scene.asks())
        seen = await resumed(gateway, url)
        everything = await gateway.read(url)
        text = (await gateway.completion(url))["text"]
    return differences(
        state=(seen.end["state"], "done"),
        ids=(seen.ids, everything.ids),
        events=(seen.events, everything.events),
        text=(text, scene.known.text),
    )


async def cancel(scene: Scene) -> list[str]:
    """A cancel in the middle: the text so far, and nobody who works on for nothing."""
    async with scene.gateway() as gateway:
        url = await gateway.ticket(scene.asks("slow"))
        await gateway.read(url, enough=some(12))
        answer = await gateway.http.delete(url, headers=gateway.cookie())
        end = (await gateway.read(url)).end
        text = (await gateway.completion(url))["text"]
    found = differences(
        answer=(answer.json(), {"state": "cancelled"}),
        state=(end["state"], "cancelled"),
        estimated=(end["usage"].get("estimated"), True),
        text_so_far=(text, scene.known.text[: len(text)]),
        is_part=(0 < len(text) < len(scene.known.text), True),
    )
    return found + await _left(scene)


async def _left(scene: Scene) -> list[str]:
    """Whether the provider behind the server, if there is one, noticed that nobody listens."""
    if scene.server.provider(scene.way, "slow") is None:
        return []

    async def closed() -> Any:
        told = await scene.provider("slow")
        return told["calls"][-1]["closed"] if not told["open"] else None

    return differences(provider=(await until(closed, "the provider's call ends"), "client"))


async def cut(scene: Scene) -> list[str]:
    """A connection that breaks at any point: never whole, never asked for again."""
    found = []
    async with relaying(scene.server.base) as relay, scene.gateway(relay.url) as gateway:
        url = await gateway.ticket(scene.asks())
        await gateway.read(url)
        size = relay.sent
        for part in CUTS:
            relay.most = int(size * part)
            found += await _broken(gateway, scene, "whole", ("truncated", "upstream_cut"))
    return found


async def error(scene: Scene) -> list[str]:
    """An error inside of the answer, of each kind that the server knows."""
    async with scene.gateway() as gateway:
        return [
            f"{fate}: {each}"
            for fate in scene.server.breaks
            for each in await _broken(gateway, scene, fate, ("failed", "upstream_error"))
        ]


async def _broken(gateway: Served, scene: Scene, fate: str, wanted: tuple[str, str]) -> list[str]:
    url = await gateway.ticket(scene.asks(fate))
    transcript = await gateway.read(url)
    text = (await gateway.completion(url))["text"]
    return differences(
        end=((transcript.end["state"], transcript.failure["code"]), wanted),
        text_so_far=(text, scene.known.text[: len(text)]),
        attempts=(transcript.end["attempts"], 1),
    )


async def once(scene: Scene) -> list[str]:
    """A provider that breaks before its first piece: it may have been paid, and is asked once."""
    found = []
    async with scene.gateway() as gateway:
        for fate in scene.server.early:
            before = (await scene.provider(fate))["count"]
            end = (await gateway.read(await gateway.ticket(scene.asks(fate)))).end
            calls = (await scene.provider(fate))["count"] - before
            told = differences(calls=(calls, 1), attempts=(end["attempts"], 1))
            found += [f"{fate}: {each}" for each in told]
    return found


PLAYS: dict[str, Play] = {each.__name__: each for each in (whole, resume, cancel, cut, error, once)}

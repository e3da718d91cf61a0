"""A chat whose upstream numbers its events and keeps them, as background responses are kept."""

import json
from collections.abc import Iterable

import pytest

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols import table
from gateway.upstream.protocols.base import HttpRequest, Rest
from gateway.upstream.protocols.chat import Chat
from tests.support import OK, Call, chunk, sse


class KeptChat(Chat):
    """Goes on after the last event that has a number."""

    def keeps(self, preset: Preset) -> bool:
        """Return True."""
        return True

    def rest(self, preset: Preset, seen: Iterable[Event]) -> Rest | None:
        """Ask for what follows the last event."""
        numbers = [json.loads(event.data)["number"] for event in seen]
        if not numbers:
            return None
        return Rest(self._sent(preset, "GET", f"/rest?after={numbers[-1]}"), numbers[-1])

    def look(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Ask how it is."""
        return self._sent(preset, "GET", "/look") if [*seen] else None

    def goes_on(self, body: bytes) -> bool:
        """Whether it says so."""
        return body == b"running"

    def stop(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Stop what has begun."""
        return self._sent(preset, "POST", "/stop") if [*seen] else None

    def _sent(self, preset: Preset, method: str, path: str) -> HttpRequest:
        return HttpRequest(method, preset.url + path, self.request(preset, b"").headers)


def use_kept_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every preset speak it."""
    monkeypatch.setattr(table, "PROTOCOLS", {table.DEFAULT: KeptChat()})


def numbered(number: int, text: str, finish: str | None = None, index: int = 0) -> bytes:
    """Return the data of a numbered chunk."""
    plain = json.loads(chunk(text, finish=finish, index=index))
    return json.dumps({**plain, "number": number}).encode()


KEPT = [numbered(1, "Hel"), numbered(2, "", "stop", 1), numbered(3, "lo"), numbered(4, "", "stop")]


def kind(call: Call) -> str:
    """Return what a call is: create, rest, look or stop."""
    path = call.head.split()[1].decode()
    return next((name for name in ("rest", "look", "stop") if f"/{name}" in path), "create")


async def keeps(call: Call) -> None:
    """Answer with two events at first, and with the others who asks for the rest."""
    if kind(call) == "rest":
        after = int(call.head.partition(b"after=")[2].split()[0])
        await call.send(OK, sse(*KEPT[after:]))
    else:
        await call.send(OK, sse(*KEPT[:2]))
        await call.left.wait()

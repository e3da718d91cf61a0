"""Receivers: servers that webhooks are told to; each judges its signatures by the specification."""

import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.support import Call, scripted

KEY = base64.b64encode(b"a key of thirty-two bytes, or so").decode()
SECRET = f"whsec_{KEY}"

Answer = Callable[[Call], Awaitable[None]]


class Message(NamedTuple):
    """What was told once."""

    id: str
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        """What it says of the end."""
        told = json.loads(self.body)
        assert told.keys() == {"type", "timestamp", "data"}
        assert told["type"] == "stream.ended"
        return dict(told["data"])


def verified(call: Call) -> Message:
    """Return what a call tells; fails if it is not signed as Standard Webhooks says."""
    lines = [line.partition(b":") for line in call.head.split(b"\r\n")[1:] if line]
    headers = {name.lower().decode(): value.strip().decode() for name, _, value in lines}
    assert call.head.startswith(b"POST ")
    assert headers["content-type"] == "application/json"
    name, sent = headers["webhook-id"], headers["webhook-timestamp"]
    assert abs(time.time() - int(sent)) < 300
    signed = b".".join([name.encode(), sent.encode(), call.body])
    digest = hmac.new(base64.b64decode(KEY), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    return Message(name, call.body)


async def hears(call: Call) -> None:
    """Say that it was heard."""
    await call.send(b"HTTP/1.1 204 No Content\r\n\r\n")


def answers(status: str, *headers: str) -> Answer:
    """Return who answers so."""

    async def answer(call: Call) -> None:
        head = "".join(f"{each}\r\n" for each in [f"HTTP/1.1 {status}", *headers])
        await call.send(f"{head}Content-Length: 0\r\n\r\n".encode())

    return answer


class Receiver:
    """A server that answers in turn, the last one for ever; what it was told is verified."""

    def __init__(self, *turns: Answer) -> None:
        self.turns = list(turns or (hears,))
        self.told: list[Message] = []  # At each try.
        self.heard: list[Message] = []
        self.preset: dict[str, Any] = {}

    async def __call__(self, call: Call) -> None:
        """Take one message."""
        told = verified(call)
        self.told.append(told)
        answer = self.turns[0] if len(self.turns) == 1 else self.turns.pop(0)
        if answer is hears:
            self.heard.append(told)
        await answer(call)

    @property
    def states(self) -> Counter[str]:
        """The states that were heard."""
        return Counter(each.data["state"] for each in self.heard)


@asynccontextmanager
async def receiver(*turns: Answer) -> AsyncIterator[Receiver]:
    """Run a receiver; its `preset` is what a preset says of it."""
    made = Receiver(*turns)
    async with scripted(made) as server:
        made.preset = {"webhook": server.url, "webhook_secret": SECRET}
        yield made

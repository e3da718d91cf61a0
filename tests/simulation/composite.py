"""A viewer that follows its stream over the one connection that carries its channel and others.

What it gets is turned back into what `GET /stream` would have given, so the oracle judges it alike.
"""

import json
from typing import Any

from tests.faults.followers import place_of
from tests.simulation.client import EventSource, Exchange


class CompositeSource(EventSource):
    """An EventSource of `GET /events` with one ticket."""

    def _asked(self, replica: Any, headers: dict[str, str]) -> Exchange:
        lend, query = self.act["lend"], {"ticket": self.stream.ticket}
        return Exchange(replica, "GET", "/events", headers=headers, query=query, lend=lend)

    def _event(self, block: bytes, world: Any) -> None:
        *lines, last = [each for each in block.split(b"\n") if each and each[:1] != b":"]
        if last.startswith(b"id: "):
            composite, self.last_id = last[4:].decode(), last[4:].decode()
        for line in [each for each in (*lines, last) if each.startswith(b"retry: ")]:
            self._retry = int(line[7:]) / 1000
        lines = [each for each in lines if not each.startswith(b"retry: ")]
        if not lines:
            return
        name = lines[0].removeprefix(b"event: 1").removeprefix(b".")
        body = [b"event: " + name, *lines[1:]] if name else lines[1:]
        number = place_of(composite, 1)
        if not number and name == b"failure":  # There is nothing in a log: it was refused.
            self._over(world, json.loads(lines[1].removeprefix(b"data: "))["code"])
        elif not self.outcome:
            number = number or world.oracle.id_of(self.stream.stream_id, b"\n".join(body))
            world.oracle.shown(self, number, b"\n".join([*body, b"id: " + number.encode()]))
            if name == b"end":
                self._over(world, "")

    def _over(self, world: Any, code: str) -> None:
        """Be told what `GET /stream` would have said."""
        self.outcome = "204" if self.seen or self.gaps or not code else f"410 {code}"
        self.told_at = self.ended_at = world.loop.time()
        world.say(f"{self.name} was told {self.outcome}")
        if self._exchange is not None:
            self._exchange.leave()

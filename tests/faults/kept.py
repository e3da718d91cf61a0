"""Kept: answers that go on without their connection, as background responses do.

Its events come at their times, whoever is there to see them. What befalls a connection befalls the
answer only where nobody can ask for the rest: before its first event, which has its id.
"""

import asyncio
import random
import time
from typing import Any

from tests.faults.plays import NASTY, PROMPT_TOKENS, Call, Play, Sent, packed, tokens_of
from tests.faults.schedule import Answer

_CUTS = 3  # Connections to one answer that are cut.


class Kept:
    """One answer: what it says when, and whether it was told to stop."""

    def __init__(self, call: Call, answer: Answer) -> None:
        self.call = call
        self.answer = answer
        self.name = f"resp_{call.ticket}_{call.number}"
        self.connections = 0
        self._began = time.monotonic()
        self._fails = answer.fault == "garbage" and answer.variant == "error"
        self._stopped: float | None = None

    @property
    def last(self) -> int:
        """The number of its last event."""
        # It has an id before it fails, or nobody could ask for the rest.
        return max(1, self.answer.at) if self._fails else self.answer.events + 1

    @property
    def status(self) -> str:
        """How it is now."""
        if self._stopped is not None:
            return "cancelled"
        over = "failed" if self._fails else "completed"
        return over if time.monotonic() >= self._due(self.last) else "in_progress"

    def cancel(self) -> None:
        """Say no more; of what is over nothing changes."""
        self.call.cancels += 1
        if self.status == "in_progress":
            self._stopped = time.monotonic()

    async def comes(self, number: int) -> bool:
        """Return when an event is there, or that it never will be."""
        due = self._due(number)
        await asyncio.sleep(due - time.monotonic())
        return self._stopped is None or self._stopped > due

    def _due(self, number: int) -> float:
        return self._began + number * self.answer.interval

    def event(self, number: int) -> Sent:
        """Return an event, the same each time."""
        if not number:
            begun = {"id": self.name, "status": "in_progress"}
            return self._event(number, "response.created", response=begun)
        if number < self.last:
            return self._event(number, "response.output_text.delta", delta=self._text(number))
        if self._fails:
            return self._event(number, "error", message="the model fell over")
        told = {
            "input_tokens": PROMPT_TOKENS,
            "output_tokens": sum(tokens_of(self._text(each)) for each in range(1, number)),
        }
        whole = {"id": self.name, "status": "completed", "usage": told}
        return self._event(number, "response.completed", response=whole)

    def _text(self, number: int) -> str:
        return random.Random(f"{self.name} {number}").choice(NASTY) + "x" * self.answer.padding

    def _event(self, number: int, kind: str, **more: Any) -> Sent:
        known = {"ticket": self.call.ticket, "call": self.call.number, "sequence_number": number}
        told = {"type": kind, **known, **more}
        return kind.encode(), packed(told)


class KeptPlay(Play):
    """One connection to a kept answer: the first one, or one that asks for what comes `after`."""

    def __init__(
        self,
        played: dict[str, int],
        kept: Kept,
        writer: asyncio.StreamWriter,
        after: int | None = None,
    ) -> None:
        super().__init__(played, kept.call, kept.answer, writer)
        self._kept = kept
        self._next = 0 if after is None else after + 1
        self._at = kept.answer.at
        kept.connections += 1
        if after is not None:
            self._count("attach")
            cut = kept.answer.fault == "cut" and kept.connections <= _CUTS
            self._at = self._next + self._chance.randint(0, 20) if cut else -1

    async def _events(self) -> bool:
        for number in range(self._next, self._kept.last + 1):
            if self._answer.fault and number == self._at and await self._fails():
                return False
            if not await self._kept.comes(number):
                return True  # It was told to stop.
            if number == self._kept.last:
                self._ends()
            await self._event(*self._kept.event(number))
        return True

    def _ends(self) -> None:
        failed = self._kept.status == "failed"
        self.call.finished, self.call.outcome = not failed, "error" if failed else "whole"

    def _keep(self, event: Sent) -> None:
        if event not in self.call.sent:  # An earlier connection may have had it.
            self.call.sent.append(event)

    def _fault(self, outcome: str = "") -> None:
        if self._kept.connections > 1:
            return
        super()._fault(outcome if not self.call.sent else "")

    async def _garbage(self, variant: str) -> bool:
        if variant != "error":
            return await super()._garbage(variant)
        self._fault()
        return False  # It is the answer's next event.

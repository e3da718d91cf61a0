"""Deadlines: which connections owe us something, until when, and whom their end is told.

One look at all of them stands for a timer each. Open streams are not among them.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

_HELD = 1 << 24  # Bytes that wait for their turn.
_MOST = 8192  # Connections that owe something to send; the oldest makes room.


class Terms(NamedTuple):
    """What a caller may take: bytes of a head, and seconds."""

    size: int = 32768
    head: float = 10
    body: float = 30
    idle: float = 5
    reading: float = 30


class Connection(Protocol):
    """What can be closed from here."""

    def drop(self) -> None:
        """Close it after what was sent; whoever does not read that does not hold it open."""


class Debtor(Connection, Protocol):
    """A connection that may owe something."""

    def overdue(self) -> None:
        """It has not sent what it owes."""

    def unread(self) -> None:
        """It may have read nothing of what was sent."""


class Taker(Protocol):
    """A connection that has more to parse, or to read."""

    def turn(self) -> None:
        """Do some of it."""


class Turns:
    """Connections that cost much time for few bytes: all of them together do one turn at a time.

    Else thirty of them would have their turn between any two events of everybody else's.
    """

    def __init__(self) -> None:
        self._waiting: dict[Taker, int] = {}
        self._held = 0
        self._due = False  # Whether the next turn is.

    def wait(self, taker: Taker, size: int) -> bool:
        """Let one wait that holds so many bytes; return whether there is room for them."""
        self._held += size - self._waiting.get(taker, 0)
        self._waiting[taker] = size
        self._go_on()
        return self._held <= _HELD

    def _go_on(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._due = False
        taker = next(iter(self._waiting))
        self._held -= self._waiting.pop(taker)
        self._go_on()
        taker.turn()


class Debts:
    """Who has to send, and who has to read; each in the order in which that began."""

    def __init__(self, terms: Terms, files: int) -> None:
        self.terms = terms
        self.turns = Turns()
        self._most = min(_MOST, files // 2)  # The rest are for streams, and for what they need.
        self._sending: dict[Debtor, float] = {}
        self._reading: dict[Debtor, float] = {}

    def expect(self, debtor: Debtor, seconds: float) -> None:
        """Expect something of a connection, instead of what was expected before."""
        self._sending.pop(debtor, None)
        self._sending[debtor] = monotonic() + seconds
        if len(self._sending) > self._most:
            next(iter(self._sending)).drop()

    def expect_reading(self, debtor: Debtor) -> None:
        """Expect that a connection reads."""
        self._reading[debtor] = monotonic() + self.terms.reading

    def sent(self, debtor: Debtor) -> None:
        """It has sent what it owed."""
        self._sending.pop(debtor, None)

    def read(self, debtor: Debtor) -> None:
        """It has read."""
        self._reading.pop(debtor, None)

    def collect(self) -> None:
        """Go through all; each says itself what follows."""
        now = monotonic()
        for debtor in [each for each, due in self._sending.items() if due <= now]:
            self._sending.pop(debtor, None)
            debtor.overdue()
        for debtor in [each for each, due in self._reading.items() if due <= now]:
            self._reading.pop(debtor, None)
            debtor.unread()


class Closed:
    """Whom to tell that a connection has ended; who comes late is told at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lost = False
        self._calls: list[Callable[[], None]] = []  # One; a set would be larger.

    def add(self, call: Callable[[], None]) -> None:
        """Call this at the end."""
        self._calls.append(call)
        if self._lost:
            call()

    def discard(self, call: Callable[[], None]) -> None:
        """Do not: the response has ended before its connection."""
        if call in self._calls:
            self._calls.remove(call)

    async def hang_up(self) -> None:
        """Close the connection after what was sent, whatever is missing; return once it is."""
        ended = asyncio.Event()
        self._connection.drop()
        self.add(ended.set)
        await ended.wait()

    def tell(self) -> None:
        """Tell all."""
        self._lost = True
        for call in list(self._calls):
            call()

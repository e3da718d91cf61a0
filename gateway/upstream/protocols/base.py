"""Protocols: how an upstream is asked, and what its answer tells; one implementation a provider.

Nothing outside this package knows a provider's JSON, headers or statuses. What is here is pure: no
I/O, no clock, and requests are values. The bytes of an answer are never changed: a protocol reads
them, and whoever runs the stream logs and shows them as they came.

To add a protocol:

1. Write `protocols/NAME.py` with a class that has what `Protocol` lists, and beside it, if they do
   not fit there, the classes that its methods return: a `CompletionState`, an `AnswerText` and,
   where the answer is no event stream, `Frames`. Nothing is to be inherited; mypy compares.
2. Add an instance of it to `table.PROTOCOLS`, under its name, and that to `Preset.protocol`. It
   holds no state of a stream: one serves all.
3. Put its tests in `tests/upstream/protocols/test_NAME.py`; `test_table.py` there plays what holds
   for all with each protocol of the table. Tell `tests/test_layout.py` where its modules are
   tested, and the docs its name.

Shared by all who need it: `complaints` and `error_text` (errors in whatever shape), `usage`
(bounded as a page may see it; and its tokens), `refusals` (which statuses are sure, how long to
wait), `requests` (what all are asked alike), `demand` (what a request may take), `readings` and
`conversations` (answers and what was said, in words that no provider has), `volume` (what was said,
where nobody counted it), `terminal_state` (answers whose end is one event), and
`gateway.sse.Parser` as `Frames`.

`see` and `feed` are called for each event of each stream. An event that tells nothing of the end,
of an error or of the price must not be decoded: let a regular expression look first.
"""

import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gateway.config.presets import Preset
from gateway.sse import Event
from gateway.upstream.protocols.conversation import Turn
from gateway.upstream.protocols.forms import Form
from gateway.upstream.protocols.readings import Readings


class HttpRequest(NamedTuple):
    """What is sent to an upstream; its length is added to the headers, and its host if missing."""

    method: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""


NONE = -1  # The number of no event.
CHARACTERS = 4  # Of a token, where tokens have to be guessed from text.


class Rest(NamedTuple):
    """What asks for an answer's rest, and the number of the last event that is logged of it."""

    request: HttpRequest
    last: int = NONE


class Refusal(NamedTuple):
    """What an answer without a stream tells; `words` are as they came, and may quote our keys."""

    words: str  # "" if it has none.
    sure: bool  # Whether nothing can have been paid for, so that asking again is safe.
    retryable: bool  # Whether a new ticket may fare better.
    retry_after: float | None  # Seconds, None if it does not say.


class Tokens(NamedTuple):
    """What an answer took, of prompt and completion; None where nobody knows."""

    prompt: int | None = None  # With those that came from a cache.
    completion: int | None = None  # With what was thought and not said.
    cached: int | None = None  # Of those of the prompt.
    estimated: int = 0  # Of all these: the upstream never told them, they are a guess.

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return self.prompt is not None or self.completion is not None

    def or_guess(self, pieces: int) -> "Tokens":
        """Return the same, with a guess where the completion's are not known."""
        if self.completion is not None or not pieces:
            return self
        return self._replace(completion=pieces, estimated=self.estimated + pieces)

    def plus(self, other: "Tokens") -> "Tokens":
        """Return the sum; what one does not know counts as none."""
        return Tokens(
            _sum(self.prompt, other.prompt),
            _sum(self.completion, other.completion),
            _sum(self.cached, other.cached),
            self.estimated + other.estimated,
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)


class Frames(typing.Protocol):
    """The bytes of one answer, cut into events however they come."""

    overflow: bool  # An event is too large; none after it is returned.
    noisy: bool  # Too much came that is no event.
    strays: bytes | bytearray  # The start of what is of no event: it may be an error.
    odd: bool  # Set with any of these; whoever has looked at them takes it back.

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""

    def rest(self) -> list[Event]:
        """Return what was left incomplete, once."""

    def abandon(self) -> None:
        """Look for strays in what was left incomplete."""


class CompletionState(typing.Protocol):
    """What a streamed completion has told so far."""

    choices: int  # Answers that were asked for.
    error: dict[str, Any] | None  # What the upstream complained of, its words as `message`.
    finished: bool  # Whether the upstream said that the completion is whole.
    closed: bool  # Whether nothing that follows is of the answer: it is read no further.
    over: bool  # Whether the stream ended of its own accord.

    @property
    def usage(self) -> dict[str, Any] | None:
        """What it told of the price, as it told it; bounded."""

    @property
    def tokens(self) -> Tokens:
        """What it took so far, estimated if need be: see `usage.count_in`. Asked for at the end."""

    @property
    def counted(self) -> bool:
        """Whether the upstream told what the completion took: then nothing is to be guessed."""

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended, in the upstream's word; None if it did not say."""

    @property
    def broken_off(self) -> bool:
        """Whether its reason says that it did not finish."""

    @property
    def at_rest(self) -> bool:
        """Whether a long silence means that nothing more is to come."""

    @property
    def empty(self) -> bool:
        """Whether nothing of an answer came."""

    @property
    def retryable(self) -> bool:
        """Whether asking again may mend the error."""

    def see(self, event: Event) -> None:
        """Take note of one event, as it comes or from the log, where its name may be prefixed."""

    def hear(self, strays: bytes | bytearray) -> None:
        """Take note of what came outside of all events: it may be an error."""

    def suspect(self, event: Event) -> None:
        """Take an event that was cut off for an error, if it is one: it is not for anyone else."""

    def look_back(self) -> None:
        """Take the last event for an error if it looks like one: nothing came after it."""

    def end(self, *, framed: bool) -> None:
        """Take note of the end: HTTP vouches that nothing is missing if it is `framed`."""

    def weigh(self, tokens: int) -> None:
        """Take a better guess than the number of events for what the completion took, 0 is none."""

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, or a guess with `estimated` where the upstream never told it."""


class AnswerText(typing.Protocol):
    """The plain text of one answer, event by event."""

    anew: bool  # Whether the last text begins it anew: that before was of another answer.

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds to the answer; "" if it adds none."""


class Protocol(typing.Protocol):
    """How one kind of upstream is asked and understood."""

    types: frozenset[str]  # Content types that are a stream, in lower case.
    starts: tuple[bytes, ...]  # What a stream begins with, where its type is lost or wrong.

    def prepare(self, preset: Preset, body: dict[str, Any]) -> dict[str, Any]:
        """Return the request that a preset makes of a page's; raises Rejected.

        The values of `body` are neither changed nor copied: their text is sent as it came.
        """

    def form(self, preset: Preset) -> Form:
        """Return where a preset's requests have what is ruled over and counted."""

    def request(self, preset: Preset, body: bytes) -> HttpRequest:
        """Return what is sent for a prepared request; of no body what `gateway check` sends."""

    def frames(
        self, preset: Preset, limit: int, noise: int | None = None, last: int = NONE
    ) -> Frames:
        """Return what cuts an answer into events of `limit` bytes, with `noise` between them.

        Of one that was asked for again those up to the number `last` are logged: they are left out.
        What echoes a prompt of the preset's own may be left out of an event; nothing else is.
        """

    def completion(self, body: bytes = b"") -> CompletionState:
        """Return the state of an answer to a prepared request, with nothing seen."""

    def is_whole(self, event: Event) -> bool:
        """Whether an event is complete whose end is that of a framed body."""

    def closes(self, event: Event) -> bool:
        """Whether nothing after this event is of the answer."""

    def text(self, begun: Iterable[Event] = (), choices: int = 1) -> AnswerText:
        """Return the text of an answer from here on; it began with these events."""

    def readings(self) -> Readings:
        """Return what reads an answer from its start for who knows no provider."""

    def conversation(self, preset: Preset, turns: Sequence[Turn]) -> dict[str, Any]:
        """Return the members of a request that say what was said so far; raises Rejected."""

    def said(self, event: Event) -> Iterable[str]:
        """Return what an event adds to all that was generated, an answer's share a piece.

        Thoughts too, and the input of calls: all is paid for. Total, whatever the event is.
        """

    def refused(
        self, preset: Preset, status: int, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Refusal:
        """Judge an answer that is no success; `headers` in lower case, `body` its beginning."""

    def keeps(self, preset: Preset) -> bool:
        """Whether such an answer outlives its connection: only then what follows is asked for."""

    def rest(self, preset: Preset, seen: Iterable[Event]) -> Rest | None:
        """Return what asks for an answer's rest, at no further price; None if it is lost.

        For an upstream that keeps its answers, as background responses are. `seen` are the events
        up to the last one logged, data byte for byte, so the answer's id and the last number are
        among them. A refusal ends the stream. What is raised is logged, and taken for None.
        """

    def look(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return what asks how a silent answer is; None where silence means that it is lost."""

    def goes_on(self, body: bytes) -> bool:
        """Whether what was answered to that says that there is more to come."""

    def stop(self, preset: Preset, seen: Iterable[Event]) -> HttpRequest | None:
        """Return what tells the upstream to stop; None where closing the connection does."""

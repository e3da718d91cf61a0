"""Terminal state: what answers tell whose end is an event of its own. Pure.

The same for all of them: nothing after that event is of the answer, an error outweighs it unless it
came first, `[DONE]` closes the body and proves nothing, and an end with nothing before it is none.
What an event means is said by those who inherit: `_tells` is the gate, and is asked for each event;
only what passes is decoded.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from gateway.sse import Event
from gateway.upstream.protocols import complaints
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.chat_chunks import DONE, decoded, is_whole
from gateway.upstream.protocols.reasons import BROKEN_OFF, is_error, reason_of
from gateway.upstream.protocols.usage import Usage

_SHORT = 128  # Bytes that `[DONE]` and the white space around it may have.


class TerminalState:
    """What a streamed completion has told so far."""

    counts: ClassVar[str] = "output_tokens"  # The member of the usage that counts the answer's.

    def __init__(self, choices: int = 1) -> None:
        self.choices = choices
        self.error: dict[str, Any] | None = None
        self.finished = False
        self.closed = False
        self.over = False
        self.pieces = 0
        self._usage = Usage()
        self._reason: str | None = None
        self._begun = False  # Whether anything of an answer came.
        self._ended = False  # Whether the event that says so did.
        self._last = b""  # The last event, if it was of no answer: it may be an error.

    def _tells(self, event: Event) -> bool:
        """Whether an event may tell of the end, of an error or of the price."""
        raise NotImplementedError

    def _is_piece(self, data: bytes) -> bool:
        """Whether an event is a piece of the answer, of about a token."""
        raise NotImplementedError

    def _begins(self, data: bytes) -> bool:
        """Whether an event shows that there is an answer."""
        return self._is_piece(data)

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        """Take note of what an event tells that passed the gate; {} where it is no object."""
        raise NotImplementedError

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        """Return what a usage tells, in its upstream's names."""
        raise NotImplementedError

    def _complaint(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Return the error that an event tells, None if it tells none."""
        return complaints.complaint(chunk)

    def _is_whole(self, *, framed: bool) -> bool:
        """Whether the answer is whole if it ends here, and nothing is wrong with it."""
        return self._ended and not self.empty

    @property
    def usage(self) -> dict[str, Any] | None:
        """What it told of the price."""
        return self._usage.told

    @property
    def finish_reason(self) -> str | None:
        """The last reason that was told."""
        return self._reason

    @property
    def broken_off(self) -> bool:
        """Whether that reason says that it did not finish."""
        return (self._reason or "").lower() in BROKEN_OFF

    @property
    def at_rest(self) -> bool:
        """Return False: what has ended is not waited for."""
        return False

    @property
    def empty(self) -> bool:
        """Whether nothing of an answer came, and no reason for that."""
        return not self._begun and self.finish_reason is None

    @property
    def retryable(self) -> bool:
        """Whether asking again may mend the error."""
        return complaints.retryable(self.error or {})

    def see(self, event: Event) -> None:
        """Take note of one event."""
        data, name, _ = event
        if self.closed:
            return
        if len(data) < _SHORT and data.strip() == DONE:
            self._close()
            return
        before, self._last = self._last, b""
        if self._is_piece(data):
            self.pieces += 1
            self._begun = True
        elif not self._begins(data):
            self._last = data
        else:
            self._begun = True
        if self._tells(event):
            self._suspect(before)
            chunk = decoded(data)
            self.fail(self._complaint(chunk))
            self._read(chunk, event)
            if not chunk:
                self.fail(complaints.unescaped_complaint(data))
            if data.startswith(b"["):
                self.hear(data)
        if name and name.lower() in complaints.ERROR_NAMES:
            self.fail(complaints.named_complaint(decoded(data), data))

    def hear(self, strays: bytes | bytearray) -> None:
        """Take note of what came outside of all events: it may be the JSON of an error."""
        if strays:
            self.fail(complaints.stray_complaint(strays))

    def suspect(self, event: Event) -> None:
        """Take an event that was cut off for an error, if it is one: it is not for anyone else."""
        self._suspect(event.data)
        if event.name.lower() in complaints.ERROR_NAMES and is_whole(event.data):
            self.fail(complaints.named_complaint(decoded(event.data), event.data))

    def look_back(self) -> None:
        """Take the last event for an error if it looks like one: nothing came after it."""
        self._suspect(self._last)
        if self._last and not self._ended and self.finish_reason is None:
            self.fail(complaints.last_words(decoded(self._last)))

    def end(self, *, framed: bool) -> None:
        """Take note of the end: HTTP vouches that nothing is missing if it is `framed`."""
        self.look_back()
        self.over = self.over or framed
        if self._is_whole(framed=framed) and self.error is None and not self.broken_off:
            self.finished = True

    def _close(self) -> None:
        self.closed = True
        self.end(framed=True)

    def finish(self) -> None:
        """Take note that the answer has come to its end."""
        self._ended = True
        self._close()

    def note_reason(self, value: Any) -> bool:
        """Take note of a reason, if it is one; say whether it is."""
        reason = reason_of(value)
        if reason is None:
            return False
        self._reason = reason
        if is_error(reason):
            self.fail({"message": ""})
        return True

    def _suspect(self, data: bytes) -> None:
        if data:
            self.fail(self._complaint(decoded(data)))

    def note_usage(self, places: Iterable[Any], size: int) -> None:
        """Take note of what an event of this size tells of the price in these places."""
        self._usage.see(places, size)

    def fail(self, error: dict[str, Any] | None) -> None:
        """Take note of an error, if it is one and nothing outweighs it."""
        if error is not None and not self.finished and self.error is None:
            self.error = error  # After a clean end nothing can undo it.

    @property
    def tokens(self) -> Tokens:
        """What it took so far, estimated if need be."""
        told = self._tokens(self.estimate() or {})
        if not self._is_guess:
            return told.or_guess(self.pieces)
        return told._replace(estimated=told.completion or 0)

    @property
    def counted(self) -> bool:
        """Whether the upstream told what the completion took."""
        return self._is_counted(self.usage or {})

    def weigh(self, tokens: int) -> None:
        """Take a better guess than the number of events for what the completion took."""
        self.pieces = tokens or self.pieces

    @property
    def _is_guess(self) -> bool:
        return bool(self.pieces) and not self.counted

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, with a guess where it does not tell the answer's."""
        usage = self.usage or {}
        if not self._is_guess:
            return self.usage
        told = usage.get(self.counts)
        least = told if type(told) is int else 0
        return {**usage, self.counts: max(self.pieces, least), "estimated": True}

    def _is_counted(self, usage: dict[str, Any]) -> bool:
        return isinstance(usage.get(self.counts), int)

"""SSE state: what the events of a declared API tell, and their text. Pure.

Nothing but the declared end proves one: not `[DONE]`, which closes the body, and the end of the
connection only where that is what was declared, and where it cut no event in two.
"""

import re
from typing import Any, ClassVar, NamedTuple

from gateway.sse import Event
from gateway.upstream.protocols import complaints
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.chat_chunks import decoded
from gateway.upstream.protocols.readings import Reading, Said
from gateway.upstream.protocols.sse_paths import End, Pick
from gateway.upstream.protocols.terminal_state import TerminalState
from gateway.upstream.protocols.usage import count_in

_may_fail = re.compile(rb'"\w*(?:error|Error|ERROR|exception|Exception)s?"').search

# What the field calls them.
_PROMPT = ("prompt_tokens", "input_tokens", "inputTokens", "promptTokens", "promptTokenCount")
_ANSWER = ("completion_tokens", "output_tokens", "outputTokens", "completionTokens")
_CACHED = ("cached_tokens", "cachedInputTokens", "cache_read_input_tokens")


class Declaration(NamedTuple):
    """What is known of an API."""

    end: End
    text: Pick | None = None
    usage: Pick | None = None
    error: Pick | None = None
    reason: Pick | None = None


class DeclaredState(TerminalState):
    """What the events of an answer have told so far."""

    counts: ClassVar[str] = "completion_tokens"

    def __init__(self, declared: Declaration) -> None:
        super().__init__()
        self._declared = declared
        self._others = False  # Whether any event came but the last one.

    def see(self, event: Event) -> None:
        """Take note of one event."""
        end = self._declared.end
        if not self.closed and end.is_data and end.is_at(event):  # It may be `[DONE]`.
            self.finish()
            return
        super().see(event)
        self._others |= not self.closed

    def suspect(self, event: Event) -> None:
        """Take an event that was cut off for an error; where it is, no end was proven."""
        if self._declared.end.close:
            self.finished = False
        super().suspect(event)

    @property
    def empty(self) -> bool:
        """Whether nothing came but an end."""
        return super().empty and not self._others

    def _tells(self, event: Event) -> bool:
        _, _, usage, error, reason = told = self._declared
        data = event.data
        return (
            told.end.may_be_at(event)
            or (usage is not None and usage.may_be_in(data))
            or (reason is not None and reason.may_be_in(data))
            or (_may_fail(data) is not None if error is None else error.may_be_in(data))
        )

    def _is_piece(self, data: bytes) -> bool:
        text = self._declared.text
        return text is not None and text.may_be_in(data)

    def _complaint(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        if self._declared.error is None:
            return complaints.complaint(chunk)
        error = self._declared.error.of(chunk)
        return complaints.complaint({**chunk, "error": error}) if error else None

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        end, _, usage, _, reason = self._declared
        if usage is not None:
            self.note_usage([{"usage": usage.of(chunk)}], len(event.data))
        if reason is not None:
            self.note_reason(reason.of(chunk))
        if end.is_at(event):
            self.finish()

    def _is_whole(self, *, framed: bool) -> bool:
        closed = self._declared.end.close and not self.empty
        return closed or super()._is_whole(framed=framed)

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        places = ("", "tokens.")  # Cohere's.
        prompt, answer, cached = (
            count_in(usage, *[place + name for place in places for name in names])
            for names in (_PROMPT, _ANSWER, _CACHED)
        )
        return Tokens(prompt, answer, cached)

    def _is_counted(self, usage: dict[str, Any]) -> bool:
        return self._tokens(usage).completion is not None


class DeclaredText:
    """The text of an answer: what is at its path, event by event."""

    anew = False

    def __init__(self, declared: Declaration) -> None:
        self._text = declared.text

    def text_of(self, event: Event) -> str:
        """Return the text that an event adds to the answer."""
        if self._text is None or not self._text.may_be_in(event.data):
            return ""
        text = self._text.of(decoded(event.data))
        return text if isinstance(text, str) else ""


class DeclaredReadings:
    """What the events of an answer say: of a declared API nothing but its text is known."""

    def __init__(self, declared: Declaration) -> None:
        self._text = DeclaredText(declared)

    def of(self, event: Event) -> list[Reading]:
        """Return the text that an event adds."""
        text = self._text.text_of(event)
        return [Said(text)] if text else []

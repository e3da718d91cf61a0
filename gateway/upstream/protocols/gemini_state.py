"""Gemini state: what the events of generated content tell. Pure.

There is no last event: an answer is whole once each candidate has a `finishReason`, after which at
most the usage follows. Some models tell one with every event: where text comes after it, only an
end of the body that HTTP vouches for proves anything. A prompt that is blocked has no candidates,
and the reason is the whole answer.
"""

import re
from typing import Any, ClassVar

from gateway.sse import Event
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.chat_chunks import choices_of
from gateway.upstream.protocols.reasons import reason_of
from gateway.upstream.protocols.terminal_state import TerminalState
from gateway.upstream.protocols.usage import count_in, sum_in

_UNSPECIFIED = frozenset({"FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED"})
_MOST = 100  # Candidates of which note is taken.

_tells = re.compile(rb'"(?:finishReason|blockReason|usageMetadata|\w*error)"').search


class GeminiState(TerminalState):
    """What an answer has told so far."""

    counts: ClassVar[str] = "candidatesTokenCount"

    def __init__(self, choices: int = 1) -> None:
        super().__init__(choices)
        self._reasons: dict[int, str] = {}  # The last of each candidate that told one.
        self._unfinished: dict[int, None] = {}  # Those seen without one, or with text since.
        self._went_on = False  # Whether text came after a finish.

    @property
    def finish_reason(self) -> str | None:
        """The reason of the first candidate, or why there is none."""
        seen = self._reasons.keys() | self._unfinished.keys()
        return self._reasons.get(min(seen)) if seen else None

    @property
    def at_rest(self) -> bool:
        """Whether each candidate finished last: after a long silence nothing more is to come."""
        finished = len(self._reasons) >= self.choices and not self._unfinished
        return finished and self.error is None

    def _tells(self, event: Event) -> bool:
        return self.choices > 1 or bool(self._reasons) or _tells(event.data) is not None

    def _is_piece(self, data: bytes) -> bool:
        return b'"parts"' in data

    def _read(self, chunk: dict[str, Any], event: Event) -> None:
        self.note_usage([{"usage": chunk.get("usageMetadata")}], len(event.data))
        candidates = candidates_of(chunk)
        for index, candidate in candidates:
            known = index in self._reasons or index in self._unfinished
            if known or len(self._reasons) + len(self._unfinished) < _MOST:
                self._note(index, candidate)
        if not candidates and not self._reasons and not self._unfinished:
            feedback = chunk.get("promptFeedback")
            blocked = _reason(feedback.get("blockReason") if isinstance(feedback, dict) else None)
            if blocked is not None:
                self._reasons = dict.fromkeys(range(min(self.choices, _MOST)), blocked)
        self.finished = self.at_rest and not self._went_on

    def _note(self, index: int, candidate: dict[str, Any]) -> None:
        if index in self._reasons and _says_something(candidate):
            self._went_on = True
            self._unfinished[index] = None
        reason = _reason(candidate.get("finishReason"))
        if reason is not None:
            self._reasons[index] = reason
            self._unfinished.pop(index, None)
        elif index not in self._reasons:
            self._unfinished[index] = None

    def _is_whole(self, *, framed: bool) -> bool:
        return bool(self._reasons) and not self._unfinished and (framed or not self._went_on)

    def _tokens(self, usage: dict[str, Any]) -> Tokens:
        prompt = sum_in(usage, "promptTokenCount", "toolUsePromptTokenCount")
        answer = sum_in(usage, self.counts, "thoughtsTokenCount")
        return Tokens(prompt, answer, count_in(usage, "cachedContentTokenCount"))


def candidates_of(chunk: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the candidates of an event with their numbers."""
    return choices_of({"choices": chunk.get("candidates")})


def parts_of(candidate: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a candidate's content."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return [each for each in parts if isinstance(each, dict)] if isinstance(parts, list) else []


def _reason(value: Any) -> str | None:
    reason = reason_of(value)
    return None if reason in _UNSPECIFIED else reason


def _says_something(candidate: dict[str, Any]) -> bool:
    return any(any(part.values()) for part in parts_of(candidate))

"""Chat state: what the events of a streamed chat completion tell. Pure.

The bytes go to the viewers untouched. What is read from them is the end, the errors and the price,
and only from events whose bytes say that they hold one: no JSON is decoded for the rest.

The end of a connection is not the end of a completion. Whole is what has a finish reason for each
choice that was asked for; at `[DONE]`, or at an end of the body that HTTP vouches for, for each
choice that was seen, as some servers ignore `n`. Some send a reason with every event: where text
comes after one, they prove nothing any more, and only `[DONE]` or such an end does. `[DONE]` after
text, with no reason at all, is the server's own word; with nothing before it there is no answer.
"""

import re
from typing import Any

from gateway.sse import Event
from gateway.upstream.protocols import complaints
from gateway.upstream.protocols.base import Tokens
from gateway.upstream.protocols.chat_chunks import DONE, choices_of, decoded, is_whole
from gateway.upstream.protocols.reasons import BROKEN_OFF, is_error, reason_of
from gateway.upstream.protocols.usage import Usage, count_in

_tells = re.compile(rb'"(?:finish_reason|usage|errors?)"\s*(?::\s*[^\sn]|[,}\]])').search
_says = re.compile(rb'"(?:content|text)"\s*:\s*"[^"]').search
_speaks = re.compile(rb'"(?:\w*(?:[mM]essage|msg)|errors?|detail|description|reason)"').search
_NO_ANSWER = frozenset({"id", "object", "created", "model", "type", "usage"})
_NOTHING = frozenset({b"", b"{}", b"null", b'""'})
_CACHED = (
    "prompt_tokens_details.cached_tokens",
    "input_tokens_details.cached_tokens",
    "prompt_cache_hit_tokens",  # DeepSeek's.
    "cached_tokens",
)
_SHORT = 128  # Bytes that `[DONE]` and the white space around it may have.
_EARLY = 4  # Events that are looked at once more where `[DONE]` comes soon after them.
_ROUNDS = 8  # Times that some more are looked at where the first ones were none of an answer.
_MOST = 1000  # Choices of which note is taken.


class ChatState:
    """What a streamed chat completion has told so far."""

    strict_end: bool = False  # Whether `[DONE]` without any reason proves nothing.
    breaks_off: frozenset[str] = BROKEN_OFF  # Reasons that finish nothing, in lower case.

    def __init__(self, choices: int = 1) -> None:
        self._usage = Usage()
        self.error: dict[str, Any] | None = None
        self.finished = False  # Whether the upstream said that the completion is whole.
        self.closed = False  # Whether `[DONE]` came: what follows is not of the answer.
        self.over = False  # Whether the stream ended of its own accord.
        self.pieces = 0
        self.choices = choices
        self._reasons: dict[int, str] = {}  # The last of each choice that told one.
        # Choices; no sets, as empty ones take 300 bytes more of each stream.
        self._unfinished: dict[int, None] = {}  # Those seen without one, or with text since.
        self._broken: dict[int, None] = {}  # Those whose reason says the opposite.
        self._went_on = False  # Whether text came after a finish.
        self._reads_all = choices > 1  # Which choice is an event of?
        self._early: list[bytes] | None = []  # The first events, if none of an answer was seen.
        self._rounds = 0  # How often there were some more.
        self._last = b""

    @property
    def usage(self) -> dict[str, Any] | None:
        """What it told of the price."""
        return self._usage.told

    @property
    def finish_reason(self) -> str | None:
        """The reason of choice 0, or of the first one that there is."""
        seen = self._reasons.keys() | self._unfinished.keys()
        return self._reasons.get(min(seen)) if seen else None

    @property
    def broken_off(self) -> bool:
        """Whether a choice was finished by a reason that says the opposite."""
        return bool(self._broken)

    @property
    def at_rest(self) -> bool:
        """Whether each choice finished last: after a long silence nothing more is to come."""
        finished = len(self._reasons) >= self.choices and not self._unfinished
        return finished and self.error is None and not self.broken_off

    @property
    def empty(self) -> bool:
        """Whether nothing of an answer came."""
        return self._early is not None and not any(map(_is_of_answer, self._early))

    @property
    def _in_mid_answer(self) -> bool:
        """Whether what came before the last event is a chat without any reason, or nothing."""
        nothing = self._early is not None and not any(map(_is_of_answer, self._early[:-1]))
        return not self._reasons and (bool(self.pieces) or nothing)

    @property
    def retryable(self) -> bool:
        """Whether asking again may mend the error."""
        return complaints.retryable(self.error or {})

    def see(self, event: Event) -> None:
        """Take note of one event."""
        data, name, _ = event
        if len(data) < _SHORT and data.strip() == DONE:
            self.closed = True
            self.end(framed=True)
            return
        self.pieces += b'"content"' in data
        if self._reads_all or _tells(data):
            self._suspect(self._last)
            chunk = decoded(data)
            self._read(chunk, len(data))
            if not chunk and (error := complaints.unescaped_complaint(data)):
                self._fail(error)
            if data.startswith(b"["):
                self.hear(data)  # Gemini's errors come in a list.
        if self._early is not None:
            self._early = self._and(data)
        if name and name.lower() in complaints.ERROR_NAMES:
            self._fail(complaints.named_complaint(decoded(data), data))
        self._last = b"" if b'"choices"' in data else data  # Of a chat nobody looks back at it.

    def _and(self, data: bytes) -> list[bytes] | None:
        assert self._early is not None
        if any(b'"delta"' in each and _says(each) for each in self._early):
            return None  # Nothing is kept of what begins as nearly all do.
        if len(self._early) < _EARLY:
            return [*self._early, data]
        self._rounds += 1
        if self._rounds > _ROUNDS or any(map(_says, self._early)) or not self.empty:
            return None  # Most are at once, and nothing was decoded.
        return [data]

    def hear(self, strays: bytes | bytearray) -> None:
        """Take note of what came outside of all events: it may be the JSON of an error."""
        by_reason = self.finished and self._reasons  # A `[DONE]` alone does not outweigh it.
        if strays and not by_reason and (error := complaints.stray_complaint(strays)):
            self.finished = False
            self._fail(error)

    def end(self, *, framed: bool) -> None:
        """Take note of the end: HTTP vouches that nothing is missing if it is `framed`."""
        self.look_back()
        self.over = self.over or framed
        if self.closed:
            told = not self._unfinished.keys() - self._reasons.keys()
            said = told if self._reasons else not (self.strict_end or self.empty)
        else:
            said = bool(self._reasons) and not self._unfinished and (framed or not self._went_on)
        if said and self.error is None and not self.broken_off:
            self.finished = True

    def suspect(self, event: Event) -> None:
        """Take an event that was cut off for an error, if it is one: it is not for anyone else."""
        self._suspect(event.data)
        if event.name.lower() in complaints.ERROR_NAMES and is_whole(event.data):
            self._fail(complaints.named_complaint(decoded(event.data), event.data))

    def _suspect(self, data: bytes) -> None:
        if b'"choices"' in data or not _speaks(data):
            return
        if error := complaints.complaint(decoded(data)):
            self._fail(error)

    def look_back(self) -> None:
        """Take the last event for an error if it looks like one: nothing came after it."""
        if not self._last:
            return
        chunk = decoded(self._last)
        if error := complaints.complaint(chunk) or (
            complaints.last_words(chunk) if self._in_mid_answer else None
        ):
            self._fail(error)

    def _read(self, chunk: dict[str, Any], size: int) -> None:
        choices = choices_of(chunk)
        self._usage.see([*(each for _, each in choices), chunk.get("x_groq"), chunk], size)
        if error := complaints.complaint(chunk):  # Before the reasons: it may stand beside one.
            self._fail(error)
        if self.closed:
            return
        for index, choice in choices:
            known = index in self._reasons or index in self._unfinished
            if known or len(self._reasons) + len(self._unfinished) < _MOST:
                self._note(index, choice)
        self.finished = self.at_rest and not self._went_on

    def _note(self, index: int, choice: dict[str, Any]) -> None:
        reason = reason_of(choice.get("finish_reason"))
        if index in self._reasons and _says_something(choice):
            self._went_on = True
            self._unfinished[index] = None
        elif self.finished and index in self._reasons:
            return  # It is whole, whatever reason is told once more.
        if reason is not None:
            if is_error(reason):
                self._fail({})
            self._reasons[index] = reason
            if reason.lower() in self.breaks_off:
                self._broken[index] = None
            else:
                self._broken.pop(index, None)
            self._reads_all = True  # What follows is little, or shows that this was no finish.
            self._unfinished.pop(index, None)
        elif index not in self._reasons:
            self._unfinished[index] = None

    def _fail(self, error: dict[str, Any]) -> None:
        if not self.finished and not self.error:  # After a clean finish nothing can undo it.
            self.error = error

    @property
    def tokens(self) -> Tokens:
        """What it took so far, estimated if need be."""
        return _tokens(self.usage).or_guess(self.pieces)

    @property
    def counted(self) -> bool:
        """Whether the upstream told what the completion took."""
        return _tokens(self.usage).completion is not None

    def weigh(self, tokens: int) -> None:
        """Take a better guess than the number of events for what the completion took."""
        self.pieces = tokens or self.pieces

    def estimate(self) -> dict[str, Any] | None:
        """Return the usage, with a guess where the upstream never told the completion's."""
        if self.counted or not self.pieces:
            return self.usage
        return {**(self.usage or {}), "completion_tokens": self.pieces, "estimated": True}


def _tokens(usage: dict[str, Any] | None) -> Tokens:
    """Return what a usage tells in any of the names that servers of this kind have for it."""
    prompt = count_in(usage, "prompt_tokens", "input_tokens")
    completion = count_in(usage, "completion_tokens", "output_tokens")
    total = count_in(usage, "total_tokens")
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)  # Some count thoughts in the total alone.
    return Tokens(prompt, completion, count_in(usage, *_CACHED))


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice has anything of an answer: text, thoughts, a call of a tool."""
    for name in ("delta", "message"):
        said = choice.get(name)
        if isinstance(said, dict) and any(said[key] for key in said if key != "role"):
            return True
    return bool(choice.get("text"))


def _is_of_answer(data: bytes) -> bool:
    """Whether an event has anything of an answer; what is of no known shape has."""
    chunk = decoded(data)
    if "choices" in chunk:
        return any(_says_something(choice) for _, choice in choices_of(chunk))
    return bool(chunk.keys() - _NO_ANSWER) if chunk else data.strip() not in _NOTHING

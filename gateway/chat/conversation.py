"""Conversation: what was said so far, as a preset's protocol asks it, and kept for another time."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.config.presets import Preset
from gateway.upstream.protocols.table import PROTOCOLS, protocol_of

NAMES = tuple(PROTOCOLS)  # Of the protocols whose questions are known here.

_TOKENS = 1024  # Of an answer, where a protocol has to be told a number.
_RUNS = ""  # The state of an answer that has not ended, as far as is known.


@dataclass
class Conversation:
    """The questions and answers of one chat; the last answer may be none, or not whole."""

    url: str = ""  # Of the gateway, "" for one in this process.
    preset: str = "default"
    turns: list[list[str]] = field(default_factory=list)  # A question and its answer each.
    where: str = ""  # Where the last answer is.
    state: str = _RUNS  # That it ended with.

    @property
    def runs(self) -> bool:
        """Whether the last answer may still be had where it was."""
        return self.state == _RUNS and bool(self.where and self.url)

    @property
    def is_whole(self) -> bool:
        """Whether its last answer is."""
        return self.state == "done"

    def ask(self, text: str) -> None:
        """Add a question; one that got no answer is forgotten."""
        if self.turns and not self.turns[-1][1]:
            self.turns.pop()
        self.turns.append([text, ""])
        self.where, self.state = "", _RUNS

    def answered(self, text: str, state: str) -> None:
        """Note the answer, as far as there is one."""
        self.turns[-1][1], self.state = text, state

    def body(self, preset: Preset, more: dict[str, Any], name: str = "") -> dict[str, Any]:
        """Return the request for the next answer; of a role, or with a `name`, only the question.

        `more` is what the caller sets beside it.
        """
        name = name or _taker(preset)
        if name:
            return {name: self.turns[-1][0], **more}
        form = protocol_of(preset).form(preset)
        told = {form.messages: [*self._messages(parts=form.parts)]}
        needed = dict.fromkeys(form.needed, preset.max_output_tokens or _TOKENS)
        return {**told, **needed, **more}

    def _messages(self, *, parts: bool) -> list[dict[str, Any]]:
        said = []
        for question, answer in self.turns:
            said += [("user", question), ("model" if parts else "assistant", answer)]
        return [
            {"role": role, "parts": [{"text": text}]} if parts else {"role": role, "content": text}
            for role, text in said
            if text
        ]

    def save(self) -> None:
        """Keep it for `last`; where nothing can be kept nothing is."""
        path = _place()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(f".{os.getpid()}")
            with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(asdict(self), file)
            half.replace(path)
        except OSError:
            return


def last() -> Conversation | None:
    """Return the conversation that was saved last, None if there is none that can be read."""
    try:
        return Conversation(**json.loads(_place().read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _place() -> Path:
    """Return where the last conversation of this user is kept."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gateway" / "chat.json"


def _taker(preset: Preset) -> str:
    """Return the variable of a role that takes what is asked, "" where there are messages."""
    names = [name for name, each in preset.variables.items() if each.default is None]
    free = [name for name in names if not preset.variables[name].choices]
    return next(iter(free or names), "")

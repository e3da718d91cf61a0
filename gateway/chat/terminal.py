"""Terminal: questions from the command or from stdin, answers to stdout, all else to stderr."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from gateway.chat.conversation import Conversation
from gateway.chat.lines import Line, Refused
from gateway.errors import one_line
from gateway.sse import Event

DONE, FAILED, STOPPED = 0, 1, 130  # Exit codes; the last is what a shell says of Ctrl-C.

_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")  # A terminal would obey them.
_PATIENCE = 10.0  # Seconds in which a stopped answer is to end.

_GONE = frozenset(("log_expired", "ticket_expired", "ticket_not_found"))

Reach = Callable[[], AbstractAsyncContextManager[Line]]
Body = Callable[[Conversation], dict[str, Any]]


class Answer:
    """One answer, shown as it comes."""

    def __init__(self) -> None:
        self.text = ""
        self.state = ""
        self.failure: dict[str, Any] = {}
        self._safe = not sys.stdout.isatty()  # Of a file each byte is wanted.

    def show(self, event: Event) -> None:
        """Take an event of a stream in the form `text`."""
        if event.name == b"failure":
            self.failure = json.loads(event.data)
        elif event.name == b"end":
            self.state = json.loads(event.data)["state"]
        elif event.name:
            self.close()
            self.text = ""
            say("what is above is void: the answer begins anew")
        else:
            piece = event.data.decode("utf-8", "replace")
            self.text += piece
            sys.stdout.write(piece if self._safe else _CONTROLS.sub("\ufffd", piece))
            sys.stdout.flush()

    def close(self) -> None:
        """End the line that the text is in."""
        if self.text and not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


class Terminal:
    """A conversation at a terminal."""

    def __init__(self, conversation: Conversation, reach: Reach, body: Body) -> None:
        self._conversation = conversation
        self._reach = reach
        self._body = body

    def ask(self, text: str) -> int:
        """Ask, show the answer, and return the exit code."""
        self._conversation.ask(text)
        return self._turn()

    def resume(self) -> int:
        """Go on with an answer that is not whole: where it runs, else by asking once more."""
        if self._conversation.is_whole:
            return self.chat()
        if self._conversation.runs:
            try:
                return asyncio.run(self._answered())
            except Refused as error:
                say(f"{error.code}: {error}")
                if error.code not in _GONE:
                    return FAILED
        say("the answer cannot go on: asking once more")
        self._conversation.ask(self._conversation.turns.pop()[0])
        return self._turn()

    def chat(self) -> int:
        """Ask what is typed, line by line, until there is no more."""
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                text = input(prompt)
            except EOFError:
                return DONE
            except KeyboardInterrupt:
                return STOPPED
            if text.strip():
                self.ask(text)

    def _turn(self) -> int:
        try:
            return asyncio.run(self._answered())
        except Refused as error:
            say(f"{error.code}: {error}")
            return FAILED

    async def _answered(self) -> int:
        """Return what became of an answer; an interrupt stops it, a second one leaves it."""
        loop, answer, interrupt = asyncio.get_running_loop(), Answer(), asyncio.Event()
        async with self._reach() as line:
            loop.add_signal_handler(signal.SIGINT, interrupt.set)
            try:
                stopped = await self._watched(line, answer, interrupt)
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                answer.close()
                self._conversation.answered(answer.text, answer.state)
                self._conversation.save()
        if stopped:
            say(answer.state or "stopped")
            return STOPPED
        if answer.state != "done":
            told = answer.failure
            say(f"{told['code']}: {told['message']}" if told else answer.state)
        return DONE if answer.state == "done" else FAILED

    async def _watched(self, line: Line, answer: Answer, interrupt: asyncio.Event) -> bool:
        """Return whether an answer was stopped from here before it was shown."""
        showing = asyncio.create_task(self._shown(line, answer))
        stopping: asyncio.Task[None] | None = None
        try:
            if not await _interrupted(showing, interrupt):
                return False
            stopping = asyncio.create_task(self._stopped(line, showing))
            await _interrupted(stopping, interrupt)
            return True
        finally:
            for task in filter(None, (showing, stopping)):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _shown(self, line: Line, answer: Answer) -> None:
        conversation = self._conversation
        if not conversation.runs:
            conversation.where = await line.ask(self._body(conversation))
            conversation.save()  # Whatever becomes of this terminal, the answer can be found.
        try:
            await line.follow(conversation.where, answer.show)
        except BrokenPipeError:  # Nobody reads on, and it would be paid for.
            await line.stop(conversation.where)
            raise

    async def _stopped(self, line: Line, showing: "asyncio.Task[None]") -> None:
        """Stop an answer, and see it end."""
        if self._conversation.where:
            await line.stop(self._conversation.where)
            await asyncio.wait({showing}, timeout=_PATIENCE)


async def _interrupted(task: "asyncio.Task[None]", interrupt: asyncio.Event) -> bool:
    """Return whether an interrupt comes before a task ends; raises what the task does."""
    interrupt.clear()
    waiting = asyncio.create_task(interrupt.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    return not task.done()


def say(words: str) -> None:
    """Tell something that is no answer."""
    print(f"gateway: {one_line(words)}", file=sys.stderr)

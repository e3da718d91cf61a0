"""Quorum: what more than half of several copies say; any two quorums share a copy."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from gateway.errors import Unavailable

T = TypeVar("T")


class Quorum:
    """Asks all copies of something, and goes on as soon as enough have answered."""

    def __init__(self, copies: int) -> None:
        self.size = copies // 2 + 1
        self._tasks: set[asyncio.Task[Any]] = set()

    async def of(
        self, questions: Sequence[Coroutine[Any, Any, T]], *, all_of_them: bool = False
    ) -> list[T]:
        """Ask each copy its question; return the answers once a quorum has answered.

        The others are asked on behind, unless one is to wait for all of them. Raises what one
        failed with where no quorum answers.
        """
        if len(questions) == 1:
            return [await questions[0]]
        left = {asyncio.create_task(each) for each in questions}
        for task in left:
            self._tasks.add(task)
            task.add_done_callback(self._answered)
        answers: list[T] = []
        failure: BaseException = Unavailable("store_unavailable")
        while left and (all_of_them or len(answers) < self.size):
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if error := task.exception():
                    failure = error
                else:
                    answers.append(task.result())
        if len(answers) < self.size:
            raise failure
        return answers

    def _answered(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Who asked has gone on without it.

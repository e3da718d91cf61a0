"""Chat before an upstream that nobody here wrote (npm's aimock): true ends, exact text."""

from collections.abc import Iterator

import pytest

from tests.aimock import LIMITED, Mock, fixture, mocking
from tests.support import ask, running

TEXT = "Hello! Ещё раз: 断线之后, 👩🏽‍🚀 and a line\nof its own, “quoted”, to the last word."
PLAIN = "Plain, но не ASCII: 断线之后,\n\nto the last word."

FIXTURES = [
    fixture("whole", {"content": TEXT}),
    fixture("plain", {"content": PLAIN}),
    fixture("truncated", {"content": TEXT}, truncateAfterChunks=4, latency=20),
    fixture("disconnected", {"content": TEXT}, disconnectAfterMs=150, latency=30),
    fixture("never answered", {"content": TEXT}, truncateAfterChunks=1),
    fixture("limited once", LIMITED | {"retryAfter": 1}, match={"sequenceIndex": 0}),
    fixture("limited once", {"content": TEXT}),
    fixture("limited always", LIMITED | {"retryAfter": 1}),
    fixture("limited for long", LIMITED | {"retryAfter": 3600}),
    fixture("broken", {"error": {"message": "our fault"}, "status": 500}),
    fixture("refused", {"error": {"message": "no such model"}, "status": 404}),
]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """A running aimock."""
    with mocking(FIXTURES, tmp_path_factory.mktemp("aimock")) as mock:
        yield mock


async def test_a_whole_completion_is_done_with_its_exact_text_and_usage(mock: Mock) -> None:
    before = mock.asked("whole")
    async with running(upstream_url=mock.url) as served:
        url = await served.ticket(ask("whole"))
        transcript = await served.read(url)
        completion = await served.completion(url)
        asked = mock.asked("whole") - before
    assert transcript.end["state"] == "done"
    assert transcript.end["finish_reason"] == "stop"
    assert transcript.end["usage"]["completion_tokens"] > 0
    assert completion["text"] == TEXT
    assert transcript.data[-1] == b"[DONE]"
    assert asked == 1


async def test_text_format_is_the_exact_text(mock: Mock) -> None:
    async with running(upstream_url=mock.url) as served:
        transcript = await served.read(await served.ticket(ask("plain")) + "&format=text")
    assert b"".join(transcript.data).decode() == PLAIN
    assert transcript.end["state"] == "done"


async def test_text_format_joins_a_character_that_the_upstream_cut_in_two(mock: Mock) -> None:
    """An upstream written in JavaScript cuts between the halves of a surrogate pair."""
    async with running(upstream_url=mock.url) as served:
        transcript = await served.read(await served.ticket(ask("whole")) + "&format=text")
    assert b"".join(transcript.data).decode() == TEXT


@pytest.mark.parametrize("prompt", ["truncated", "disconnected"])
async def test_a_broken_connection_is_truncated_and_not_asked_again(
    mock: Mock, prompt: str
) -> None:
    async with running(upstream_url=mock.url, upstream_retries=2) as served:
        url = await served.ticket(ask(prompt))
        transcript = await served.read(url)
        completion = await served.completion(url)
    assert transcript.failure["code"] == "upstream_cut"
    assert transcript.end["state"] == "truncated"
    assert transcript.end["finish_reason"] is None
    assert transcript.end["attempts"] == 1
    assert 0 < len(completion["text"]) < len(TEXT)
    assert TEXT.startswith(completion["text"])
    assert mock.asked(prompt) == 1


async def test_a_connection_that_ends_without_an_answer_is_not_asked_again(mock: Mock) -> None:
    """It may have been paid for."""
    async with running(upstream_url=mock.url, upstream_retries=2) as served:
        transcript = await served.read(await served.ticket(ask("never answered")))
    assert transcript.end["state"] == "truncated"
    assert transcript.end["attempts"] == 1
    assert mock.asked("never answered") == 1


async def test_a_429_is_asked_again_after_its_retry_after_and_counted(mock: Mock) -> None:
    async with running(upstream_url=mock.url, upstream_retries=2) as served:
        url = await served.ticket(ask("limited once"))
        transcript = await served.read(url)
        completion = await served.completion(url)
    assert transcript.end["state"] == "done"
    assert transcript.end["attempts"] == completion["attempts"] == 2
    assert completion["text"] == TEXT
    assert mock.asked("limited once") == 2


@pytest.mark.parametrize(
    ("prompt", "retries", "attempts"),
    [("limited always", 0, 1), ("limited always, twice", 1, 2), ("limited for long", 2, 1)],
)
async def test_a_429_for_good_is_failed_with_its_status(
    mock: Mock, prompt: str, retries: int, attempts: int
) -> None:
    before = mock.asked(prompt)
    async with running(upstream_url=mock.url, upstream_retries=retries) as served:
        transcript = await served.read(await served.ticket(ask(prompt)))
    assert transcript.names == ["failure", "end"]
    assert transcript.failure["status"] == 429
    assert transcript.failure["retryable"] is True
    assert transcript.end["state"] == "failed"
    assert transcript.end["attempts"] == attempts
    assert mock.asked(prompt) - before == attempts


@pytest.mark.parametrize(
    ("prompt", "status", "attempts"), [("broken", 500, 1), ("refused", 404, 1)]
)
async def test_an_error_is_failed_with_its_status_and_words(
    mock: Mock, prompt: str, status: int, attempts: int
) -> None:
    async with running(upstream_url=mock.url, upstream_retries=1) as served:
        transcript = await served.read(await served.ticket(ask(prompt)))
    assert transcript.failure["status"] == status
    assert transcript.end == {**transcript.end, "state": "failed", "attempts": attempts}
    assert mock.asked(prompt) == attempts

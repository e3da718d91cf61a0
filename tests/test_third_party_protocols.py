"""Every protocol before an upstream that nobody here wrote, read beside its provider's own SDK."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.aimock import LIMITED, Mock, fixture, mocking
from tests.dialects import DIALECTS, asked, preset, resumed, said, some
from tests.sdks import SDKS
from tests.support import running

TEXT = "Hello! Ещё раз: 断线之后, 👩🏽‍🚀 and a line\nof its own, “quoted”, to the last word. " * 3
USAGE = {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30}
TOLD = {"content": TEXT, "usage": USAGE}
TOKENS = {"ollama": (0, 0)}  # It never tells others than these.


def fixtures() -> list[dict[str, Any]]:
    """Return what aimock says in each protocol, by prompts of their own: it counts those."""
    found = []
    for name in DIALECTS:
        found += [
            fixture(f"{name} whole", TOLD),
            fixture(f"{name} slow", TOLD, latency=30),
            fixture(f"{name} cut", TOLD, truncateAfterChunks=8, latency=5),
            fixture(f"{name} limited", LIMITED | {"retryAfter": 1}, match={"sequenceIndex": 0}),
            fixture(f"{name} limited", TOLD),
        ]
    return found


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """A running aimock."""
    with mocking(fixtures(), tmp_path_factory.mktemp("aimock")) as mock:
        yield mock


every_dialect = pytest.mark.parametrize("protocol", DIALECTS)


def before(mock: Mock, protocol: str, **changes: Any) -> Any:
    """Run a gateway before aimock in this protocol."""
    return running(presets={"default": preset(protocol, mock.base, **changes)})


def begins(text: str) -> bool:
    """Whether TEXT begins so; the last character may be half of one, as JavaScript cuts."""
    return TEXT.encode("utf-16-le").startswith(text.encode("utf-16-le", "surrogatepass"))


def joined(text: str) -> str:
    """Return a text whose characters JavaScript cut between the halves of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


@every_dialect
async def test_a_whole_answer_is_done_with_its_exact_text_and_tokens(
    mock: Mock, protocol: str
) -> None:
    prompt, dialect = f"{protocol} whole", DIALECTS[protocol]
    async with before(mock, protocol) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        end = (await gateway.read(url)).end
        completion = await gateway.completion(url)
        text = await said(gateway, url)
    assert (end["state"], end["finish_reason"]) == ("done", dialect.reason)
    assert (end["tokens"]["prompt"], end["tokens"]["completion"]) == TOKENS.get(protocol, (21, 9))
    assert completion["text"] == text == TEXT
    assert mock.asked(prompt) == 1


@pytest.mark.parametrize("protocol", SDKS)
async def test_text_and_tokens_are_those_that_the_providers_own_sdk_reads(
    mock: Mock, protocol: str
) -> None:
    prompt = f"{protocol} whole"
    heard = await SDKS[protocol](mock.base, prompt)
    async with before(mock, protocol) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        tokens = (await gateway.read(url)).end["tokens"]
        completion = await gateway.completion(url)
    assert completion["text"] == joined(heard.text)
    assert (tokens["prompt"], tokens["completion"]) == heard.tokens


@every_dialect
async def test_a_viewer_that_comes_back_in_the_middle_gets_each_event_once(
    mock: Mock, protocol: str
) -> None:
    prompt = f"{protocol} slow"
    async with before(mock, protocol) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        seen = await resumed(gateway, url)
        everything = await gateway.read(url)
    assert seen.end["state"] == "done"
    assert seen.events == everything.events
    assert mock.asked(prompt) == 1


@every_dialect
async def test_a_cancel_ends_it_with_the_text_so_far(mock: Mock, protocol: str) -> None:
    prompt = f"{protocol} slow"
    before_this = mock.asked(prompt)
    async with before(mock, protocol) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        await gateway.read(url, enough=some(12))
        answer = await gateway.http.delete(url, headers=gateway.cookie())
        end = (await gateway.read(url)).end
        completion = await gateway.completion(url)
    assert answer.json() == {"state": "cancelled"}
    assert (end["state"], end["usage"]["estimated"]) == ("cancelled", True)
    assert begins(completion["text"])
    assert 0 < len(completion["text"]) < len(TEXT)
    assert mock.asked(prompt) - before_this == 1


@every_dialect
async def test_one_that_breaks_off_is_truncated_and_not_asked_again(
    mock: Mock, protocol: str
) -> None:
    prompt = f"{protocol} cut"
    async with before(mock, protocol, retries=2) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        transcript = await gateway.read(url)
        completion = await gateway.completion(url)
    assert transcript.end["state"] == "truncated"
    assert transcript.failure["code"] == "upstream_cut"
    assert begins(completion["text"])
    assert mock.asked(prompt) == transcript.end["attempts"] == 1


@every_dialect
async def test_a_429_is_asked_again(mock: Mock, protocol: str) -> None:
    prompt = f"{protocol} limited"
    async with before(mock, protocol, retries=2) as gateway:
        url = await gateway.ticket(asked(protocol, prompt))
        end = (await gateway.read(url)).end
    assert (end["state"], end["attempts"]) == ("done", 2)
    assert mock.asked(prompt) == 2

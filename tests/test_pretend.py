"""Every protocol before the pretend upstream: what goes wrong on the way ends as what it is."""

from typing import Any

import pytest

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.demo.pretend.asking import WAYS, Way, expected
from tests.support import Served, running, served
from tests.test_third_party_protocols import COHERE

ENDS = {  # Of a fault: the state, the failure's code, how many pieces of the text there are.
    "": ("done", "", 30),
    "cut:6": ("truncated", "upstream_cut", 6),
    "close:6": ("truncated", "upstream_cut", 6),
    "error:6": ("failed", "upstream_error", 6),
    "no-done": ("truncated", "upstream_cut", 30),
    "stall:6": ("stalled", "upstream_stalled", 6),
    "status:529": ("failed", "upstream_refused", 0),
    "html": ("failed", "upstream_not_a_stream", 0),
}
STALL = 0.3


def preset(name: str, way: Way, base: str) -> dict[str, Any]:
    """Return the preset of the pretend upstream at this address."""
    path = way.path.replace("/m:", "/{model}:")
    declared = COHERE if name == "cohere" else {"protocol": name.split()[0]}
    return {"url": base + path, "api_key": "k", "stall": STALL, "retries": 0, **declared}


async def ended(gateway: Served, body: dict[str, Any]) -> tuple[str, str, int]:
    """Return how one answer ended, and of how many pieces its text is."""
    url = await gateway.ticket(body)
    transcript = await gateway.read(url)
    text = (await gateway.completion(url))["text"]
    pieces = next((n for n in range(31) if text == "".join(expected()[:n])), -1)
    failed = "failure" in transcript.names
    return transcript.end["state"], transcript.failure["code"] if failed else "", pieces


@pytest.mark.parametrize("name", WAYS)
async def test_each_answer_ends_as_what_it_was(name: str) -> None:
    way, found = WAYS[name], {}
    async with (
        served(upstream(UpstreamOptions())) as base,
        running(presets={"default": preset(name, way, base)}) as gateway,
    ):
        for fault in ENDS:
            pretend = {"fault": fault, "tokens": 30, "interval": 0}
            body = {"model": "m", **way.body, "stream": True, "pretend": pretend}
            found[fault] = await ended(gateway, body)
    # That a chat is whole is told by its finish reason too.
    told_twice = {"no-done": ("done", "", 30)} if name == "openai" else {}
    assert found == ENDS | told_twice

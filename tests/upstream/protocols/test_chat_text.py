"""The plain text of a chat completion."""

import json
from typing import Any

import pytest

from gateway.sse import Event
from gateway.upstream.protocols.chat_text import ChatText
from tests.support import chunk


def of(**members: Any) -> bytes:
    """Return the data of a chunk with these members."""
    return json.dumps({"object": "chat.completion.chunk", **members}).encode()


TEXT_OF = {
    "a delta": (chunk("Hel"), "Hel"),
    "any script": (chunk("用\u2028\n户"), "用\u2028\n户"),
    "no content": (of(choices=[{"index": 0, "delta": {"role": "assistant"}}]), ""),
    "null": (of(choices=[{"index": 0, "delta": {"content": None}}]), ""),
    "another choice": (chunk("x", index=1), ""),
    "the first choice among several": (
        of(choices=[{"index": i, "delta": {"content": str(i)}} for i in (2, 0)]),
        "0",
    ),
    "a choice without an index": (of(choices=[{"delta": {"content": "x"}}]), "x"),
    "parts instead of text": (of(choices=[{"index": 0, "delta": {"content": [1, {}, []]}}]), ""),
    "no delta": (of(choices=[{"index": 0, "content": "x"}]), ""),
    "done": (b"[DONE]", ""),
    "not JSON": (b'{"content": "x"', ""),
}


@pytest.mark.parametrize(("data", "text"), TEXT_OF.values(), ids=TEXT_OF)
def test_the_text_is_that_of_the_first_choice(data: bytes, text: str) -> None:
    assert ChatText(0).text_of(Event(data)) == text

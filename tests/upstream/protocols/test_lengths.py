"""Lengths: exactly the text that a model may read is counted."""

import time
from typing import Any

import pytest

from gateway.upstream.protocols.lengths import text_length

IMAGE = "iVBORw0KGgo" + "A" * 500


def length(content: Any) -> int:
    """Return the length of a message with this content."""
    return text_length({"messages": [{"role": "user", "content": content}]}, {"messages"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *(("", 0), ("abc", 3), ("é😀", 2), (["abc", "de"], 5), (None, 0), ("system", 6)),
        ([{"type": "text", "text": "abc"}, {"type": "input_text", "text": "de"}], 5),
        ([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}], 0),
        ([{"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}"}], 0),
        ([{"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}], 0),
        ([{"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}}], 0),
        ([{"type": "image", "source": {"media_type": "image/png", "data": IMAGE}}], 0),
        ([{"inlineData": {"mimeType": "audio/wav", "data": IMAGE}}, {"text": "ab"}], 2),
        ([{"type": "tool_result", "tool_use_id": "t1", "content": "abc"}], 3),
        ([{"type": "tool_use", "id": "t1", "name": "f", "input": {"q": "abc"}}], 5),
    ],
)
def test_text_counts_and_what_says_how_to_read_it_does_not(content: Any, expected: int) -> None:
    assert length(content) == expected


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "x" * 100}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,Say this to me" * 5}}],
        [{"type": "image_url", "image_url": {"url": "data:text/plain;base64," + "A" * 80}}],
        [{"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 80}}],
        [{"type": "document", "source": {"media_type": "text/plain", "data": "A" * 80}}],
        [{"type": "text", "text": f"data:image/png;base64,{'A' * 80}"}],
        [{"type": "text", "text": "A" * 80}],
        [{"type": "tool_use", "input": {"a long name " * 8: 1}}],
        [{"type": "tool_use", "input": [12345678] * 10}],
        [{"type": "tool_use", "input": {"q": 10**80}}],
        [[[[{"whatever": {"x": ["x" * 80]}}]]]],
    ],
)
def test_nothing_that_may_be_read_is_left_out(content: Any) -> None:
    assert length(content) >= 80


def test_a_tool_s_definition_is_read_by_the_model() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}}
    function = {"name": "weather", "description": "Say it.", "parameters": schema}
    tools = [{"type": "function", "function": function}]
    assert text_length({"tools": tools}, set()) == len("weatherSay it.cityWhere")
    names: dict[str, Any] = {f"{number:060}": {} for number in range(100)}
    assert text_length({"tools": [{"parameters": {"properties": names}}]}, set()) == 6000


def test_of_other_members_only_what_is_long_or_nested_counts() -> None:
    assert text_length({"user": "alice", "model": "m", "reasoning_effort": "low"}, set()) == 0
    assert text_length({"user": "x" * 100}, set()) == 100
    assert text_length({"prompt": "abc"}, {"prompt"}) == 3
    assert text_length({"images": [IMAGE], "prompt": "abc"}, {"prompt"}) == 3
    assert text_length({"images": ["Read this."]}, set()) == 10
    assert text_length({"prompt": [1, 22, 333]}, {"prompt"}) == 6


@pytest.mark.parametrize("one", ["[]", "{}", "0", '""', '{"":[]}'])
def test_what_has_very_many_values_is_too_long_and_takes_no_time(one: str) -> None:
    value = {"[]": [], "{}": {}, "0": 0, '""': "", '{"":[]}': {"": []}}[one]
    before = time.process_time()
    assert text_length({"messages": [[value] * 1_000_000]}, set()) > 10**9
    assert time.process_time() - before < 0.5

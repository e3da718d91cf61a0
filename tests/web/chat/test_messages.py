"""Messages: what a page of the AI SDK sends, as a conversation."""

from typing import Any

import pytest

from gateway.errors import Rejected
from gateway.upstream.protocols.conversation import Mused, Picture, Result, Turn, Use, Words
from gateway.web.chat.messages import chat_request

PNG = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def message(role: str, *parts: Any) -> dict[str, Any]:
    return {"id": f"{role}-1", "role": role, "parts": [*parts]}


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "messages": [*messages], "trigger": "submit-message", **more}


def named(message_id: str) -> dict[str, Any]:
    return {**message("assistant", text("So")), "id": message_id}


def tool(state: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool-see", "toolCallId": "t1", "state": state, "input": {"a": 1}, **more}


NOTED = {"g": {"s": "x"}}
DENIED = {"approved": False, "reason": "No!"}
USE = Use("t1", "see", {"a": 1}, {})
HELLO = message("user", text("Hello"))
TOLD: dict[str, tuple[list[Any], list[Turn]]] = {
    "text, an image and a system message": (
        [message("system", text("Be kind.")), message("user", PNG, text("Look"))],
        [
            Turn("system", [Words("Be kind.")]),
            Turn("user", [Picture("image/png", PNG["url"]), Words("Look")]),
        ],
    ),
    "what has no meaning to a model": (
        [
            message("user", {"type": "data-place", "data": {}}, text("Hi"), text("")),
            message("user", {"type": "data-x", "data": 1}),
            message("assistant", {"type": "step-start"}, {"type": "source-url", "url": "x"}),
        ],
        [Turn("user", [Words("Hi")])],
    ),
    "steps, thoughts and what tools gave": (
        [
            message(
                "assistant",
                {"type": "step-start"},
                {"type": "reasoning", "text": "Hm", "providerMetadata": {"a": {"b": 1}, "c": 2}},
                tool("output-available", output=[1], callProviderMetadata=NOTED),
                {"type": "step-start"},
                text("So"),
            )
        ],
        [
            Turn("assistant", [Mused("Hm", {"a": {"b": 1}}), USE._replace(noted=NOTED)]),
            Turn("tool", [Result("t1", "see", [1])]),
            Turn("assistant", [Words("So")]),
        ],
    ),
    "a tool that failed": (
        [message("assistant", tool("output-error", errorText="No."))],
        [Turn("assistant", [USE]), Turn("tool", [Result("t1", "see", "No.", failed=True)])],
    ),
    "a tool that the user denied, in one of its two shapes": (
        [message("assistant", tool("output-denied", approval=DENIED))],
        [Turn("assistant", [USE]), Turn("tool", [Result("t1", "see", "No!", failed=True)])],
    ),
    "a call of a dynamic tool that waits": (
        [message("assistant", tool("input-available", type="dynamic-tool", toolName="see"))],
        [Turn("assistant", [USE])],
    ),
    "calls that never were whole, or are the provider's": (
        [
            HELLO,
            message("assistant", tool("input-streaming"), tool("x", providerExecuted=True)),
        ],
        [Turn("user", [Words("Hello")])],
    ),
}


@pytest.mark.parametrize(("messages", "turns"), TOLD.values(), ids=TOLD)
def test_what_was_said_is_told_step_by_step(messages: list[Any], turns: list[Turn]) -> None:
    assert chat_request(body(*messages)).turns == turns


def test_an_answer_goes_on_with_the_message_that_comes_last_unless_it_is_made_again() -> None:
    answer = message("assistant", text("So"))
    assert chat_request(body(HELLO, answer)).continued == "assistant-1"
    assert chat_request(body(HELLO)).continued == ""
    assert chat_request(body(HELLO, {**answer, "id": ""})).continued == ""
    anew = chat_request(body(HELLO, answer, trigger="regenerate-message"))
    assert (anew.continued, anew.anew) == ("", True)


NAMED: dict[str, Any] = {
    "a file": {"type": "file", "mediaType": "application/pdf", "url": "data:;base64,AA"},
    "an image that is nowhere": {**PNG, "url": "blob:x"},
    "thoughts as a file": {"type": "reasoning-file", "mediaType": "image/png", "url": "x"},
    "what is not known": {"type": "hologram"},
    "what only a provider knows": {"type": "custom", "kind": "a.b"},
}


@pytest.mark.parametrize("part", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_part_that_cannot_be_sent_on_is_refused_by_its_name(role: str, part: Any) -> None:
    with pytest.raises(Rejected) as refused:
        chat_request(body(HELLO, message(role, text("Hi"), part)))
    assert refused.value.code == "part_not_supported"
    assert part["type"] in refused.value.detail
    assert "messages[1].parts[1]" in refused.value.detail


def test_an_image_of_the_models_own_is_refused() -> None:
    with pytest.raises(Rejected, match='"file"'):
        chat_request(body(message("assistant", PNG)))


WRONG: dict[str, dict[str, Any]] = {
    "no id": body(HELLO, id=None),
    "an id that is empty": body(HELLO, id=""),
    "an id that is a path": body(HELLO, id="a/b"),
    "an id that a URL takes away": body(HELLO, id=".."),
    "an id that is too long": body(HELLO, id="x" * 201),
    "an id that is no text": body(HELLO, id="a\n"),
    "a message to go on with whose id is half a character": body(named("\ud800")),
    "one whose id is too long": body(named("x" * 201)),
    "another trigger": body(HELLO, trigger="resume-stream"),
    "a trigger that is none": body(HELLO, trigger=[]),
    "no messages": body(messages=None),
    "messages that are none": body("Hello"),
    "a message without parts, as of version 4": body({"role": "user", "content": "Hello"}),
    "a part that is none": body(message("user", "Hello")),
    "a part without a type": body(message("user", {"text": "Hello"})),
    "a text that is none": body(message("user", {"type": "text", "text": 1})),
    "a tool without a name": body(message("assistant", tool("x", type="dynamic-tool"))),
    "a call without an id": body(message("assistant", tool("x", toolCallId=1))),
    "another role": body(message("tool", text("Hello"))),
    "nothing said": body(message("user", text(""))),
    "nobody": body(),
    "more than can be read at once": body(*[HELLO] * 5_001),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_chat_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refused:
        chat_request(wrong)
    assert refused.value.code == "bad_chat"

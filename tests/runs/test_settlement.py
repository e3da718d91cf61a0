"""Settlements: what was taken and never told is guessed from the log, and lost answers count."""

import asyncio
import json
from collections.abc import Iterable

import pytest

from gateway.config.presets import Preset
from gateway.eventlog.entries import EntryBatch, EventId
from gateway.runs.bill import Bill, told
from gateway.runs.settlement import settle
from gateway.sse import Event, encode
from gateway.upstream.protocols.base import CompletionState, Protocol, Tokens
from gateway.upstream.protocols.table import logged_protocol
from tests.support import OK, Call, ask, chunk, running, scripted, sse

CHAT = logged_protocol("openai")
ANTHROPIC = logged_protocol("anthropic")
REQUEST = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 40}]}).encode()
RESET = Event(b'{"attempt":2}', b"reset")
USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


def entry(number: int, events: Iterable[Event]) -> EntryBatch:
    """Return a log's entry of these events."""
    frames = b"".join([encode(each.data, b"1-%d" % number, each.name) for each in events])
    return EntryBatch(EventId(1, number), 1, frames)


async def settled(
    protocol: Protocol, *answers: Iterable[bytes], request: bytes = REQUEST
) -> tuple[CompletionState, Tokens]:
    """Return the state of the last of these answers, of one log, and what the others took."""
    entries: list[EntryBatch] = []
    completion = protocol.completion(request)
    for number, answer in enumerate(answers):
        completion = protocol.completion(request)
        entries += [entry(number, [RESET])] if number else []
        for data in answer:
            completion.see(Event(data))
            entries.append(entry(number, [Event(data)]))
    return completion, await settle(completion, protocol, request, entries)


def delta(kind: str, text: str) -> bytes:
    """Return an event of Anthropic's."""
    part = {"type": f"{kind}_delta", {"input_json": "partial_json"}.get(kind, kind): text}
    return json.dumps({"type": "content_block_delta", "index": 0, "delta": part}).encode()


def of_chat(**members: object) -> bytes:
    """Return a chunk of chat with this delta."""
    return json.dumps({"choices": [{"index": 0, "delta": members}]}).encode()


CALL = [{"index": 0, "function": {"name": "f", "arguments": "x" * 39}}]


@pytest.mark.parametrize(
    ("dialect", "events", "tokens"),
    [
        ("openai", [of_chat(role="assistant", content=""), chunk("a"), chunk("b")], 2),
        ("openai", [of_chat(content="x" * 400)], 100),
        ("openai", [of_chat(reasoning_content="a", reasoning="a")] * 9, 9),
        ("openai", [of_chat(tool_calls=CALL)], 10),
        ("openai", [of_chat(content=[{"type": "text", "text": "x" * 40}])], 10),
        ("openai", [b'{"response":"%b"}' % (b"x" * 40)], 10),
        ("openai", [b'{"choices":[{"text":"%b"}]}' % (b"x" * 40)], 10),
        ("anthropic", [delta("text", "x" * 40), delta("text", "y" * 40)], 20),
        ("anthropic", [delta("thinking", "x" * 80), delta("input_json", "y" * 40)], 30),
        ("ollama", [b'{"message":{"content":"","thinking":"%b"}}' % (b"x" * 40)], 10),
        ("ollama", [b'{"response":"%b"}' % (b"x" * 40)], 10),
        ("ollama", [b'{"message":{"tool_calls":[{"a":"%b"}]}}' % (b"x" * 31)], 10),
        ("gemini", [b'{"candidates":[{"content":{"parts":[{"text":"%b"}]}}]}' % (b"x" * 40)], 10),
        (
            "gemini",
            [b'{"candidates":[{"content":{"parts":[{"functionCall":{"a":"%b"}}]}}]}' % (b"x" * 31)],
            10,
        ),
        ("responses", [b'{"type":"response.output_text.delta","delta":"%b"}' % (b"x" * 40)], 10),
        ("responses", [b'{"type":"response.audio.delta","delta":"%b"}' % (b"x" * 40)], 1),
        ('sse {"end":{"event":"e"},"text":{"path":"t"}}', [b'{"t":"%b"}' % (b"x" * 40)], 10),
    ],
)
async def test_what_no_upstream_counted_is_guessed_by_what_was_generated(
    dialect: str, events: list[bytes], tokens: int
) -> None:
    completion, earlier = await settled(logged_protocol(dialect), events)
    guess = {**(completion.estimate() or {})}
    assert guess.pop("estimated") is True
    assert ([*guess.values()], completion.tokens.completion) == ([tokens], tokens)
    assert (completion.tokens.estimated, earlier) == (tokens, Tokens())


async def test_what_the_upstream_counted_stays_whatever_was_said() -> None:
    completion, _ = await settled(CHAT, [chunk("x" * 400), USAGE])
    assert (completion.tokens, completion.counted) == (Tokens(7, 3), True)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama", "gemini", "responses"])
@pytest.mark.parametrize(
    "data",
    [
        *(b"[DONE]", b"{", b"[]", b"\xff", b"1" * 5000, b"[" * 10_000),
        *(b'{"choices":[{"delta":{"content":{"a":1},"tool_calls":[1,{"function":2}]}}]}',),
        *(b'{"choices":[{"delta":7,"text":[]}],"type":[],"delta":[],"message":[]}',),
        *(b'{"type":"x.delta","delta":"\\ud800","response":{},"candidates":[{"content":[]}]}',),
        b'{"candidates":[{"content":{"parts":[{"text":7,"functionCall":"\\ud800"}]}}]}',
    ],
    ids=range(10),
)
async def test_whatever_was_logged_an_answer_can_be_settled(dialect: str, data: bytes) -> None:
    completion, earlier = await settled(logged_protocol(dialect), [data], [data])
    assert (completion.tokens.completion or 0) <= 5
    assert (earlier.prompt or 0) > 0


async def test_a_long_answer_is_guessed_from_a_sample_of_it() -> None:
    words = [delta("text", "x" * (8 + number % 40)) for number in range(5000)]
    completion, _ = await settled(ANTHROPIC, words)
    exact = sum(8 + number % 40 for number in range(5000)) / 4
    assert completion.tokens.completion == pytest.approx(exact, rel=0.03)


async def test_answers_that_were_lost_count_with_their_prompts() -> None:
    lost, cut = [chunk("a"), chunk("b")], [chunk("c"), USAGE]
    completion, earlier = await settled(CHAT, lost, cut, [], [chunk("d")])
    assert completion.tokens == Tokens(None, 1, None, 1)
    assert earlier == Tokens(10 + 7 + 10, 2 + 3, None, 10 + 2 + 10)


async def test_a_bill_has_the_last_answer_and_beside_it_all_of_them() -> None:
    preset = Preset.model_validate({"url": "http://u", "price": {"prompt": 1e6, "completion": 1e6}})
    completion, earlier = await settled(CHAT, [chunk("a"), chunk("b")], [chunk("c")])
    bill = Bill.of(completion, "p", preset, request=REQUEST, read=True, earlier=earlier)
    assert told(bill.tokens) == {"prompt": 10, "completion": 1, "cached": None, "estimated": True}
    assert (bill.total, bill.cost, bill.total_cost) == (Tokens(20, 3, None, 23), 11, 23)


async def test_of_a_request_that_nobody_read_nothing_is_guessed() -> None:
    bill = Bill.of(CHAT.completion(), "p", None, request=REQUEST)
    assert (bill.tokens, bill.total) == (Tokens(), Tokens())


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        (OK + sse(chunk("Hi")), 2),
        (OK, 2),
        (b"", 2),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n", None),
    ],
    ids=["cut", "empty", "closed", "refused", "surely refused"],
)
async def test_a_prompt_is_guessed_unless_it_was_refused(answer: bytes, prompt: int | None) -> None:
    async def script(call: Call) -> None:
        await call.send(answer)

    async with scripted(script) as upstream:
        presets = {"default": {"url": upstream.url, "retries": 0}}
        async with running(presets=presets) as gate:
            end = (await gate.read(await gate.ticket(ask("12345678")))).end
    assert (end["tokens"] or {}).get("prompt") == prompt


async def test_others_have_their_turn_while_a_long_log_is_settled() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await settled(CHAT, [chunk("a")] * 20_000, [chunk("b")])
    task.cancel()
    assert turns > 10

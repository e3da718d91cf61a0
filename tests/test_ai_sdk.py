"""The AI SDK in three majors, unmodified: its chats on a gateway, whatever happens to them."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients import HERE, beside, node_modules
from tests.support import (
    OK,
    SECRET,
    Call,
    Process,
    RedisServer,
    Served,
    chunk,
    client,
    cookie,
    process,
    read,
    running,
    scripted,
    settings,
    sse,
    until,
)
from tests.upstream.protocols.shapes import data
from tests.web.chat.test_endpoints import asked, has, kinds, said

HOME = HERE / "ai_sdk"
MAJORS = ("5", "6", "7")
ALICE = cookie(settings())


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts beside the packages that they import."""
    return beside(node_modules(HOME), tmp_path_factory.mktemp("ai_sdk"), HOME)


@asynccontextmanager
async def node(script: Path, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a script with alice's cookie."""
    started = await asyncio.create_subprocess_exec(
        *["node", str(script), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "COOKIE": ALICE["Cookie"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


# Each situation


def delta(**more: Any) -> bytes:
    """Return the data of a chunk."""
    return data({"choices": [{"index": 0, "delta": more}]})


CALL = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city":'}}
REST = {"index": 0, "function": {"arguments": '"Oslo"}'}}
CITED = {"type": "url_citation", "url_citation": {"url": "https://a.example/", "title": "A"}}
RICH = [
    *(delta(reasoning_content="Let "), delta(reasoning_content="me see.")),
    *(delta(content="It "), delta(content="is ", annotations=[CITED])),
    *(delta(tool_calls=[CALL]), delta(tool_calls=[REST]), chunk("", finish="tool_calls")),
    b"[DONE]",
]


async def talk(call: Call) -> None:
    """Answer a chat by what was said last."""
    last = call.json["messages"][-1]
    if last["role"] == "tool":
        await call.send(OK, sse(delta(content="7 degrees."), chunk("", finish="stop"), b"[DONE]"))
    elif last["content"] == "rich":
        await call.send(OK, sse(*RICH))
    elif last["content"] == "refuse":
        refusal = b'{"error":{"message":"You ask too often."}}'
        await call.send(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(refusal), refusal)
    else:
        await call.send(OK, sse(chunk("Hel")))
        if last["content"] == "hang":
            await call.left.wait()


STEP = {"type": "step-start"}
USE = {"type": "tool-weather", "toolCallId": "call_1", "input": {"city": "Oslo"}}
THOUGHT = {"type": "reasoning", "text": "Let me see.", "state": "done"}
SOURCE = {"type": "source-url", "url": "https://a.example/", "title": "A"}
HALF = [STEP, {"type": "text", "text": "Hel", "state": "streaming"}]


def text(words: str) -> dict[str, Any]:
    """Return a part that is whole."""
    return {"type": "text", "text": words, "state": "done"}


def bare(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parts without what only some majors note."""
    return [{k: v for k, v in part.items() if k not in ("sourceId", "rawInput")} for part in parts]


def check(told: dict[str, Any]) -> None:
    """Check what became of the chats of one major."""
    assert told["idle"] == {"status": "ready"}
    rich, continued, regenerated = (told[x] for x in ("rich", "continued", "regenerated"))
    waits = [STEP, THOUGHT, text("It is "), SOURCE, {**USE, "state": "input-available"}]
    assert bare(rich["parts"]) == waits
    done = {**USE, "state": "output-available", "output": {"degrees": 7}}
    assert bare(continued["parts"]) == [*waits[:-1], done, STEP, text("7 degrees.")]
    assert bare(regenerated["parts"]) == waits
    for each, reason in ((rich, "tool-calls"), (continued, "stop"), (regenerated, "tool-calls")):
        assert (each["status"], each["isError"], each["finishReason"]) == ("ready", False, reason)
        assert (each["messages"], "error" in each) == (2, False)
    cut, refuse, stopped = (told[each] for each in ("cut", "refuse", "stopped"))
    assert (cut["status"], cut["parts"], "finishReason" in cut) == ("error", HALF, False)
    assert "whole" in cut["error"]
    assert (refuse["status"], refuse["error"]) == ("error", "You ask too often.")
    assert (stopped["status"], stopped["parts"], stopped["isError"]) == ("ready", HALF, False)
    assert "finishReason" not in stopped
    assert told["over"] == {"status": "ready", "messages": 2}
    assert (told["file"]["status"], told["file"]["error"]["code"]) == (
        "error",
        "part_not_supported",
    )
    assert '"file"' in told["file"]["error"]["detail"]


async def test_chats_of_each_major_show_what_was_said_and_an_error_where_it_is_not_whole(
    scripts: Path,
) -> None:
    times = {"lease": 10, "grace": 20, "heartbeat": 15, "drain": 0.2}
    async with scripted(talk) as upstream, running(upstream_url=upstream.url, **times) as gate:
        async with node(scripts / "chats.mjs", f"{gate.url}/chat") as chats:
            output, _ = await chats.communicate()
        assert chats.returncode == 0
        told = json.loads(output)
        for major in MAJORS:
            check(told[major])
        asks = [call.json["messages"] for call in upstream.calls]
        assert len(asks) == 6 * len(MAJORS)  # None was paid for twice, and the file never.
        assert asks[1][1:] == [
            {
                "role": "assistant",
                "content": "It is ",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees":7}'},
        ]


# Reloads, and a replica that dies

TIMES = 35  # Of each chat before the kill, and after it.
PIECES = 40  # Of each of three stages.
WORD = len("word 000 ")


def presets(chats: str) -> dict[str, dict[str, Any]]:
    """Return a preset whose answers outlive their replica, and one that asks for them again."""
    kept = {"url": chats.replace("chat/completions", "responses"), "protocol": "responses"}
    more = {"on_leave": "finish"}
    anew = {"url": chats, "on_crash": "restart"}
    return {"default": {**kept, "background": True, **more}, "anew": {**anew, **more}}


def toml(tables: dict[str, dict[str, Any]]) -> str:
    """Return presets as a file has them."""
    lines = []
    for name, table in tables.items():
        told = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        lines += [f"[presets.{name}]", *told]
    return "\n".join(lines)


class Stages:
    """An upstream that says a third of an answer, and each other third when it is let go on.

    It keeps its responses; chats it does not keep.
    """

    def __init__(self) -> None:
        self.stages = [asyncio.Event() for _ in range(3)]
        self.stages[0].set()
        self.creates = self.chats = 0

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        path = call.head.split()[1].decode()
        if path.endswith("/cancel"):
            await call.send(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}")
            return
        if chats := "chat/completions" in path:
            self.chats += 1
            name = ""
        elif "starting_after=" in path:
            name = path.partition("?")[0].rpartition("/")[2]
        else:
            self.creates += 1
            name = f"resp_{self.creates}"
        events = CHAT if chats else responses(name)
        await call.send(OK)
        last = int(path.partition("starting_after=")[2] or -1)
        for number, stage in enumerate(self.stages):
            waits = [asyncio.create_task(each.wait()) for each in (stage, call.left)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()
            if call.left.is_set():
                return
            third = events[number * PIECES : (number + 1) * PIECES]
            numbered = enumerate(third, number * PIECES)
            await call.send(sse(*(each for place, each in numbered if place > last)))
        await call.send(sse(*events[3 * PIECES :]))


WORDS = [f"word {number:03} " for number in range(3 * PIECES)]
CHAT = [*map(chunk, WORDS), chunk("", finish="stop"), b"[DONE]"]


def responses(name: str) -> list[bytes]:
    """Return the events of a response."""
    told: dict[str, Any] = {"id": name, "object": "response", "output": []}
    events = [{"type": "response.created", "response": {**told, "status": "in_progress"}}]
    events += [{"type": "response.output_text.delta", "delta": each} for each in WORDS]
    events += [{"type": "response.completed", "response": {**told, "status": "completed"}}]
    return [data({**each, "sequence_number": n}) for n, each in enumerate(events)]


async def heard(from_: asyncio.subprocess.Process) -> Any:
    """Return what a script says next."""
    assert from_.stdout is not None
    line = await from_.stdout.readline()
    assert line, "it has ended"
    return json.loads(line)


@pytest.mark.timeout(120)
async def test_two_hundred_reloads_and_a_dead_replica_double_no_part_and_pay_once(
    scripts: Path, own_redis: RedisServer, tmp_path: Path
) -> None:
    stages, config = Stages(), tmp_path / "gateway.toml"
    async with scripted(stages) as upstream:
        told = presets(upstream.url)
        config.write_text(toml(told), "utf-8")
        given: dict[str, Any] = {"redis_url": own_redis.url, "lease": 2, "grace": 30, "drain": 0.2}
        texts = {name: str(value) for name, value in given.items()}
        own = {"config": str(config), "secrets": SECRET, "log_level": "error"}
        with process("serve", "--port", "0", **own, **texts) as dying:
            async with running(**given, presets=told) as other:
                await play(scripts / "reloads.mjs", dying, other, stages)
    assert (stages.creates, stages.chats) == (2 * len(MAJORS), 2)


async def play(script: Path, dying: Process, other: Served, stages: Stages) -> None:
    """Reload pages of both replicas until one dies, and then of the other; judge what they show."""
    anew: dict[str, Any] = {"headers": {**ALICE, "Idempotency-Key": "anew"}, "last_id": ""}
    async with client(dying.url) as http:
        some = await read(http, "/chat/anew", body=asked(), enough=has("text-delta"), **anew)
    urls = [f"{each}/chat" for each in (dying.url, other.url)]
    texts = [WORD * (number * PIECES - 2) for number in (1, 2)]
    async with node(script, *urls, TIMES, *texts) as pages:
        assert await heard(pages) == "kill it"
        dying.signal(signal.SIGKILL)
        stages.stages[1].set()
        assert pages.stdin is not None
        pages.stdin.write(b"\n")
        assert await heard(pages) == "let it end"
        stages.stages[2].set()
        for major, chat in zip(MAJORS, await heard(pages), strict=True):
            assert chat["count"] == 2 * TIMES, major
            assert (chat["status"], "error" in chat) == ("ready", False), chat
            assert chat["parts"] == chat["uncut"] == [STEP, text("".join(WORDS))]
    anew["last_id"] = some.last_id

    async def whole() -> bool:
        got = await read(other.http, "/chat/anew/c1/stream", **anew)
        begun = kinds(got)[:2] == ["start", "start-step"]
        return "finish" in kinds(got) and begun and said(got) == "".join(WORDS)

    await until(whole, "what was begun anew is shown from its start", 30)
    joined = await read(other.http, "/chat/anew", body=asked(), headers=anew["headers"])
    assert (kinds(joined)[-1], said(joined)) == ("finish", "".join(WORDS))

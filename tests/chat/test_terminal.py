"""gateway chat: what a terminal is shown, how it ends, and what it costs."""

import io
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.chat.conversation import Conversation
from gateway.chat.lines import Refused, There
from gateway.chat.terminal import Answer
from gateway.cli import main
from gateway.config.presets import Preset
from gateway.config.settings import table
from gateway.sse import Event
from tests.support import OK as HEAD
from tests.support import (
    SECRET,
    Call,
    Process,
    Script,
    Served,
    ask,
    chunk,
    client,
    cookie,
    gateway,
    process,
    settings,
    sse,
    until,
    whole,
)
from tests.test_clients import cutting

PROTOCOLS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
    "gemini": "/v1beta/models/m:streamGenerateContent?alt=sse",
}

SAID = [["user", "a"], ["assistant", "b"], ["user", "c"]]


class World(NamedTuple):
    """A pretend upstream, and a gateway before it."""

    upstream: str
    gateway: str
    config: str

    @property
    def calls(self) -> int:
        """How often the upstream was asked."""
        return int(httpx.get(f"{self.upstream}/calls", trust_env=False).json()["count"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Both as processes of their own: a chat has a loop and signals for itself."""
    config = tmp_path_factory.mktemp("chat") / "presets.toml"
    with process("upstream", "--port", "0", "--interval", "0.001", "--tokens", "12") as upstream:
        presets = [
            f'[presets.{name}]\nprotocol = "{name}"\nurl = "{upstream.url}{path}"\n'
            'api_key = "k"\n' + ("" if name == "gemini" else 'defaults = {model = "m"}\n')
            for name, path in PROTOCOLS.items()
        ]
        role = (
            f'[presets.role]\nurl = "{upstream.url}/v1/chat/completions"\n'
            'template = [{role = "user", content = "Say: ${words}"}]\nvariables = {words = {}}\n'
        )
        config.write_text("\n".join([*presets, role]))
        given = {"secrets": SECRET, "config": str(config), "lease": "10", "grace": "20"}
        with process("serve", "--port", "0", **given) as served:
            yield World(upstream.url, served.url, str(config))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations of this test are kept; nothing else is set."""
    for row in table():
        monkeypatch.delenv(row.name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "gateway" / "chat.json"


def chat(*arguments: str, stdin: str | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["chat", *arguments], input=stdin)


def at(world: World) -> list[str]:
    """Return the options that reach its gateway as alice."""
    return ["--url", world.gateway, "--cookie", cookie(settings())["Cookie"]]


def kept(state: Path) -> dict[str, Any]:
    """Return the conversation as it is kept."""
    return dict(json.loads(state.read_text("utf-8")))


# What is said


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_preset_of_any_protocol_is_asked_without_a_gateway_that_runs(
    world: World, name: str
) -> None:
    first = chat("-p", name, "--config", world.config, "One?")
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout.startswith("“One?”\n")
    assert first.stdout.endswith("\n")
    again = chat("--resume", "--config", world.config, "Two?")
    assert (again.exit_code, again.stdout[:6]) == (0, "“Two?”")


def test_a_gateway_that_runs_says_the_same(world: World, state: Path) -> None:
    here = chat("-p", "openai", "--config", world.config, "One?")
    there = chat("-p", "openai", *at(world), "One?")
    assert there.stdout == here.stdout
    assert there.exit_code == 0
    assert kept(state)["turns"] == [["One?", here.stdout.removesuffix("\n")]]
    assert state.stat().st_mode & 0o777 == 0o600


def test_what_is_typed_is_asked_line_by_line_and_the_rest_is_remembered(
    world: World, state: Path
) -> None:
    told = chat("-p", "anthropic", "--config", world.config, stdin="One?\n\nTwo?\n")
    assert told.exit_code == 0
    assert [each for each in told.stdout.splitlines() if each.startswith("“")] == [
        "“One?”",
        "“Two?”",
    ]
    assert [question for question, _ in kept(state)["turns"]] == ["One?", "Two?"]


def test_a_role_takes_the_text_in_its_variable(world: World) -> None:
    here = chat("-p", "role", "--config", world.config, "-", stdin="Ahoy")
    assert here.stdout.startswith("“Say: Ahoy”")
    assert chat("-p", "role", *at(world), "--as", "words", "Ahoy").stdout == here.stdout


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("openai", {"messages": SAID}),
        ("ollama", {"messages": SAID}),
        ("responses", {"input": SAID}),
        ("gemini", {"contents": [SAID[0], ["model", "b"], SAID[2]]}),
        ("anthropic", {"messages": SAID, "max_tokens": 1024}),
    ],
)
def test_what_was_said_before_goes_along_in_the_protocols_own_form(
    protocol: str, expected: dict[str, Any]
) -> None:
    talk = Conversation()
    for question, answer in (("a", "b"), ("lost", ""), ("c", "")):
        talk.ask(question)
        talk.answered(answer, "done")
    body = talk.body(Preset.model_validate({"protocol": protocol}), {"x": 1})
    for member in body.values():
        for at, each in enumerate(member if isinstance(member, list) else []):
            text = each["content"] if "content" in each else each["parts"][0]["text"]
            member[at] = [each["role"], text]
    assert body == {**expected, "x": 1}


def test_no_answer_gives_orders_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Screen()
    monkeypatch.setattr("sys.stdout", shown)
    Answer().show(Event("a\x1b[2J\tb\n\x9bc".encode()))
    assert shown.getvalue() == "a\ufffd[2J\tb\n\ufffdc"
    shown.terminal = False
    Answer().show(Event(b"\x1b"))
    assert shown.getvalue().endswith("\x1b")


class Screen(io.StringIO):
    """What a terminal was sent."""

    terminal = True

    def isatty(self) -> bool:
        """Whether it is one."""
        return self.terminal


# What goes wrong


def test_an_answer_that_is_not_whole_says_why_and_can_be_asked_for_again(world: World) -> None:
    cut = ["--set", 'pretend={"fault":"cut:3"}', "One?"]
    for options in (["--config", world.config], at(world)):
        told = chat("-p", "openai", *options, *cut)
        assert told.exit_code == 1
        assert told.stdout.startswith("“One?”")
        assert told.stderr.startswith("gateway: upstream_cut: ")
        before = world.calls
        again = chat("--resume", *options)
        assert (again.exit_code, again.stdout[: len(told.stdout) - 1]) == (0, told.stdout[:-1])
        assert again.stderr == "gateway: the answer cannot go on: asking once more\n"
        assert world.calls == before + 1


def test_a_refusal_has_its_code(world: World) -> None:
    for options, code in (
        ([*at(world), "-p", "nobody"], "preset_not_found"),
        (["--url", world.gateway], "not_authenticated"),
        (["--url", world.gateway, "--token", "none"], "not_authenticated"),
        (["--url", "http://127.0.0.1:9"], "unreachable"),
        ([*at(world), "-p", "role"], "variable_unknown"),
        (["-p", "role", "--config", world.config, "--set", "x=y"], "variable_unknown"),
    ):
        told = chat(*options, "One?")
        assert (told.exit_code, told.stdout) == (1, ""), told.output
        assert told.stderr.startswith(f"gateway: {code}: ")


def test_what_cannot_be_asked_is_said_at_once(world: World) -> None:
    for options, code, words in (
        (["One?"], 78, "GATEWAY_UPSTREAM_URL"),
        (["-p", "no", "--config", world.config, "One?"], 78, "--preset"),
        (["--config", world.config, " "], 2, "TEXT"),
        (["--resume", "One?"], 2, "--resume"),
        (["--url", world.gateway, "--set", "x", "One?"], 2, "--set"),
    ):
        told = chat(*options)
        assert (told.exit_code, told.stdout) == (code, "")
        assert words in told.stderr


# What ends early


def begun(*arguments: str, tokens: int) -> Process:
    """Begin a slow chat as a process of its own, and return it once it shows text."""
    slow = json.dumps({"interval": 0.05, "tokens": tokens})
    command = Process("chat", "-p", "openai", *arguments, "--set", f"pretend={slow}", "One?")
    assert command.process.stdout is not None
    assert command.process.stdout.readline() == "“One?”\n"
    return command


def test_ctrl_c_stops_an_answer(world: World, state: Path) -> None:
    for options in (["--config", world.config], at(world)):
        command = begun(*options, tokens=1000)
        command.signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.stop() == "gateway: cancelled\n"
        assert kept(state)["state"] == "cancelled"


def test_an_answer_whose_terminal_is_gone_is_gone_on_with(world: World, state: Path) -> None:
    before = world.calls
    command = begun(*at(world), tokens=40)
    command.stop()
    told = chat("--resume", *at(world))
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.startswith("“One?”\n")
    assert kept(state)["state"] == "done"
    assert world.calls == before + 1


# A line that breaks


def slowly(count: int) -> Script:
    """Return the script of an answer of so many pieces."""

    async def script(call: Call) -> None:
        await call.send(HEAD, sse(*(chunk(f"{number} ") for number in range(count))))
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))

    return script


@asynccontextmanager
async def line_to(gate: Served, url: str) -> AsyncIterator[There]:
    async with client(url) as http:
        http.headers.update(gate.cookie())
        yield There(http, url, "default")


async def shown(line: There, where: str) -> list[Event]:
    """Return what is shown of an answer."""
    events: list[Event] = []
    await line.follow(where, events.append)
    return events


async def test_after_a_cut_it_goes_on_and_nothing_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.chat.lines._PAUSE", 0.01)
    async with (
        gateway(slowly(40)) as (gate, upstream),
        cutting(gate, [100, 900, 1200]) as (url, _),
        line_to(gate, url) as line,
    ):
        events = await shown(line, await line.ask(ask()))
        text = b"".join(each.data for each in events if not each.name).decode()
        assert text == "".join(f"{number} " for number in range(40))
        assert events[-1].name == b"end"
        assert len(upstream.calls) == 1


async def test_what_is_kept_no_longer_is_refused() -> None:
    async with gateway(whole, log_ttl=1) as (gate, _), line_to(gate, gate.url) as line:
        where = await line.ask(ask())
        assert (await shown(line, where))[-1].name == b"end"
        await until(lambda: _is_gone(gate, where), seconds=20)
        with pytest.raises(Refused) as refused:
            await shown(line, where)
    assert refused.value.code in {"log_expired", "ticket_not_found"}


async def _is_gone(gate: Served, where: str) -> bool:
    return (await gate.http.get(where, headers=gate.cookie())).status_code != 200

"""The command `gateway`: what it prints, how it exits, and how it ends."""

import asyncio
import os
import re
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway import __version__
from gateway.auth.base import Caller
from gateway.auth.loading import signed_cookie
from gateway.cli import main
from gateway.config.settings import table
from gateway.demo.upstream import URLS
from tests.serve.test_sockets import taken_port
from tests.support import (
    OK,
    SECRET,
    Call,
    Process,
    RedisServer,
    ask,
    chunk,
    client,
    cookie,
    free_port,
    process,
    read,
    scripted,
    settings,
    sse,
    until,
    whole,
)

UPSTREAM = "http://127.0.0.1:9/v1/chat/completions"
COMPLETE = {"secrets": SECRET, "upstream_url": UPSTREAM}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all GATEWAY_ variables away."""
    for row in table():
        monkeypatch.delenv(row.name, raising=False)


def command(*arguments: str, **variables: str) -> Result:
    """Run a command in this process; one that would serve is not for this."""
    environment = {f"GATEWAY_{name.upper()}": value for name, value in variables.items()}
    return CliRunner().invoke(main, arguments, env=environment)


def refused(*arguments: str, **variables: str) -> str:
    """Return the one line of a command that finds its settings wrong."""
    result = command(*arguments, **variables)
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.startswith("gateway: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# What it says


def test_the_version_is_the_packages() -> None:
    assert command("--version").stdout == f"gateway, version {__version__}\n"


def test_without_a_command_it_says_which_there_are() -> None:
    shown = command("--help").stdout
    for name in (
        *("serve", "demo", "chat", "check", "streams", "usage", "push", "cookie"),
        *("whois", "upstream", "page"),
    ):
        assert f"\n  {name} " in shown


def test_serve_says_that_secrets_are_missing() -> None:
    assert "GATEWAY_SECRETS" in refused("serve", upstream_url=UPSTREAM)


def test_serve_says_that_the_upstream_is_missing() -> None:
    assert "GATEWAY_UPSTREAM_URL" in refused("serve", secrets=SECRET)


WRONG = {
    "drain": "x",
    "max_body": "-1",
    "upstream_url": "nowhere",
    "auth": "nothing",
    "redis_url": "http://h/",
    "config": "/no/such.toml",
    "log_level": "loud",
    "presets": "x",
}


@pytest.mark.parametrize(("name", "value"), WRONG.items())
def test_serve_names_a_wrong_setting(name: str, value: str) -> None:
    assert name in refused("serve", **{**COMPLETE, name: value}).lower()


@pytest.mark.parametrize("name", ["serve", "demo", "check", "streams", "usage", "cookie", "page"])
def test_every_command_names_a_wrong_flag(name: str) -> None:
    subject = ["alice"] if name in ("cookie", "usage") else []
    assert "GATEWAY_DRAIN: " in refused(name, *subject, "--drain", "x")


def test_several_workers_need_a_store_that_they_share() -> None:
    said = refused("serve", "--workers", "2", **COMPLETE)
    assert "GATEWAY_REDIS_URL" in said
    assert "--workers 2" in said


@pytest.mark.parametrize("name", ["serve", "upstream", "page"])
def test_a_port_that_is_taken_is_said(name: str) -> None:
    variables = COMPLETE if name != "upstream" else {}
    with taken_port() as port:
        assert f"127.0.0.1:{port}" in refused(name, "--port", str(port), **variables)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "a..b", "x" * 70])
def test_a_host_that_cannot_be_is_said(host: str) -> None:
    assert host in refused("serve", "--host", host, **COMPLETE)


def test_an_unknown_variable_is_hinted_at(caplog: pytest.LogCaptureFixture) -> None:
    command("cookie", "alice", secrets=SECRET, drian="5")
    assert "did you mean GATEWAY_DRAIN?" in caplog.text


KEYS = {"secrets": SECRET, "upstream_api_key": "sk-12345678", "redis_url": "redis://:pw@h:1/0"}


@pytest.mark.parametrize("name", [*KEYS, "upstream_url"])
def test_a_secret_in_a_flag_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everybody on the machine reads it in the list of processes."""
    value = {**KEYS, "upstream_url": "https://u/v1?key=sk-12345678"}[name]
    flag = f"--{name.replace('_', '-')}"
    command("cookie", "alice", flag, value, **{"secrets": SECRET} if name != "secrets" else {})
    (warned,) = [each for each in caplog.messages if "list of processes" in each]
    assert warned.startswith(f"{flag} shows a secret")
    assert f"GATEWAY_{name.upper()}" in warned
    assert (f"{flag}-file" in warned) == (name in KEYS)
    assert "12345678" not in warned


def test_what_is_no_secret_or_no_flag_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--redis-url", "redis://h:1/0?db=1", "--upstream-url", "https://u/v1", "--drain", "1")
    command("cookie", "alice", *flags, **{**KEYS, "redis_url": ""})
    assert not [each for each in caplog.messages if "list of processes" in each]


async def test_workers_have_the_secret_of_a_file_that_can_be_read_once(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    """As `--secrets-file <(vault read …)` is."""
    os.mkfifo(pipe := tmp_path / "pipe")
    given = {"redis_url": shared_redis.url, "upstream_url": UPSTREAM}
    begun = Process("serve", "--port", "0", "--workers", "2", "--secrets-file", str(pipe), **given)
    try:
        await asyncio.to_thread(pipe.write_text, SECRET + "\n")
        await asyncio.to_thread(begun.ready)
        headers = cookie(settings())
        async with client(begun.url) as http:
            for _ in range(4):
                assert (await http.post("/tickets", json=ask(), headers=headers)).status_code == 201
        begun.signal(signal.SIGTERM)
        assert await asyncio.to_thread(begun.wait) == 0
    finally:
        begun.stop()


def test_a_module_that_breaks_as_it_is_loaded_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_auth.py").write_text("raise ValueError('two\\nlines \\x1b[31m')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "two lines" in refused("serve", auth="broken_auth:who", **COMPLETE)


# The cookie


@pytest.mark.parametrize("subject", ["alice", "alice@example.org", "用户", "42"])
async def test_the_cookie_printed_is_that_of_its_subject(subject: str) -> None:
    printed = command("cookie", subject, secrets=SECRET, subject_field="user.id").stdout
    morsel = SimpleCookie(printed.strip())["session"]
    reader = signed_cookie(settings(secrets=SECRET, subject_field="user.id"))
    finding = await reader.find(Caller({}, {"session": morsel.value}))
    assert finding.subject == subject


@pytest.mark.parametrize("subject", ["", "x" * 257, "a\nb"])
def test_no_cookie_is_printed_that_the_gateway_would_refuse(subject: str) -> None:
    result = command("cookie", subject, secrets=SECRET)
    assert result.exit_code != 0
    assert result.stdout == ""


def test_without_secrets_there_is_no_cookie() -> None:
    assert "SECRETS" in refused("cookie", "alice")


# Processes


def said(process: Process) -> str:
    """Return all that an ended process wrote."""
    return "".join(process.process.communicate(timeout=20))


async def healthy(process: Process) -> httpx.Response:
    """Return the answer to /readyz, which says that signals are handled by now."""
    async with client(process.url) as http:
        assert (await http.get("/healthz")).status_code == 200
        return await http.get("/readyz")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_says_where_answers_and_exits_0_at_a_signal(number: int) -> None:
    with process("serve", "--port", "0", **COMPLETE) as served:
        assert (await healthy(served)).status_code == 200
        served.signal(number)
        assert served.wait() == 0
        assert "Traceback" not in said(served)


async def test_serve_may_open_as_many_files_as_the_system_lets_it() -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        with process("serve", "--port", "0", **COMPLETE) as served:
            limits = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
    assert limits == (most, most)


async def test_serve_says_loudly_that_its_store_is_embedded_and_its_secrets_short() -> None:
    with process("serve", "--port", "0", **COMPLETE, cookie_secrets="0123456789abcde") as served:
        await healthy(served)
        served.signal(signal.SIGTERM)
        served.wait()
        words = said(served)
        assert "EMBEDDED STORE" in words
        assert words.count("GATEWAY_COOKIE_SECRETS: shorter than 16 characters") == 1
        assert "0123456789abcde" not in words


@pytest.mark.parametrize("name", ["upstream_api_key", "secrets", "upstream_url", "public_url"])
def test_a_lines_end_inside_a_secret_stops_the_start_and_is_not_shown(name: str) -> None:
    given = {"secrets": SECRET, "upstream_url": "http://u.example/v1"}
    line = refused("serve", **{**given, name: "https://sk-of-a-mount\r\nX-Smuggled: 1"})
    assert line.startswith(f"gateway: GATEWAY_{name.upper()}: ")
    assert "sk-of" not in line


def test_a_wrong_setting_ends_the_process_with_78_one_line_and_no_traceback() -> None:
    ended = Process("serve", secrets=SECRET)
    assert ended.wait() == 78
    output, errors = ended.process.communicate()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("gateway: GATEWAY_UPSTREAM_URL")


async def endless(call: Call) -> None:
    """The script of an upstream that begins and never ends."""
    await call.send(OK, sse(chunk("Hel")))
    await call.left.wait()


@asynccontextmanager
async def streaming(served: Process) -> AsyncIterator[asyncio.Task[Any]]:
    """Redeem a ticket and read it; yields the reading once the first event is there."""
    begun = asyncio.Event()

    def enough(transcript: Any) -> bool:
        if transcript.events:
            begun.set()
        return False

    async with client(served.url) as http:
        url = await ticket_of(http)
        reading = asyncio.create_task(read(http, url, headers=cookie(settings()), enough=enough))
        await asyncio.wait_for(begun.wait(), 20)
        yield reading
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def ticket_of(http: httpx.AsyncClient) -> str:
    """Return the stream_url of a new ticket."""
    answer = await http.post("/tickets", json=ask(), headers=cookie(settings()))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["stream_url"])


async def test_serve_exits_0_at_a_signal_with_a_stream_open() -> None:
    async with scripted(endless) as upstream:
        given = {"secrets": SECRET, "upstream_url": upstream.url, "drain": "1"}
        with process("serve", "--port", "0", **given) as served:
            async with streaming(served) as reading:
                served.signal(signal.SIGTERM)
                got = await asyncio.wait_for(reading, 20)
                assert await asyncio.to_thread(served.wait) == 0
            assert got.status == 200
            assert got.raw.endswith(b"\n\n")
            assert "Traceback" not in said(served)


async def test_a_second_signal_ends_it_at_once() -> None:
    async with scripted(endless) as upstream:
        given = {"secrets": SECRET, "upstream_url": upstream.url, "drain": "600"}
        with process("serve", "--port", "0", **given) as served:
            async with streaming(served) as reading:
                served.signal(signal.SIGTERM)
                await asyncio.wait_for(reading, 20)
                assert served.process.poll() is None, "its run goes on"
                served.signal(signal.SIGTERM)
                code = await asyncio.to_thread(served.wait)
            assert code == 0
            assert "Traceback" not in said(served)


async def test_a_draining_process_refuses_new_connections() -> None:
    async with scripted(endless) as upstream:
        given = {"secrets": SECRET, "upstream_url": upstream.url, "drain": "600"}
        with process("serve", "--port", "0", **given) as served:
            async with streaming(served) as reading:
                served.signal(signal.SIGTERM)
                await asyncio.wait_for(reading, 20)
                async with client(served.url) as http:
                    with pytest.raises(httpx.ConnectError):
                        await http.get("/healthz")


async def test_no_ticket_appears_in_what_the_process_writes() -> None:
    async with scripted(whole) as upstream:
        given = {"secrets": SECRET, "upstream_url": upstream.url, "log_level": "debug"}
        with process("serve", "--port", "0", **given) as served:
            async with client(served.url) as http:
                url, headers = await ticket_of(http), cookie(settings())
                await read(http, url, headers=headers)
                await read(http, url, headers=headers, last_id="1-1")
                await http.get(url + "x", headers=headers)
                await http.delete(url, headers=headers)
                await http.get(url.replace("/stream", "/completion"), headers=headers)
            served.signal(signal.SIGTERM)
            served.wait()
            written = said(served)
    ticket = url.partition("ticket=")[2]
    assert "done after 1 attempt" in written
    assert ticket not in written
    assert ticket.partition(".")[2] not in written


async def test_no_secret_appears_in_what_the_process_writes() -> None:
    keys = {"secrets": "first-secret-of-all", "upstream_api_key": "sk-second-secret"}
    given = {**keys, "upstream_url": UPSTREAM, "log_level": "debug", "upstream_retries": "0"}
    with process("serve", "--port", "0", **given) as served:
        headers = cookie(settings(secrets=keys["secrets"]))
        async with client(served.url) as http:
            answer = await http.post("/tickets", json=ask(), headers=headers)
            await read(http, answer.json()["stream_url"], headers=headers)
        served.signal(signal.SIGTERM)
        served.wait()
        written = said(served)
    assert not [key for key in keys.values() if key in written]


async def test_a_cookie_printed_by_one_process_opens_another() -> None:
    printed = command("cookie", "alice", secrets=SECRET).stdout.strip()
    with process("serve", "--port", "0", **COMPLETE) as served:
        async with client(served.url) as http:
            answer = await http.post("/tickets", json=ask(), headers={"Cookie": printed})
            assert answer.status_code == 201


# Demo, page and upstream


async def test_the_demo_needs_nothing_and_shows_a_page_that_streams() -> None:
    with process("demo", "--port", "0") as shown:
        async with client(shown.url) as http:
            page = await http.get("/")
            assert "EventSource" in page.text + (await http.get("/static/gateway.js")).text
            answer = await http.post("/tickets", json=ask(pretend={"tokens": 3, "interval": 0}))
            got = await read(http, answer.json()["stream_url"])
        assert page.headers["content-type"].startswith("text/html")
        assert got.end["state"] == "done"
        shown.signal(signal.SIGTERM)
        assert shown.wait() == 0


async def test_the_demo_takes_another_port_where_its_own_is_taken() -> None:
    with taken_port() as port, process("demo", "--port", str(port)) as shown:
        assert not shown.url.endswith(f":{port}")
        assert (await healthy(shown)).status_code == 200


async def test_the_demo_listens_on_the_loopback_only() -> None:
    with process("demo", "--port", str(free_port())) as shown:
        assert re.match(r"http://127\.0\.0\.1:\d+$", shown.url)


async def session_of(page: Process) -> dict[str, str]:
    """Open a page and return the Cookie header that it gives."""
    async with client(page.url) as http:
        given = (await http.get("/")).headers["set-cookie"]
        return {"Cookie": given.partition(";")[0]}


async def test_the_page_alone_lets_in_at_a_gateway_that_has_its_secret() -> None:
    with (
        process("page", "--port", "0", cookie_secrets="of the app") as page,
        process("serve", "--port", "0", cookie_secrets="of the app", **COMPLETE) as served,
    ):
        async with client(served.url) as http:
            answer = await http.post("/tickets", json=ask(), headers=await session_of(page))
            assert answer.status_code == 201


async def test_the_page_alone_lets_nobody_in_at_another_gateway() -> None:
    with (
        process("page", "--port", "0", secrets="of the demo") as page,
        process("serve", "--port", "0", **COMPLETE) as served,
    ):
        async with client(served.url) as http:
            answer = await http.post("/tickets", json=ask(), headers=await session_of(page))
            assert answer.status_code == 401


def test_the_page_alone_needs_a_secret() -> None:
    assert "GATEWAY_SECRETS" in refused("page")


async def test_the_pretend_upstream_answers_and_fails_as_told() -> None:
    arguments = ("--port", "0", "--fault", "status:503", "--api-key", "k")
    with process("upstream", *arguments) as pretend:
        async with client(pretend.url) as http:
            path, right = "/v1/chat/completions", {"Authorization": "Bearer k"}
            assert (await http.post(path, json=ask(), headers=right)).status_code == 503
            assert (await http.post(path, json=ask())).status_code == 401


def test_the_pretend_upstream_says_where_each_provider_is() -> None:
    with process("upstream", "--port", "0") as pretend:
        assert pretend.process.stdout is not None
        more = [pretend.process.stdout.readline().split()[-1] for _ in URLS[1:]]
    assert more == [pretend.url + path for path in URLS[1:]]


def test_a_fault_that_nobody_knows_is_said() -> None:
    result = command("upstream", "--port", "0", "--fault", "nonsense")
    assert result.exit_code in {2, 78}
    assert "nonsense" in result.stderr


async def test_a_signal_ends_the_pretend_upstream_in_good_order() -> None:
    with process("upstream", "--port", "0") as pretend:
        async with client(pretend.url) as http:
            await until(lambda: http.get("/healthz"))
        pretend.signal(signal.SIGTERM)
        assert pretend.wait() == 0

"""The runner of the contract: our own server keeps all of it, a wrong one is found out."""

import ast
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import Gateway
from gateway.errors import REJECTED, TOO_MANY, UNAVAILABLE
from tests import conformance
from tests.nginx import front
from tests.support import SECRET, Process, RedisServer, cookie, process, running, served, settings

HERE = Path(conformance.__file__).parent
HOME = HERE.parent.parent
PROTOCOL = (HOME / "docs" / "protocol.md").read_text("utf-8")
LISTED = "https://app.example"
TOKEN = "a-token-of-the-tests"
FAST = ("--interval", "0.01", "--tokens", "30")

pytestmark = pytest.mark.timeout(150)


async def played(url: str, *options: str) -> tuple[int, dict[str, set[str]]]:
    """Run the runner as alice; return its exit code, and what it said of which promises."""
    alice = cookie(settings())["Cookie"]
    command = [sys.executable, "-m", "tests.conformance", url, "--cookie", alice, *options]
    runner = await asyncio.create_subprocess_exec(
        *command, cwd=HOME, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await runner.communicate()
    said: dict[str, set[str]] = {"ok": set(), "FAIL": set(), "skip": set()}
    for verdict, name in re.findall(r"^(ok|FAIL|skip) +([^:\n]+)", output.decode(), re.MULTILINE):
        said[verdict].add(name)
    assert runner.returncode is not None
    return runner.returncode, said


@contextmanager
def ours(**variables: str) -> Iterator[tuple[Process, Process]]:
    """Run the pretend upstream, and `gateway serve` before it."""
    with process("upstream", "--port", "0", *FAST) as upstream:
        given = {"secrets": SECRET, "upstream_url": f"{upstream.url}/v1/chat/completions"}
        with process("serve", "--port", "0", **given, log_level="error", **variables) as gate:
            yield gate, upstream


async def test_our_own_server_keeps_the_whole_contract() -> None:
    bob = cookie(settings(), "bob")["Cookie"]
    given = {"heartbeat": "1", "allowed_origins": LISTED, "service_tokens": TOKEN}
    with ours(**given) as (gate, upstream):
        more = ("--other-cookie", bob, "--origin", LISTED, "--pretend", upstream.url)
        service = ("--user", "alice", "--service-token", TOKEN)
        code, said = await played(gate.url, *more, *service)
    assert said["FAIL"] == set()
    assert said["skip"] == {"a ticket that nobody redeems runs out with 410"}
    assert (code, len(said["ok"]) > 60) == (0, True)


async def test_a_cookie_is_enough_and_a_path_of_a_proxy_is_no_matter() -> None:
    with ours(prefix="/llm", public_url="https://chat.example") as (gate, _):
        code, said = await played(f"{gate.url}/llm")
    assert (code, said["FAIL"]) == (0, set())
    assert "a reconnect gets exactly the rest" in said["ok"]
    assert "a ticket of another user is refused with 404" in said["skip"]


async def test_two_replicas_behind_nginx_and_tls_keep_it_too(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    bob = cookie(settings(), "bob")["Cookie"]
    with process("upstream", "--port", "0", *FAST) as upstream:
        asked = f"{upstream.url}/v1/chat/completions"
        async with front(tmp_path, shared_redis, asked, allowed_origins=LISTED) as site:
            more = ("--other-cookie", bob, "--origin", LISTED, "--pretend", asked, "--insecure")
            code, said = await played(site.nginx.url, *more)
    assert (code, said["FAIL"]) == (0, set())


async def test_a_ticket_that_runs_out_soon_is_waited_for() -> None:
    with ours(start_by="1") as (gate, _):
        code, said = await played(gate.url, "--only", "runs out")
    assert (code, said["ok"]) == (0, {"a ticket that nobody redeems runs out with 410"})


# A server that is wrong


class Wrong:
    """Our own application, behind something that breaks what it says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a HEAD as a GET, as frameworks do; say 200 where an EventSource is to stop."""

        async def sending(message: Message) -> None:
            await send({**message, "status": 200} if message.get("status") == 204 else message)

        as_get = {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope
        await self._app(as_get, receive, sending)


class Forgetful(Wrong):
    """It forgets an event of whoever comes back."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave out the first block of what follows a Last-Event-ID."""
        back = b"last-event-id" in dict(scope.get("headers", ()))
        held: list[bytes] | None = [] if back else None

        async def sending(message: Message) -> None:
            nonlocal held
            if held is not None and (body := message.get("body")):
                held.append(body)
                _, blank, rest = b"".join(held).partition(b"\n\n")
                message = {**message, "body": b"retry: 1\n" + rest if blank else b""}
                held = None if blank else held
            await send(message)

        await self._app({**scope, "extensions": {}}, receive, sending)


@asynccontextmanager
async def spoilt(by: type[Wrong]) -> AsyncIterator[str]:
    """Run a gateway behind something wrong; yields its URL."""
    with process("upstream", "--port", "0", *FAST) as upstream:
        gateway = Gateway(settings(upstream_url=f"{upstream.url}/v1/chat/completions"))
        async with served(by(gateway.app), gateway) as url:
            yield url


async def test_a_server_that_breaks_two_promises_is_told_which() -> None:
    async with spoilt(Wrong) as url:
        code, said = await played(url)
    assert code == 1
    assert said["FAIL"] - {"a cancel ends a running stream for all its viewers"} == {
        "a head redeems nothing and is refused with 405",
        "a reconnect that has the end gets 204",
        "its repeat that has the end gets 204",
        "with a key a repeat attaches and is paid for once",
    }


async def test_a_server_that_loses_an_event_is_found_out() -> None:
    async with spoilt(Forgetful) as url:
        code, said = await played(url, "--only", "exactly the rest")
        whole, _ = await played(url, "--only", "who looks later")
    assert (code, said["FAIL"]) == (1, {"a reconnect gets exactly the rest"})
    assert whole == 0


async def test_a_server_that_never_answers_takes_no_longer_than_it_may() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what is asked first, and nothing after it."""
        first = await reader.readline()
        if first.startswith(b"GET / "):
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(20):
        code, said = await played(url, "--seconds", "0.3", "--total", "1")
    assert (code, said["ok"]) == (1, set())


async def test_where_nobody_listens_nothing_is_kept() -> None:
    async with running() as gate:
        url = gate.url
    code, said = await played(url)
    assert (code, said["ok"]) == (1, set())


# The runner and the document


def test_the_runner_imports_nothing_of_the_server() -> None:
    nodes = [node for path in HERE.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    others = {each for each in modules if each.partition(".")[0] not in sys.stdlib_module_names}
    assert {each for each in others if not each.startswith("tests.conformance")} == {"httpx"}


def test_the_document_has_every_code_with_its_status() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PROTOCOL, re.MULTILINE))
    told = {code: int(status) for code, status in table.items()}
    refusals = {code: status for code, (status, _) in REJECTED.items()}
    passing: dict[str, Any] = {code: 429 if code in TOO_MANY else 503 for code in UNAVAILABLE}
    assert told == refusals | passing


def test_the_document_has_every_code_of_a_failure() -> None:
    told = set(re.findall(r"^\| `(\w+)` \| `\w+` \|", PROTOCOL, re.MULTILINE))
    assert len(codes_of_failures()) > 10
    assert codes_of_failures() <= told


def codes_of_failures() -> set[str]:
    """Return what the source gives to `failure` and to UpstreamFailure, and what calls those."""
    found: set[str] = set()
    for path in (HOME / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"failure", "UpstreamFailure", "_too_large"}:
                first = node.args[0] if isinstance(node, ast.Call) and node.args else None
                found |= {str(first.value)} if isinstance(first, ast.Constant) else set()
    return found


def test_every_link_within_the_document_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", PROTOCOL, re.MULTILINE)
    there = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", PROTOCOL)) <= there


def test_the_document_says_how_the_runner_is_run() -> None:
    (command,) = re.findall(r"^python -m tests\.conformance (.*)$", PROTOCOL, re.MULTILINE)
    options = set(re.findall(r"--[a-z-]+", command))
    assert options <= set(re.findall(r'"(--[a-z-]+)"', (HERE / "__main__.py").read_text("utf-8")))

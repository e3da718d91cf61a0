"""The gateway inside an application: four frameworks, over real sockets."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from gateway import Gateway, Settings
from gateway.config.settings import load
from gateway.config.values import Values
from gateway.errors import Rejected, SettingsError, Unavailable
from tests.embedded import FRAMEWORKS, inside, who_later
from tests.support import (
    OK,
    Call,
    RedisServer,
    ask,
    chunk,
    client,
    free_port,
    gateway,
    scripted,
    served,
    settings,
    sse,
    until,
    wait_for_port,
    whole,
)

ALICE = {"Cookie": "user=alice"}
STREAM = {"Accept": "text/event-stream"}

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application, and yield a client."""
    async with served(app) as url, client(url) as http:
        yield http


# Under a path


@every_framework
async def test_a_stream_under_a_path_is_asked_for_opened_resumed_and_ended(framework: str) -> None:
    async with scripted(whole) as upstream:
        given = inside(upstream.url)
        async with running(FRAMEWORKS[framework](given)) as http:
            assert "home" in (await http.get("/")).text
            made = await http.post("/llm/tickets", json=ask(), headers=ALICE)
            url = made.json()["stream_url"]
            assert url.startswith("/llm/stream?ticket=")
            assert made.headers["location"] == url
            got = await http.get(url, headers={**ALICE, **STREAM})
            ids = [line[4:] for line in got.text.splitlines() if line.startswith("id: ")]
            rest = await http.get(url, headers={**ALICE, **STREAM, "Last-Event-ID": ids[0]})
            assert ids[1:] == [
                line[4:] for line in rest.text.splitlines() if line.startswith("id: ")
            ]
            over = await http.get(url, headers={**ALICE, **STREAM, "Last-Event-ID": ids[-1]})
            assert over.status_code == 204
            at_once = await http.post("/llm/tickets", json=ask(), headers={**ALICE, **STREAM})
            assert at_once.headers["content-location"].startswith("/llm/stream?ticket=")
            asked = await http.get(url.replace("/stream", "/completion"), headers=ALICE)
            assert (asked.json()["text"], asked.json()["state"]) == ("Hello", "done")
            bob = await http.get(url, headers={"Cookie": "user=bob"})
            assert bob.json()["code"] == "ticket_not_found"
            nobody = await http.post("/llm/tickets", json=ask())
            assert nobody.status_code == 401
            assert (await http.get("/llm/nowhere")).json()["code"] == "not_found"
    assert len(upstream.calls) == 2


@every_framework
async def test_a_ticket_made_in_the_application_is_what_the_url_gives(framework: str) -> None:
    async with scripted(whole) as upstream:
        given = inside(upstream.url)
        async with running(FRAMEWORKS[framework](given)) as http:
            made = await given.ticket("alice", ask())
            assert made.expires_in == 60
            assert made.stream_url == f"/llm/stream?ticket={made.ticket}"
            got = await http.get(made.stream_url, headers={**ALICE, **STREAM})
            assert '"state":"done"' in got.text
            bob = await http.get(made.stream_url, headers={"Cookie": "user=bob"})
            assert bob.status_code == 404
    assert len(upstream.calls) == 1


@every_framework
async def test_behind_a_proxy_that_strips_a_path_urls_carry_it(framework: str) -> None:
    given = inside("http://127.0.0.1:9/", prefix="/outer/llm")
    async with running(FRAMEWORKS[framework](given)) as http:
        made = await http.post("/llm/tickets", json=ask(), headers=ALICE)
        assert made.json()["stream_url"].startswith("/outer/llm/stream?ticket=")
        assert (await given.ticket("alice", ask())).stream_url.startswith("/outer/llm/stream?")


@every_framework
async def test_a_server_acts_for_a_user_under_a_path(framework: str) -> None:
    tokens = ["a-token-of-the-tests"]
    over = settings(service_tokens=tokens)
    app = FRAMEWORKS[framework](Gateway(over))
    sent = {"Authorization": f"Bearer {tokens[0]}"}
    async with running(app) as http:
        for subject in ("a%2Fb", "alice"):
            url = f"/llm/users/{subject}/tickets"
            made = await http.post(url, json=ask(), headers=sent)
            assert made.status_code == 201, made.text
            assert made.json()["stream_url"].startswith("/llm/stream?")
        out = await http.delete("/llm/users/a%2Fb/streams", headers=sent)
        assert out.json() == {"cancelled": 1}


# docs/embedding.md

PAGE = (Path(__file__).parent.parent / "docs" / "embedding.md").read_text("utf-8")


async def test_the_lines_of_the_reference_are_an_application(
    monkeypatch: pytest.MonkeyPatch, shared_redis: RedisServer
) -> None:
    async def user_of_session(session: str) -> str | None:
        return session or None

    monkeypatch.setenv("GATEWAY_SECRET", "a secret of the tests that is long enough")
    monkeypatch.setenv("KEY", "sk-1")
    lines, in_a_route = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {"user_of_session": user_of_session}
    async with scripted(whole) as upstream:
        lines = lines.replace("https://…/v1/chat/completions", upstream.url)
        exec(lines.replace("redis://localhost:6379/0", shared_redis.url), made)
        exec(f"async def route(messages):\n{textwrap.indent(in_a_route, '    ')}", made)
        async with running(made["app"]) as http:
            cookie = {"Cookie": "session=alice"}
            answer = await http.post("/llm/tickets", json=ask(), headers=cookie)
            told = await made["route"](ask()["messages"])
            for url in (answer.json()["stream_url"], told["stream_url"]):
                got = await http.get(url, headers={**cookie, **STREAM})
                assert '"state":"done"' in got.text
    assert all(b"Bearer sk-1" in call.head for call in upstream.calls)


# ticket


async def test_a_ticket_obeys_presets_keys_and_sizes() -> None:
    presets = {"inner": {"public": False, "models": ["small"]}}
    async with gateway(presets=presets, max_body=2048) as (gate, _):
        make = gate.gateway.ticket
        first = await make("alice", ask(), idempotency_key="k")
        assert (await make("alice", ask(), idempotency_key="k")).ticket == first.ticket
        await make(17, {**ask(), "model": "small"}, "inner")
        refused: dict[str, Callable[[], Any]] = {
            "model_not_allowed": lambda: make("alice", ask(), preset="inner"),
            "preset_not_found": lambda: make("alice", ask(), preset="none"),
            "idempotency_mismatch": lambda: make("alice", ask("other"), idempotency_key="k"),
            "bad_idempotency_key": lambda: make("alice", ask(), idempotency_key="\0"),
            "bad_subject": lambda: make("", ask()),
            "body_too_large": lambda: make("alice", ask("x" * 3000)),
            "not_json": lambda: make("alice", ask(temperature=float("nan"))),
        }
        for code, call in refused.items():
            with pytest.raises(Rejected) as caught:
                await call()
            assert caught.value.code == code


def _nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


class Row(Mapping[str, Any]):
    """A mapping that is no dict, as of a database."""

    def __getitem__(self, name: str) -> Any:
        return ask()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ask())

    def __len__(self) -> int:
        return len(ask())


async def test_a_body_is_any_mapping_that_json_can_say() -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    bodies: list[tuple[Any, str]] = [
        (ask(at=date(2026, 1, 1)), "not_json"),
        (ask(data=b"bytes"), "not_json"),
        (ask(some={1, 2}), "not_json"),
        ({**ask(), (1, 2): 3}, "not_json"),
        (ask(deep=_nested(100_000)), "not_json"),
        (ask(deep=_nested(300)), "not_json"),
        (ring, "not_json"),
        (ask(seed=10**5000), "not_json"),
        ([ask()], "not_an_object"),
        ("{}", "not_an_object"),
        (b"{}", "not_json"),
        (None, "not_an_object"),
    ]
    async with gateway() as (gate, _):
        for body, code in bodies:
            with pytest.raises(Rejected) as caught:
                await gate.gateway.ticket("alice", body)
            assert caught.value.code == code
        for key in (None, ""):
            made = await gate.gateway.ticket("alice", Row(), idempotency_key=key)
            assert made.expires_in == 60
        wrong: Any = 7
        with pytest.raises(Rejected) as caught:
            await gate.gateway.ticket("alice", ask(), idempotency_key=wrong)
        assert caught.value.code == "bad_idempotency_key"


async def test_a_log_out_in_the_application_ends_a_users_streams() -> None:
    async with gateway() as (gate, _):
        url = await gate.ticket()
        assert await gate.gateway.log_out("alice") == 1
        assert (await gate.completion(url))["state"] == "cancelled"


async def test_a_log_out_needs_no_bound_of_what_a_user_may_hold() -> None:
    async with gateway(subject_bytes=0) as (gate, _):
        url = await gate.ticket()
        assert await gate.gateway.log_out("alice") == 1
        assert (await gate.completion(url))["state"] == "cancelled"
    alone = Gateway(settings(subject_bytes=0), logs_out=False)
    async with alone.lifespan():
        with pytest.raises(SettingsError, match="GATEWAY_SUBJECT_BYTES"):
            await alone.log_out("alice")


# authenticate


async def test_an_async_callable_names_the_user_and_one_that_breaks_nobody() -> None:
    async def breaks(headers: Any, cookies: Any) -> str:
        raise ValueError("broken")

    for call, status in ((who_later, 201), (breaks, 401)):
        app = Gateway(settings(), authenticate=call).app
        async with running(app) as http:
            made = await http.post("/tickets", json=ask(), headers=ALICE)
            assert made.status_code == status


# Its life


async def test_before_its_lifespan_runs_all_is_refused_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = inside("http://127.0.0.1:9/")
    async with running(Starlette(routes=[Mount("/llm", given.app)])) as http:
        for path in (
            "/llm/tickets",
            "/llm/stream?ticket=x",
            "/llm/healthz",
            "/llm/users/a/tickets",
        ):
            for headers in (ALICE, {**ALICE, **STREAM}):
                method = "POST" if "tickets" in path else "GET"
                answer = await http.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (503, "not_started")
        with pytest.raises(Rejected, match="lifespan"):
            await given.ticket("alice", ask())
    said = [each for each in caplog.records if "gateway.lifespan" in each.getMessage()]
    assert [each.levelname for each in said] == ["ERROR"]


async def test_an_application_may_begin_and_end_more_than_once() -> None:
    async with scripted(whole) as upstream:
        app = FRAMEWORKS["starlette"](inside(upstream.url))
        for _ in range(2):
            async with running(app) as http:
                made = await http.post("/llm/tickets", json=ask(), headers=ALICE)
                url = made.json()["stream_url"]
                got = await http.get(url, headers={**ALICE, **STREAM})
                assert '"state":"done"' in got.text


async def test_after_its_lifespan_nothing_is_stored_that_nobody_would_serve() -> None:
    gate = inside("http://127.0.0.1:9/")
    transport = httpx.ASGITransport(gate.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        async with gate.lifespan():
            assert (await http.post("/tickets", json=ask(), headers=ALICE)).status_code == 201
        for url in ("/tickets", "/readyz"):
            method = "POST" if url == "/tickets" else "GET"
            answer = await http.request(method, url, json=ask(), headers=ALICE)
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    for call in (gate.ticket("alice", ask()), gate.log_out("alice")):
        with pytest.raises(Unavailable, match="draining"):
            await call


async def test_two_lifespans_at_once_are_refused() -> None:
    given = inside("http://127.0.0.1:9/")
    async with given.lifespan():
        with pytest.raises(RuntimeError, match="two lifespans"):
            async with given.lifespan():
                pass


# Settings in code


def test_every_setting_is_a_value_that_type_checkers_know() -> None:
    assert Values.__annotations__.keys() == Settings.model_fields.keys()


def test_settings_in_code_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_DRAIN", "7")
    monkeypatch.setenv("GATEWAY_SECRETS", "of the environment")
    given = Settings(grace=1.5, allowed_origins="https://a.example, https://b.example")
    assert (given.drain, given.secrets, given.grace) == (60, (), 1.5)
    assert given.allowed_origins == ("https://a.example", "https://b.example")
    assert load({}).drain == 7


@pytest.mark.parametrize(
    "values", [{"grace": -1}, {"nothing": 1}, {"secrets_file": "/a"}, {"secrets": 5}], ids=str
)
def test_a_wrong_value_in_code_is_refused_and_not_shown(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(upstream_api_key="sk-secret", **values)
    assert "sk-secret" not in str(caught.value)


# The end, under servers of others


async def slowly(call: Call) -> None:
    """Answer a word, then wait for a while, and end."""
    await call.send(OK, sse(chunk("Hel")))
    await asyncio.sleep(1.5)
    await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))


SERVERS = {
    "uvicorn": ("uvicorn", "--no-access-log", "--factory", "--port"),
    "uvicorn with workers": ("uvicorn", "--workers", "2", "--factory", "--port"),
    "hypercorn": ("hypercorn", "--bind"),
    "granian": ("granian", "--interface", "asgi", "--factory", "--port"),
}


@contextmanager
def server(name: str, port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the application of Starlette under a server that is not ours."""
    words = [sys.executable, "-m", *SERVERS[name]]
    words += [f"127.0.0.1:{port}" if name == "hypercorn" else str(port)]
    words += ["tests.embedded:create" + "()" * (name == "hypercorn")]
    environment = {**os.environ, "FRAMEWORK": "starlette", **variables}
    home = Path(__file__).parent.parent
    process = subprocess.Popen(words, env=environment, cwd=home, stderr=subprocess.PIPE)
    try:
        wait_for_port(port, 20)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_ends_sends_viewers_away_and_lets_runs_finish(
    name: str, shared_redis: RedisServer
) -> None:
    port = free_port()
    async with scripted(slowly) as upstream, client(f"http://127.0.0.1:{port}") as http:
        with server(name, port, UPSTREAM=upstream.url, REDIS=shared_redis.url) as process:
            made = await http.post("/llm/tickets", json=ask(), headers=ALICE)
            url = made.json()["stream_url"]
            async with http.stream("GET", url, headers={**ALICE, **STREAM}) as viewer:
                came = viewer.aiter_raw()
                got = b""
                while b"Hel" not in got:
                    got += await anext(came)
                process.send_signal(signal.SIGTERM)
                got += b"".join([each async for each in came])
            # Hypercorn tells its workers of the end by no signal: see docs/embedding.md.
            assert (b"event: end" in got) == (name == "hypercorn")
            assert got.endswith(b"\n\n")
            await until(lambda: process.poll() is not None, "it ends", 20)
            assert process.returncode in {0, -signal.SIGTERM}
    over = inside(upstream.url, shared_redis.url)
    async with running(FRAMEWORKS["starlette"](over)) as http:
        answer = await http.get(url.replace("/stream", "/completion"), headers=ALICE)
        told = answer.json()
    assert (told["state"], told["text"], told["attempts"]) == ("done", "Hello", 1), json.dumps(told)
    assert len(upstream.calls) == 1

"""The documents: what they tell a reader to type or to paste works as it stands there."""

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from playwright.async_api import BrowserContext, Page
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request

from gateway.auth.base import Caller, Finding
from gateway.auth.loading import authenticators
from gateway.config.presets import Preset
from gateway.config.settings import Settings, load, table
from gateway.demo.upstream import FAULTS, URLS
from gateway.errors import REJECTED, Rejected
from gateway.upstream.request_body import RequestBody
from tests import test_browser
from tests.support import OK, Call, ask, chunk, scripted, sse, whole
from tests.test_browser import cut, in_halves, log_in, watched

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text("utf-8")
PAGES = (HOME / "docs" / "pages.md").read_text("utf-8")
DOCUMENTS = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]

context = test_browser.context

# What the documents leave to their reader. `said` is what the page shows.
NAMES = """
window.said = "";
window.finished = [];
const show = (text) => { said += text; };
const complain = (text) => { said += `[${text}]`; };
const finish = (state) => finished.push(state);
const output = {append: show, replaceChildren() { said = ""; }};
"""


def script(text: str, marker: str) -> str:
    """Return the block of JavaScript that has a marker."""
    blocks: list[str] = re.findall(r"^```js\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (found,) = [each for each in blocks if marker in each]
    return found


async def run(page: Page, lines: str) -> None:
    """Run these lines on a page as a module, which may not have ended when this does."""
    body = f"const body = {json.dumps(json.dumps(ask()))};"
    await page.evaluate(
        """(text) => {
            const module = document.createElement("script");
            module.type = "module";
            module.textContent = text;
            const failed = (event) => { said += `{${(event.reason ?? event).message}}`; };
            for (const name of ["error", "unhandledrejection"]) addEventListener(name, failed);
            document.head.append(module);
        }""",
        NAMES + body + lines,
    )


# The README's lines


LINES = script(README, "new EventSource(stream_url)")


async def no_key(call: Call) -> None:
    """Refuse as a provider does that was given a wrong key."""
    words = b'{"error": {"message": "Incorrect API key."}}'
    head = b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await call.send(head % len(words), words)


async def breaks(call: Call) -> None:
    """Break off in the middle."""
    await call.send(OK, sse(chunk("Hel")))
    call.cut()


@pytest.mark.parametrize(
    ("upstream_is", "shown", "state"),
    [
        (whole, r"Hello", "done"),
        (no_key, r"\[.*Incorrect API key.*\]", "failed"),
        (breaks, r"Hel\[.+\]", "truncated"),
    ],
    ids=["whole", "a wrong key", "cut"],
)
async def test_the_lines_of_the_readme_show_an_answer_and_what_went_wrong(
    context: BrowserContext, upstream_is: Callable[..., object], shown: str, state: str
) -> None:
    async with scripted(upstream_is) as upstream, watched(upstream_url=upstream.url) as (gate, _):  # type: ignore[arg-type]
        await log_in(context, gate)
        page = await context.new_page()
        await page.goto(f"{gate.url}/bare")
        await run(page, LINES)
        await page.wait_for_function("window.finished?.length === 1")
        assert re.fullmatch(shown, await page.evaluate("said"))
        assert await page.evaluate("finished") == [state]
        assert len(upstream.calls) == 1


async def test_the_lines_of_the_readme_say_why_there_is_no_ticket(context: BrowserContext) -> None:
    async with scripted(whole) as upstream, watched(upstream_url=upstream.url) as (gate, watch):
        page = await context.new_page()
        await page.goto(f"{gate.url}/bare")
        await run(page, LINES)
        await page.wait_for_function("window.said")
        assert await page.evaluate("said") == "{Uncaught Error: Log in, then try again.}"
        assert [each.path for each in watch.seen if each.path != "/bare"] == ["/tickets"]
        assert not upstream.calls


# docs/pretend.md


def test_the_pretend_upstreams_faults_and_places_are_told() -> None:
    text = (HOME / "docs" / "pretend.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z:A-Z-]+)` \| ", text, re.MULTILINE)
    assert set(rows) == FAULTS.keys()
    assert [path for path in URLS if f"`{path}`" not in text] == []


# docs/pages.md


FETCHING = script(PAGES, "await fetchEventSource(")
LIBRARY = 'import { fetchEventSource } from "/library/index";\n'


@pytest.mark.parametrize("how", ["cut", "sent away"])
async def test_the_lines_for_fetch_event_source_outlive_a_cut_and_a_deploy(
    context: BrowserContext, how: str
) -> None:
    script, go_on = in_halves()
    async with scripted(script) as upstream, watched(upstream_url=upstream.url) as (gate, watch):
        await log_in(context, gate)
        page = await context.new_page()
        await page.goto(f"{gate.url}/bare")
        await run(page, f"{LIBRARY}{FETCHING}\nfinished.push(over);")
        await page.wait_for_function("window.said?.includes('19 ')")
        if how == "cut":
            cut(gate)
        else:
            for tail in gate.gateway.fanout._tails.values():
                tail.drop()
        go_on()
        await page.wait_for_function("window.finished.length === 1")
        assert await page.evaluate("finished") == [True]
        words = "".join(f"{number} " for number in range(40))
        assert await page.evaluate("said") == f"{words}Hello"
        assert watch.statuses("/tickets", "POST") == [200, 200]
        assert len(upstream.calls) == 1


async def test_the_lines_for_fetch_event_source_do_not_ask_again_for_what_is_refused(
    context: BrowserContext,
) -> None:
    async with scripted(whole) as upstream, watched(upstream_url=upstream.url) as (gate, watch):
        page = await context.new_page()
        await page.goto(f"{gate.url}/bare")
        await run(page, f"{LIBRARY}{FETCHING}\nfinished.push(over);")
        await page.wait_for_function("window.finished?.length === 1")
        assert await page.evaluate("said") == "[401]"
        assert watch.statuses("/tickets", "POST") == [401]
        assert not upstream.calls


# docs/presets.md


PRESETS = (HOME / "docs" / "presets.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Return the blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PRESETS, re.MULTILINE | re.DOTALL)


def test_the_presets_of_the_reference_are_taken_and_their_role_does_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("SPARE_KEY", "sk-2")
    (tmp_path / "presets.toml").write_text("".join(blocks("toml")), "utf-8")
    presets = load({"config": str(tmp_path / "presets.toml")}).presets
    (said,) = blocks("json")
    sent = json.loads(RequestBody(said.encode()).made(presets["talk"]).text)
    assert (sent["model"], sent["max_completion_tokens"]) == ("gpt-5-mini", 400)
    assert [each["content"] for each in sent["messages"]] == [
        "You are a pirate of few words. You know nothing that costs more than $5.",
        "What do you have for dinner?",
    ]
    body = json.dumps(ask(temperature=1) | {"model": "gpt-5"})
    sent = json.loads(RequestBody(body.encode()).made(presets["default"]).text)
    assert sent["messages"][0]["role"] == "system"
    with pytest.raises(Rejected) as caught:
        RequestBody(json.dumps(ask(seed=1)).encode()).made(presets["default"])
    assert caught.value.code == "field_not_allowed"


def test_the_reference_of_presets_has_every_key_and_every_refusal() -> None:
    rows = [line for line in PRESETS.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall("`([a-z_]+)`", row.split("|")[1])}
    assert Preset.model_fields.keys() <= named
    codes = {code for code in REJECTED if code.endswith("_not_allowed")} - {"method_not_allowed"}
    assert codes <= {*re.findall("`([a-z_]+)`", PRESETS)}


# docs/gateway.service


def unit(key: str) -> list[str]:
    """Return the values of a key of the unit, which may be there more than once."""
    text = (HOME / "docs" / "gateway.service").read_text("utf-8")
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_the_unit_names_only_settings_and_every_secret_comes_from_a_file() -> None:
    given = dict(each.split("=", 1) for each in unit("Environment"))
    known = {row.name for row in table()} | {"GATEWAY_PORT"}
    assert {name.removesuffix("_FILE") for name in given} <= known
    credentials = dict(each.split(":", 1) for each in unit("LoadCredential"))
    assert {f"%d/{name}" for name in credentials} == {
        value for name, value in given.items() if name.endswith("_FILE")
    }
    for name in ("SECRETS", "COOKIE_SECRETS", "REDIS_URL", "UPSTREAM_API_KEY"):
        assert given[f"GATEWAY_{name}_FILE"] == f"%d/{name.lower()}"


def test_the_unit_waits_for_the_drain_and_lets_nothing_else_end_it() -> None:
    (seconds,) = unit("TimeoutStopSec")
    assert float(seconds) >= Settings.model_fields["drain"].default + 10
    assert unit("KillMode") == ["mixed"]
    assert unit("ExecStart") == ["/opt/gateway/.venv/bin/gateway serve"]


# All of them


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^):#]+)\)", path.read_text("utf-8"))
    assert [each for each in links if not (path.parent / each).exists()] == []


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)]+)\)", README))
    there = {f"docs/{each.name}" for each in (HOME / "docs").iterdir()}
    assert there == linked


def test_the_readme_can_be_read_in_one_sitting_and_runs_before_its_thirtieth_line() -> None:
    lines = README.splitlines()
    assert len(lines) < 150
    assert any(".venv/bin/gateway demo" in line for line in lines[:30])
    assert any("bin/pytest -n" in line for line in lines[:30])


# docs/upstreams.md


UPSTREAMS = (HOME / "docs" / "upstreams.md").read_text("utf-8")


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```$", UPSTREAMS, re.M | re.S))
def test_every_preset_of_the_upstreams_can_be_pasted(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in re.findall(r'api_key_env = "(\w+)"', text):
        monkeypatch.setenv(variable, "a key")
    file = tmp_path / "gateway.toml"
    file.write_text(text, "utf-8")
    loaded = load({"config": str(file)})
    assert loaded.presets.keys() == set(re.findall(r"^\[presets\.(\w+)\]", text, re.M))


# docs/login.md


LOGIN = (HOME / "docs" / "login.md").read_text("utf-8")
WAYS = [
    block for block in re.findall(r"^```sh\n(.*?)^```$", LOGIN, re.M | re.S) if "_AUTH=" in block
]


@pytest.mark.parametrize("block", WAYS)
def test_the_lines_of_each_login_start_a_gateway(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whose.py").write_text("async def user(headers, cookies): ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GATEWAY_SECRETS", "a secret of the gateway")
    for line in block.splitlines():
        for given in shlex.split(line.removeprefix("export "), comments=True):
            monkeypatch.setenv(*given.split("=", 1))
    authenticators(load({}))


async def test_the_lines_for_fastapi_log_in_a_user_whom_the_gateway_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = LOGIN.partition("## Starlette and FastAPI")[2].partition("\n## ")[0]
    (lines,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    (exports,) = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    monkeypatch.setenv("SESSION_SECRET", "the secret of the app's sessions")
    app = FastAPI()
    told = {"app": app, "os": os, "Request": Request, "SessionMiddleware": SessionMiddleware}
    exec(lines, {**told, "user": SimpleNamespace(id=42)})
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://app"
    ) as browser:
        assert (await browser.post("/login")).status_code == 200
        cookies = dict(browser.cookies)
    for name, value in re.findall(r'(GATEWAY_\w+)="\$(\w+)"', exports):
        monkeypatch.setenv(name, os.environ[value])
    chain = authenticators(load({}))
    assert await chain.find(Caller({}, cookies)) == Finding("42")
    assert (await chain.find(Caller({}, {}))).subject is None


def test_every_setting_that_the_login_names_is_one() -> None:
    names = set(re.findall(r"GATEWAY_[A-Z_]*[A-Z]", LOGIN))
    assert names - {row.name for row in table()} == set()

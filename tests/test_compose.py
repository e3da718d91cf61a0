"""The composition: compose.yaml and Dockerfile, as far as they can be run without an engine."""

import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from gateway.config.settings import Settings, table
from tests.composition import (
    DOCKERFILE,
    FILE,
    HOME,
    Composition,
    composed,
    document,
    instruction,
    mounts,
    networks,
    port_of,
    services,
)
from tests.nginx import binary
from tests.support import ask, free_port, missing, read
from tests.test_browser import chromium

OURS = ("keys", "gateway", "upstream", "page")  # Whose image is built here.
SETTINGS = {row.name for row in table()}
OPEN = {"HTTPS_LISTEN": "0.0.0.0:443"}
SECRET = "a secret of an operator, long enough"
TEMPLATE = (HOME / "nginx" / "gateway.conf.template").read_text("utf-8")


def tool(name: str, *arguments: str) -> str:
    """Run a command of the dev extra; returns what it found wrong."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        missing(f"{name}, of the dev extra")
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


# What the files say


def test_the_composition_is_valid() -> None:
    assert tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)) == ""


def test_the_dockerfile_has_nothing_to_mend() -> None:
    assert tool("hadolint", str(HOME / "Dockerfile")) == ""


def test_the_image_names_the_packages_version() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_what_the_image_needs_is_let_through_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    ignored = (HOME / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(" ".join(copied).split())


def test_the_image_runs_as_a_number_and_gets_signals_itself() -> None:
    assert re.search(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    assert instruction("ENTRYPOINT") == ["gateway"]
    assert f"EXPOSE {port_of({})}\n" in DOCKERFILE


@pytest.mark.parametrize("name", services())
def test_no_container_can_become_more_than_it_is(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if name not in OURS:
        assert int(service["user"].partition(":")[0]) > 0


@pytest.mark.parametrize("name", services())
def test_every_container_says_how_it_is_and_keeps_its_log_short(name: str) -> None:
    service = services()[name]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    ends = service["restart"] == "no"
    assert service["healthcheck"] == {"disable": True} if ends else service["healthcheck"]["test"]


@pytest.mark.parametrize("name", services())
def test_every_mounted_file_is_there(name: str) -> None:
    volumes = document()["volumes"]
    for source, target in mounts(services()[name]):
        assert (HOME / source).is_file() if source.startswith(".") else source in volumes, target


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting(name: str) -> None:
    given = document()["services"][name].get("environment", {})
    assert {each for each in given if each.startswith("GATEWAY_")} <= SETTINGS


def test_every_variable_of_the_template_is_given() -> None:
    assert (
        set(re.findall(r"\$\{([A-Z_]+)\}", TEMPLATE)) <= services()["nginx"]["environment"].keys()
    )


def test_nginx_and_the_replicas_are_told_the_same() -> None:
    changed = dict.fromkeys(SETTINGS, "1")
    nginx, gateway = (services(**changed)[name]["environment"] for name in ("nginx", "gateway"))
    shared = {name for name in nginx if name in SETTINGS}
    assert shared
    assert {name: gateway[name] for name in shared} == {name: nginx[name] for name in shared}


def test_nginx_is_the_user_who_owns_the_key() -> None:
    assert f"USER {services()['nginx']['user']}\n" in DOCKERFILE


def test_foreign_images_are_of_a_stated_version_that_can_do_what_is_asked() -> None:
    images = {name: each["image"] for name, each in services().items() if "image" in each}
    versions = {
        name: tuple(map(int, each.split(":")[1].split("."))) for name, each in images.items()
    }
    assert versions.keys() == {"redis", "nginx"}
    assert versions["redis"] >= (7,)
    assert versions["nginx"] >= (1, 28), "`resolve` came with 1.27.3"


def test_what_stops_a_replica_waits_for_its_drain() -> None:
    gateway = services()["gateway"]
    drain = float(gateway["environment"]["GATEWAY_DRAIN"])
    assert float(gateway["stop_grace_period"].removesuffix("s")) >= drain + 10


def test_nginx_waits_longer_than_a_replica_is_silent() -> None:
    timeout = services()["nginx"]["environment"]["NGINX_READ_TIMEOUT"]
    assert float(timeout.removesuffix("s")) > float(Settings.model_fields["heartbeat"].default)


def test_nobody_but_nginx_is_reached_from_outside_and_that_from_this_machine() -> None:
    published = {name: each["ports"] for name, each in services().items() if "ports" in each}
    assert published == {"nginx": ["127.0.0.1:8443:8443"]}


def test_redis_is_reached_by_the_replicas_only() -> None:
    assert document()["networks"]["store"] == {"internal": True}
    assert networks(services()["redis"]) == {"store"}
    on_it = {name for name, each in services().items() if "store" in networks(each)}
    assert on_it == {"redis", "gateway"}


def test_the_page_never_gets_a_secret_of_the_operators() -> None:
    page = services(**dict.fromkeys(SETTINGS, SECRET), CONFIG_FILES="./config")["page"]
    given = {name for name, value in page["environment"].items() if value == SECRET}
    assert given == {"GATEWAY_PREFIX"}
    assert [source for source, _ in mounts(page)] == ["keys"]


def test_without_the_demo_there_is_neither_page_nor_pretend_upstream() -> None:
    count = {
        name: each.get("deploy", {}).get("replicas") for name, each in services(DEMO="0").items()
    }
    assert (count["page"], count["upstream"]) == ("0", "0")


# Secrets and certificate


def test_a_secret_and_a_certificate_are_made_once(tmp_path: Path) -> None:
    whole = Composition(tmp_path)
    made = []
    for _ in range(2):
        assert whole.make_keys().returncode == 0
        files = sorted((tmp_path / "volumes").rglob("*.*"))
        made.append({path.name: path.read_text("utf-8") for path in files})
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert made[0] == made[1]
    assert made[0].keys() == {"gateway.toml", "gateway.crt", "gateway.key"}
    assert re.fullmatch(r'secrets = "[0-9a-f]{64}"\n', made[0]["gateway.toml"])


def test_a_secret_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "volumes" / "keys" / "new").mkdir(parents=True)
    result = Composition(tmp_path).make_keys()
    assert result.returncode != 0
    assert "new" in result.stderr


def test_two_machines_make_two_secrets(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Composition(tmp_path / name).make_keys()
    one, two = (path.read_text("utf-8") for path in tmp_path.rglob("gateway.toml"))
    assert one != two


def test_others_are_let_in_only_with_a_secret_of_the_operators(tmp_path: Path) -> None:
    refused = Composition(tmp_path, **OPEN).make_keys()
    assert refused.returncode == 1
    assert refused.stderr.startswith("GATEWAY_SECRETS: missing")
    assert not list(tmp_path.rglob("*.*"))
    for given in ({"GATEWAY_SECRETS": SECRET}, {"CONFIG_FILES": "./config"}):
        assert Composition(tmp_path, **OPEN, **given).make_keys().returncode == 0


# The whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """The composition as it is without any .env, as processes."""
    with composed(tmp_path_factory.mktemp("composition")) as running:
        yield running


async def test_a_browser_gets_a_page_a_session_and_an_answer_over_https(whole: Composition) -> None:
    async with whole.client() as http:
        page = await http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "Secure" in page.headers["set-cookie"]
        assert (await http.get("/static/gateway.js")).status_code == 200
        body = ask(pretend={"tokens": 5, "interval": 0.01})
        answers = [await http.post("/tickets", json=body) for _ in range(6)]
        urls = [str(answer.json()["stream_url"]) for answer in answers]
        ends = [(await read(http, url)).end for url in urls]
        completion = (await http.get(urls[0].replace("/stream", "/completion"))).json()
    assert [(end["state"], end["attempts"]) for end in ends] == [("done", 1)] * 6
    assert completion["state"] == "done"


@pytest.mark.timeout(120)
async def test_the_page_works_in_a_real_browser(whole: Composition) -> None:
    async with chromium() as browser:
        page = await browser.new_page(ignore_https_errors=True)
        await page.goto(whole.url)
        await page.click("#ask")
        await page.wait_for_selector("#state[data-state=streaming]")
        await page.click("#cut")
        await page.wait_for_selector("#notice:has-text('This page cannot cut it')")
        await page.click("#second")
        await page.wait_for_selector("#state[data-state=done]")
        await page.wait_for_selector("#notice:has-text('0 lost, 0 twice')")
        await page.wait_for_selector("#state2:has-text('closed, same text')")


async def test_a_cookie_of_nobodys_is_refused(whole: Composition) -> None:
    async with whole.client() as http:
        answer = await http.post("/tickets", json=ask(), headers={"Cookie": "session=made-up"})
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_browsers_get_http_2(whole: Composition) -> None:
    context = whole.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", whole.ports["nginx"])) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert isinstance(secured, ssl.SSLSocket)
        assert secured.selected_alpn_protocol() == "h2"


def test_redis_keeps_what_it_is_given_and_throws_nothing_away(whole: Composition) -> None:
    words = [binary("redis-cli"), "-p", str(whole.ports["redis"]), "--json", "CONFIG", "GET"]
    said = subprocess.check_output([*words, "appendonly", "maxmemory-policy", "maxmemory"])
    assert json.loads(said) == {
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(512 << 20),
    }


@pytest.mark.parametrize("name", ["redis", "gateway", "nginx", "upstream", "page"])
def test_a_health_check_tells_what_serves_from_what_does_not(whole: Composition, name: str) -> None:
    assert whole.healthy(name, whole.ports[name])
    assert not whole.healthy(name, free_port())


def test_the_images_own_health_check_does_so_too(whole: Composition) -> None:
    test = ["CMD", *instruction("HEALTHCHECK")]
    assert whole.healthy("gateway", whole.ports["gateway"], test)
    assert not whole.healthy("gateway", free_port(), test)


def test_a_replica_that_is_alive_but_not_ready_is_not_healthy(whole: Composition) -> None:
    alive = whole.ports["upstream"]  # It has /healthz, and no /readyz.
    assert whole.healthy("upstream", alive)
    assert not whole.healthy("gateway", alive)


def test_the_image_is_healthy_though_redis_is_away(whole: Composition) -> None:
    """Where the unhealthy are killed, an outage that replicas go through would take them along."""
    alive = whole.ports["upstream"]
    assert whole.healthy("gateway", alive, ["CMD", *instruction("HEALTHCHECK")])


async def test_no_ticket_is_in_what_nginx_writes(whole: Composition) -> None:
    async with whole.client() as http:
        await http.get("/")
        answer = await http.post("/tickets", json=ask(pretend={"tokens": 1, "interval": 0}))
        ticket = answer.json()["ticket"]
        assert (await read(http, answer.json()["stream_url"])).end
    written = "".join(path.read_text("utf-8") for path in whole.logs.iterdir())
    assert '"GET /stream HTTP' in written
    assert ticket not in written


async def test_the_page_lets_nobody_in_where_the_operator_gave_a_secret(tmp_path: Path) -> None:
    with composed(tmp_path, GATEWAY_SECRETS=SECRET, REPLICAS="1") as running:
        async with running.client() as http:
            assert "set-cookie" in (await http.get("/")).headers
            assert (await http.post("/tickets", json=ask())).status_code == 401

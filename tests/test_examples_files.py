"""Examples as files: what their composes, requirements and READMEs say, and the one command."""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from examples import processes
from examples.__main__ import main
from examples.composition import HOME, NAMES, Service, document, mounts, services
from gateway.config.settings import table
from tests import composition as whole
from tests.support import ask, missing
from tests.test_compose import tool

SECRET = "0123456789abcdef" * 2
FILES = [HOME / "common.yaml", *(HOME / name / "compose.yaml" for name in NAMES)]
EACH = [(name, each) for name in NAMES for each in services(name, {"SECRET": SECRET})]


def service(name: str, which: str, **variables: str) -> Service:
    """Return one of an example's services."""
    return services(name, {"SECRET": SECRET, **variables})[which]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_composition_is_valid_and_is_read_as_compose_reads_it(file: Path) -> None:
    assert tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)) == ""
    assert document(file) == YAML(typ="safe", pure=True).load(file.read_text("utf-8"))


def test_the_dockerfile_has_nothing_to_mend() -> None:
    assert tool("hadolint", str(HOME / "Dockerfile")) == ""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_starts_without_a_secret(name: str) -> None:
    with pytest.raises(KeyError, match="SECRET: missing"):
        services(name, {})


@pytest.mark.parametrize(("name", "which"), EACH)
def test_no_container_can_become_more_than_it_is(name: str, which: str) -> None:
    found = service(name, which)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "build" in found or int(found["user"].partition(":")[0]) > 0


@pytest.mark.parametrize(("name", "which"), EACH)
def test_what_a_container_needs_is_there(name: str, which: str) -> None:
    found = service(name, which)
    assert [str(source) for source, _ in mounts(found) if not source.exists()] == []
    assert set(found.get("depends_on", [])) <= services(name, {"SECRET": SECRET}).keys()
    assert (
        set(found.get("networks", [])) <= document(HOME / name / "compose.yaml")["networks"].keys()
    )
    if "image" in found:
        assert found["image"] == whole.services()[which]["image"]
    elif found["build"] != "..":
        files = [found["build"]["dockerfile"], "requirements.txt"]
        assert [each for each in files if not (HOME / name / each).is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_only_nginx_is_reached_and_that_from_this_machine(name: str) -> None:
    published = {
        each: found["ports"]
        for each, found in services(name, {"SECRET": SECRET}).items()
        if "ports" in found
    }
    assert published == {"nginx": ["127.0.0.1:8080:8080"]}


@pytest.mark.parametrize("name", NAMES)
def test_redis_is_reached_by_the_gateway_only(name: str) -> None:
    assert document(HOME / name / "compose.yaml")["networks"]["store"] == {"internal": True}
    on_it = {
        each
        for each, found in services(name, {"SECRET": SECRET}).items()
        if "store" in found.get("networks", [])
    }
    assert on_it == {"gateway", "redis"}
    assert service(name, "redis")["networks"] == ["store"]


def test_who_may_name_the_user_is_nginx_alone() -> None:
    (config,) = document(HOME / "proxy" / "compose.yaml")["networks"]["front"]["ipam"]["config"]
    trusted = service("proxy", "gateway")["environment"]["GATEWAY_TRUSTED_PROXIES"]
    assert trusted.split(",") == ["127.0.0.1", config["subnet"]]
    everything = services("proxy", {"SECRET": SECRET})
    on = {name: set(found.get("networks", ["default"])) for name, found in everything.items()}
    assert {name for name, networks in on.items() if "front" in networks} == {"gateway", "nginx"}
    # So nginx comes to the gateway by no other way, and nobody else has the addresses that count.
    assert on["gateway"] & on["nginx"] == {"front"}


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_of_the_gateways_is_a_setting(name: str) -> None:
    given = service(name, "gateway")["environment"].keys()
    assert {each for each in given if each.startswith("GATEWAY_")} <= {row.name for row in table()}


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_of_the_template_is_given(name: str) -> None:
    text = (HOME.parent / "nginx" / "gateway.conf.template").read_text("utf-8")
    given = service(name, "nginx")["environment"]
    assert set(re.findall(r"\$\{([A-Z_]+)\}", text)) <= given.keys()


@pytest.mark.parametrize("name", NAMES)
def test_no_app_is_told_a_callers_own_word_on_where_it_comes_from(name: str) -> None:
    """One proxy_set_header takes the place of all that the server has."""
    rest = service(name, "nginx")["environment"]["NGINX_REST"]
    named = set(re.findall(r"proxy_set_header (\S+)", rest))
    whole = {"Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"}
    assert not named or whole <= named


@pytest.mark.parametrize("name", [each for each in NAMES if each != "on_behalf"])
def test_another_model_is_named_by_two_variables(name: str) -> None:
    more = {"GATEWAY_UPSTREAM_URL": "https://llm.example/v1", "GATEWAY_UPSTREAM_API_KEY": "sk-1"}
    given = service(name, "gateway", **more)["environment"]
    assert more.items() <= given.items()


def test_what_the_apps_need_comes_with_the_extras() -> None:
    project = tomllib.loads((HOME.parent / "pyproject.toml").read_text("utf-8"))["project"]
    lines = {
        line
        for file in HOME.glob("*/requirements.txt")
        for line in file.read_text("utf-8").splitlines()
    }
    with_gateway = {each.replace("[standard]", "") for each in project["dependencies"]}
    extras = project["optional-dependencies"]
    assert lines <= {*extras["examples"], *with_gateway}
    assert set(extras["examples"]) <= {*extras["dev"]}


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_told_and_tells_its_command(name: str) -> None:
    assert f"[`{name}`]({name}/" in (HOME / "README.md").read_text("utf-8")
    text = (HOME / name / "README.md").read_text("utf-8")
    assert f"python -m examples {name}" in text
    assert len(text.splitlines()) <= 25


# The command


def test_one_command_runs_an_example_until_ctrl_c() -> None:
    if lacking := processes.missing():
        missing(lacking)
    command = [sys.executable, "-m", "examples", "guest"]
    given: dict[str, Any] = {"env": {**os.environ, "PORT": "0"}, "cwd": HOME.parent}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **given) as running:
        assert running.stdout is not None
        (url,) = re.findall(r"http://\S+", running.stdout.readline())
        with httpx.Client(base_url=url, trust_env=False) as http:
            assert 'id="ask"' in http.get("/").text
            made = http.post("/tickets", json=ask(), headers={"Origin": url})
            with http.stream("GET", made.json()["stream_url"]) as answer:
                assert any(line.startswith("data: ") for line in answer.iter_lines())
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0))


def test_a_port_that_is_taken_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        assert main("guest") == 1
    said = f"guest: http://localhost:{port}: Address already in use; PORT=… takes another\n"
    assert capsys.readouterr().err == said


def test_an_empty_secret_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET", "")
    assert main("guest") == 1
    assert capsys.readouterr().err == "guest: SECRET: missing; see README.md\n"


def test_what_is_no_example_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("rails") == 2
    assert capsys.readouterr().err.startswith(f"python -m examples {NAMES[0]}|")

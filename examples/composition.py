"""Composition: what the compose.yaml of an example says, as `docker compose config` would say it.

Of Compose's language this knows what the examples use: `extends` with a file, `env_file`, and
`${NAME:-default}`, `${NAME:?reason}` and `$$`.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HOME = Path(__file__).parent
NAMES = sorted(path.parent.name for path in HOME.glob("*/compose.yaml"))

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<how>:[-?])(?P<rest>[^}]*)\})")

Service = dict[str, Any]


def services(name: str, variables: Mapping[str, str]) -> dict[str, Service]:
    """Return an example's services, paths whole. Raises KeyError where a variable is missing."""
    file = HOME / name / "compose.yaml"
    return {each: _service(file, each, variables) for each in document(file)["services"]}


def document(file: Path) -> dict[str, Any]:
    """Return a file as it stands there."""
    return dict(yaml.safe_load(file.read_text("utf-8")))


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a part of a file with its variables filled in."""
    if isinstance(value, dict):
        return {name: filled(each, variables) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda found: _value(found, variables), value)


def environment(folder: Path, service: Service, variables: Mapping[str, str]) -> dict[str, str]:
    """Return what a service's containers get; `folder` is that of its file."""
    given: dict[str, str] = {}
    if "env_file" in service:
        for line in (folder / service["env_file"]).read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                given[name] = "".join(shlex.split(value))
    for name, value in service.get("environment", {}).items():
        if value is not None:
            given[name] = str(value)
        elif name in variables:  # A name without a value is passed on if it is set.
            given[name] = variables[name]
    return given


def mounts(service: Service) -> Iterator[tuple[Path, str]]:
    """Yield source and target of each file that is mounted."""
    for volume in service["volumes"]:
        source, target, *_ = volume.split(":")
        yield Path(source), target


def _service(file: Path, name: str, variables: Mapping[str, str]) -> Service:
    own = {**filled(document(file)["services"][name], variables)}
    base: Service = {}
    if extends := own.pop("extends", None):
        base = _service((file.parent / extends["file"]).resolve(), extends["service"], variables)
    own["volumes"] = [_whole(file.parent, each) for each in own.get("volumes", [])]
    merged = {**base, **own, "volumes": [*base.get("volumes", []), *own["volumes"]]}
    given = environment(file.parent, own, variables)
    return {**merged, "environment": {**base.get("environment", {}), **given}}


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name = found["name"]
    if name is None:
        return "$"
    if found["how"] == ":?" and not variables.get(name):
        raise KeyError(f"{name}: missing; {found['rest']}")
    return variables.get(name) or found["rest"]


def _whole(folder: Path, volume: str) -> str:
    source, _, target = volume.partition(":")
    return f"{(folder / source).resolve()}:{target}"

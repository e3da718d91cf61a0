"""Secrets: secrets that are kept in files of their own, as Docker and Kubernetes mount them.

What is given as a flag shows in the list of processes, and a variable in what describes a
container. So each secret has a second name, with `_file`, that says where it is; both together are
given nowhere, but the nearer source wins as with any setting.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from gateway.config.lists import meant_as_json
from gateway.errors import SettingsError

FILE = "_file"
SECRET = ("redis_url", "secrets", "upstream_api_key", "cookie_secrets", "service_tokens")
LISTS = frozenset(
    ("secrets", "cookie_secrets", "service_tokens")
)  # One a line, if they are not in one with commas or in a JSON list.

OF_PRESET = ("api_key", "webhook_secret")

_LARGEST = 64 * 1024
_TOKEN = 16  # Characters of a service token at least.
_SENT = re.compile(r"[A-Za-z0-9._~+/=-]+")  # What may follow "Bearer" (RFC 6750 §2.1).


def mounted(
    layers: Sequence[Mapping[str, Any]], label: str = "", held: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the settings that files hold; `layers` are the sources, the nearest one first.

    What is `held` by name is not read.

    Raises SettingsError, which names the file's setting behind a label.
    """
    found: dict[str, str] = {}
    for name in SECRET:
        for layer in layers:
            if name in layer and name + FILE in layer:
                names = f"{label}{name.upper()} and {label}{(name + FILE).upper()}"
                raise SettingsError(f"{names}: both are given; leave one of them out")
            if name + FILE in layer:
                told = f"{label}{(name + FILE).upper()}"
                known = held.get(name) if held else None
                found[name] = known or secret_in(layer[name + FILE], told, lines=name in LISTS)
            if name in layer or name in found:
                break
    return found


def secret_in(path: Any, told: str, *, lines: bool = False) -> str:
    """Return what a file holds, without the newline at its end; raises SettingsError."""
    if not isinstance(path, str) or not path:
        raise SettingsError(f"{told}: must be the path of a file")
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1).decode("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise SettingsError(f"{told}: cannot read {path}: {why}") from None
    if not text:
        raise SettingsError(f"{told}: {path} is empty")
    if len(text) > _LARGEST:
        raise SettingsError(f"{told}: {path} is too large to be a secret")
    if lines and meant_as_json(text):
        return text
    parts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(parts) > 1 and not lines:
        raise SettingsError(f"{told}: {path} has more than one line")
    return ",".join(parts)


def tokens(values: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Return service tokens; raises ValueError, which quotes none, if one could be guessed."""
    for number, value in enumerate(values, 1):
        token = value.get_secret_value()
        if len(token) < _TOKEN or not _SENT.fullmatch(token):
            what = f"of {_TOKEN} or more letters, digits and -._~+/="
            raise ValueError(f"number {number} is none; each must be {what}")
    return values


def with_keys(presets: Any, environment: Mapping[str, str], label: str = "") -> Any:
    """Return the tables of presets with the secrets that their `…_file` and `…_env` name.

    Raises SettingsError, which names the table behind a label, with a line for each that is wrong.
    """
    if not isinstance(presets, dict):
        return presets
    filled, faults = {}, []
    for name, table in presets.items():
        try:
            filled[name] = _with_keys(f"{label}presets.{name}", table, environment)
        except SettingsError as error:
            faults.append(str(error))
    if faults:
        raise SettingsError("\n".join(faults))
    return filled


def _with_keys(told: str, table: Any, environment: Mapping[str, str]) -> Any:
    if not isinstance(table, dict):
        return table
    for key in OF_PRESET:
        table = _with_key(key, told, table, environment)
    return table


def _with_key(
    key: str, told: str, table: dict[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    in_file, in_environment = f"{key}_file", f"{key}_env"
    ways = [way for way in (key, in_file, in_environment) if way in table]
    if len(ways) > 1:
        raise SettingsError(f"{told}: {' and '.join(ways)} are given; leave all but one out")
    rest = {name: value for name, value in table.items() if name not in ways}
    if ways == [in_file]:
        return {**rest, key: secret_in(table[in_file], f"{told}.{in_file}")}
    if ways == [in_environment]:
        value = environment.get(str(table[in_environment]), "").strip()
        if not value:
            words = "there is no such variable, or it is empty"
            raise SettingsError(f"{told}.{in_environment}: {words}")
        return {**rest, key: value}
    return table

"""Faults: each has a line of its own, with the file, the table, the key and why."""

from pathlib import Path

import pytest

from gateway.config.settings import load
from gateway.errors import SettingsError

URL = 'url = "http://u/v1/chat/completions"\n'
TALK = f"""[presets.talk]
{URL}template = [{{role = "user", content = "${{message}}"}}]
variables.message = {{max_chars = 5}}
"""


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)


def faults(folder: Path, text: str) -> list[str]:
    """Return what is said of a file, without its path."""
    path = folder / "presets.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(SettingsError) as caught:
        load({"secrets": "x" * 20, "config": str(path)})
    lines = str(caught.value).splitlines()
    assert all(line.startswith((f"{path}: presets.", "GATEWAY_")) for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TALK.replace("${message}", "${message} ${who}"), "template: ${who} is no variable of it"),
        (TALK.replace("${message}", "Hello"), "variables.message: the template does not name it"),
        (TALK + "variables.message.choises = {}", "is no setting; did you mean choices?"),
        (TALK.replace("variables.", "varables."), "is no setting; did you mean variables?"),
        (TALK + 'fields = ["message"]', "variables.message: a field has this name"),
        (TALK + "force = {messages = []}", "force.messages: it would take the place of"),
        (TALK.replace("/chat/", "/"), "template: /v1/completions takes a prompt, no messages"),
        (TALK + "max_output_tokens = 0", "max_output_tokens: must be greater than"),
        (TALK + 'max_output_tokens = "80"', "max_output_tokens: must be a valid integer"),
        (TALK + "max_chars = true", "max_chars: must be a valid integer"),
        (TALK + 'models = ["a"]\nforce.model = "b"', "force.model: it is not among the models"),
        (TALK + 'fallback = "spare"', "fallback: must be a list, as […]"),
        (TALK + 'models = "gpt-5"', "models: must be a list, as […]"),
        (TALK + "price = 3", "price: must be a table, as {name = …}"),
        (TALK + "price = {prompt = 3}", "price.completion: is missing"),
        (
            TALK + "price = {prompt = 3, completion = 3, output = 4}",
            "price.output is no setting; there are prompt, completion, cached",
        ),
        (TALK + 'public = "maybe"', "public: must be a valid boolean"),
        (
            TALK.replace("/v1/chat/completions", "/api/generate") + 'protocol = "ollama"',
            "template: /api/generate takes a prompt, no messages",
        ),
        (
            TALK.replace('"${message}"', '[{text = "${message}"}]') + 'protocol = "gemini"',
            "template: what Gemini calls content is in `parts`",
        ),
    ],
)
def test_what_is_wrong_with_a_preset_is_told_by_its_place(
    text: str, expected: str, tmp_path: Path
) -> None:
    if "choises" in text:
        text = text.replace("variables.message = {max_chars = 5}\n", "")
    (told,) = [each for each in faults(tmp_path, text) if expected in each]
    assert told.startswith("presets.talk.")


def test_a_system_prompt_needs_a_place(tmp_path: Path) -> None:
    text = '[presets.old]\nurl = "http://u/v1/completions"\nsystem = "House rules."\n'
    assert faults(tmp_path, text) == [
        "presets.old.system: /v1/completions takes a prompt, no messages"
    ]


def test_all_that_is_wrong_is_told_at_once_and_no_prompt_is_shown(tmp_path: Path) -> None:
    text = f"""drain = -1
[presets.a]
{URL}stall = -1
modles = []
[presets.b]
{URL}template = [{{role = "user", content = "secret ${{x}} ${{y}}"}}]
variables.z = {{}}
"""
    told = faults(tmp_path, text)
    assert [each.split(": ")[0].split(" ")[0] for each in told] == [
        *("GATEWAY_DRAIN", "presets.a.stall", "presets.a.modles"),
        *("presets.b.template", "presets.b.template", "presets.b.variables.z"),
    ]
    assert "secret" not in str(told)


def test_every_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        f'[presets.a]\n{URL}api_key_env = "NO_SUCH_KEY"\n[presets.b]\n{URL}api_key_file = "/no"',
    )
    assert [each.split(": ")[0] for each in told] == [
        *("presets.a.api_key_env", "presets.b.api_key_file"),
    ]


def test_presets_without_a_place_to_ask_are_all_named(tmp_path: Path) -> None:
    text = '[presets.a]\n[presets.b]\n[presets.c]\nurl = "ftp://u/"'
    told = faults(tmp_path, text)
    assert [each.split(": ")[0] for each in told] == ["presets.a", "presets.b", "presets.c.url"]

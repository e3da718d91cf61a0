"""The preset book: what a reload changes, what it does not, and what it says of both."""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.config import preset_book
from gateway.config.preset_book import PresetBook
from gateway.config.settings import load, table

FIRST = """
upstream_url = "http://u/v1"
[presets.p]
url = "http://p/"
stall = 20
grace = 20
max_run = 100
[presets.gone]
"""
SECOND = """
upstream_url = "http://u/v1"
[presets.p]
url = "http://new/"
stall = 2
grace = 40
max_run = 50
[presets.more]
models = ["small"]
"""

Write = Callable[[str], None]
Reload = Callable[[], Any]


class Scene:
    """A file, the settings read from it at the start, and its presets."""

    def __init__(self, path: Path, text: str, **flags: Any) -> None:
        self.path = path
        self.write(text)
        self._flags = {"config": str(path), **flags}
        self.book = PresetBook(load(self._flags))

    def write(self, text: str) -> None:
        """Change the file."""
        self.path.write_text(text, "utf-8")

    async def reload(self, text: str) -> None:
        """Change the file, and have it read again."""
        self.write(text)
        await self.book.reload(partial(load, self._flags))

    def url(self, name: str) -> str | None:
        """Return where a preset leads, None if there is none."""
        preset = self.book.get(name)
        return preset.url if preset else None


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in table():
        monkeypatch.delenv(row.name, raising=False)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "gateway.toml", FIRST)


async def test_a_reload_adds_changes_and_takes_away_and_says_which(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(map(scene.url, ("p", "gone", "more"))) == ["http://p/", "http://u/v1", None]
    await scene.reload(SECOND)
    assert list(map(scene.url, ("p", "gone", "more"))) == ["http://new/", None, "http://u/v1"]
    assert caplog.messages == [
        "SIGHUP: the presets were read again: new more; changed p; gone gone"
    ]


async def test_who_has_a_preset_keeps_it_as_it_was(scene: Scene) -> None:
    before = scene.book.get("p")
    await scene.reload(SECOND)
    assert before is not None
    assert (before.url, before.stall) == ("http://p/", 20)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[presets.p", "GATEWAY_CONFIG: cannot read"),
        ("x = " + "[" * 5000, "GATEWAY_CONFIG: cannot read"),
        ("\0", "GATEWAY_CONFIG: cannot read"),
        ('[presets.p]\nurl = "http://p/"\nmodles = []', "presets.p.modles is no setting"),
        ('[presets.p]\nurl = "nowhere"', "presets.p.url: must start with http"),
        (
            '[presets.p]\nurl = "http://p/"\nprice = {prompt = -1, completion = 1}',
            "presets.p.price",
        ),
        ('presets = "none"', "presets"),
        ('[presets.p]\nurl = "http://p/"\napi_key_env = "NO_SUCH_KEY"', "presets.p.api_key_env"),
        ('stall = 3\n[presets.p]\nurl = "http://p/"', "stall is no setting"),
    ],
)
async def test_a_wrong_file_keeps_the_old_presets_and_says_so_in_one_line(
    scene: Scene, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    await scene.reload(text)
    (line,) = caplog.messages
    assert line.startswith("SIGHUP: the presets stay as they were: ")
    assert why in line
    assert "\n" not in line
    assert (scene.url("p"), scene.url("gone")) == ("http://p/", "http://u/v1")
    await scene.reload(SECOND)
    assert scene.url("p") == "http://new/"


async def test_a_file_that_is_gone_keeps_the_old_presets(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.path.unlink()
    await scene.book.reload(partial(load, {"config": str(scene.path)}))
    assert "cannot read" in caplog.messages[0]
    assert scene.url("p") == "http://p/"


async def test_what_else_has_changed_waits_for_a_restart_and_is_named(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.reload("grace = 7\nlog_ttl = 9\n" + SECOND.replace("http://u/v1", "http://other/"))
    assert scene.url("more") == "http://u/v1"
    assert "changed too, and needs a restart: " in caplog.messages[1]
    assert caplog.messages[1].partition("restart: ")[2].split(", ") == [
        *("GATEWAY_UPSTREAM_URL", "GATEWAY_LOG_TTL", "GATEWAY_GRACE")
    ]


async def test_a_preset_cannot_lean_on_a_url_that_waits_for_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path / "gateway.toml", '[presets.p]\nurl = "http://p/"')
    await scene.reload('upstream_url = "http://u/v1"\n[presets.q]\n')
    assert "presets.q: no url" in caplog.messages[0]
    assert (scene.url("p"), scene.url("q")) == ("http://p/", None)


async def test_a_changed_key_is_taken_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-old-and-secret")
    text = f'[presets.p]\nurl = "http://p/"\napi_key_file = "{key}"'
    scene = Scene(tmp_path / "gateway.toml", text)
    key.write_text("sk-new-and-secret")
    await scene.reload(text)
    preset = scene.book.get("p")
    assert preset is not None
    assert preset.api_key.get_secret_value() == "sk-new-and-secret"
    assert caplog.messages == ["SIGHUP: the presets were read again: changed p"]


async def test_a_secrets_file_that_could_be_read_once_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-long-secret-of-the-tests")
    scene = Scene(tmp_path / "gateway.toml", FIRST, secrets_file=str(secret))
    secret.unlink()
    await scene.reload(SECOND)
    assert scene.url("p") == "http://new/"
    assert len(caplog.messages) == 1


async def test_a_file_that_nobody_writes_to_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preset_book, "_PATIENCE", 0.2)
    scene = Scene(tmp_path / "gateway.toml", FIRST)
    scene.path.unlink()
    os.mkfifo(scene.path)
    await asyncio.wait_for(scene.book.reload(partial(load, {"config": str(scene.path)})), 20)
    assert caplog.messages == [
        "SIGHUP: the presets stay as they were: the file is not read within 0.2 s"
    ]
    assert scene.url("p") == "http://p/"
    os.close(os.open(scene.path, os.O_WRONLY | os.O_NONBLOCK))  # The thread ends.


async def test_without_a_file_there_is_nothing_to_reload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    book = PresetBook(load({"upstream_url": "http://u/v1"}))
    await book.reload(partial(load, {}))
    assert "no file to read again" in caplog.messages[0]
    assert book.get("default") is not None


async def test_what_is_kept_for_all_runs_holds_for_those_of_before_and_after(scene: Scene) -> None:
    def bounds() -> tuple[float, float, float]:
        return scene.book.longest_run, scene.book.shortest_grace, scene.book.shortest_wait

    assert bounds() == (600, 20, 20)
    await scene.reload(SECOND)
    assert bounds() == (600, 20, 2)
    await scene.reload(SECOND.replace("max_run = 50", "max_run = 700"))
    assert bounds() == (700, 20, 2)

"""clients/js: the folder that npm packs, and the types that it brings."""

import json
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from gateway.demo.page import STATIC
from tests.clients import node_modules

HOME = Path(__file__).parent.parent
PACKAGE = HOME / "clients" / "js"
MODULES = ("gateway.js", "gateway.d.ts")

SAMPLE = """
import { complete, follow, listen, Refusal, resume, settings } from "sse-ticket-gateway";
import { useCompletion } from "sse-ticket-gateway/react";

settings.heartbeat = 5;
const answer = resume("draft") ?? complete({ messages: [] }, { key: "draft", discard() {} });
try {
  for await (const piece of answer) document.body.append(piece.toUpperCase());
  const spent: number | null | undefined = answer.end?.tokens?.completion;
  console.log(spent, answer.text.length);
} catch (error) {
  if (error instanceof Refusal && error.state === "truncated") console.log(error.code);
}
const { close } = follow("/stream?ticket=T", { end: ({ state }) => console.log(state === "done") });
listen({ message: (data, name) => console.log(data.length, name), missed: close }).close();
const { text, state, error, ask, stop } = useCompletion({ key: "draft" });
ask({ messages: [] }).then(stop, () => console.log(text.length, state === "idle", error?.message));
// @ts-expect-error: no body is a string.
complete("no object");
// @ts-expect-error: no state of this name.
follow("/stream?ticket=T", { end: ({ state }) => console.log(state === "finished") });
"""
OPTIONS = ["--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, packed there; returns the archive."""
    node_modules()  # There is npm, or the test is none.
    copy = tmp_path_factory.mktemp("npm")
    for part in ("clients/js", "gateway/demo/static"):
        shutil.copytree(HOME / part, copy / part)
    shutil.copy(HOME / "LICENSE", copy)
    folder = copy / "clients" / "js"
    command = ["npm", "pack", "--json"]
    told = subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=50)
    name = str(json.loads(told.stdout)[0]["filename"])
    left = {each.name for each in folder.iterdir()} - {name}
    assert left == {each.name for each in PACKAGE.iterdir()}
    return folder / name


def test_the_package_has_the_module_itself_and_nothing_that_it_does_not_need(packed: Path) -> None:
    with tarfile.open(packed) as archive:
        files = {each.name.removeprefix("package/"): each for each in archive}
        assert files.keys() == {
            *(*MODULES, "react.js", "react.d.ts"),
            *("LICENSE", "README.md", "package.json"),
        }
        for name in MODULES:
            content = archive.extractfile(files[name])
            assert content is not None
            assert content.read() == (STATIC / name).read_bytes()


def test_the_package_has_the_projects_version_and_names_only_what_is_there(packed: Path) -> None:
    told = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    project = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]
    assert (told["name"], told["version"]) == (project["name"], project["version"])
    assert told["license"] == project["license"]
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    for entry in told["exports"].values():
        assert {f"package/{each.removeprefix('./')}" for each in entry.values()} <= set(names)


def test_the_types_are_right_for_who_uses_the_package(packed: Path, tmp_path: Path) -> None:
    modules = node_modules()
    installed = tmp_path / "node_modules" / "sse-ticket-gateway"
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    installed.parent.mkdir()
    (tmp_path / "package").rename(installed)
    (tmp_path / "sample.ts").write_text(SAMPLE, "utf-8")
    checked = subprocess.run(
        [modules / ".bin" / "tsc", "--noEmit", *OPTIONS, "--lib", "es2022,dom", "sample.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert checked.stdout == ""
    assert checked.returncode == 0

"""The decisions and what contributors are told: the tests, mutants and scripts they name exist."""

import re
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS

HOME = Path(__file__).parent.parent
DECISIONS = sorted((HOME / "docs" / "decisions").glob("*.md"))
PAGES = [HOME / "SECURITY.md", HOME / "CONTRIBUTING.md", *DECISIONS]
TESTS = {
    name
    for path in (HOME / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@every_page
def test_every_test_that_is_named_is_there(path: Path) -> None:
    named = re.findall(r"`(test_\w+)(…?)`", path.read_text("utf-8"))
    missing = [
        name
        for name, more in named
        if not (any(each.startswith(name) for each in TESTS) if more else name in TESTS)
    ]
    assert missing == []


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name)
def test_every_way_of_breaking_the_code_is_a_mutant(path: Path) -> None:
    lists = re.findall(r"[Bb]reaking the code on purpose: (.*?)\.(?: |$)", path.read_text("utf-8"))
    assert set(re.findall(r"`(\w+)`", " ".join(lists))) <= set(MUTANTS)


@every_page
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^):#]+)[^)]*\)", path.read_text("utf-8"))
    assert [each for each in links if not (path.parent / each).exists()] == []


def test_every_decision_is_listed() -> None:
    listed = re.findall(r"\]\(([^)]+\.md)\)", DECISIONS[0].read_text("utf-8"))
    assert DECISIONS[0].name == "README.md"
    assert sorted(listed) == [each.name for each in DECISIONS[1:]]


def test_contributors_are_told_of_every_script_they_may_run() -> None:
    told = re.findall(r"^\| `(scripts/\w+)` \|", PAGES[1].read_text("utf-8"), re.MULTILINE)
    there = {f"scripts/{each.name}" for each in (HOME / "scripts").iterdir()}
    assert set(told) == there - {"scripts/keys"}  # That is the composition's.

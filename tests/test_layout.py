"""The layout: floors, fences and budgets, read from the source (DESIGN §7)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

HOME = Path(gateway.__file__).parent
TESTS = Path(__file__).parent

# From the ground up. A module imports its own floor and those below.
FLOORS: dict[str, set[str]] = {
    "pure": {
        "errors",
        "sse",
        "tickets",
        "presets",
        "mounts",
        "settings",
        "origins",
        "mount",
        "positions",
        "chat",
        "complaints",
        "usage",
        "heads",
        "tasks",
        "body",
    },
    "state": {
        *("outage", "address", "line", "node", "route", "cluster", "store"),
        *("majority", "presence", "records", "memory", "limits", "headroom"),
        *("beat", "eventlog", "repeats", "rehearsal", "crew", "writer", "reader", "pages"),
        *("tail", "viewer", "follower", "tails"),
    },
    "upstream": {
        *("upstream", "answers", "transport", "connection", "codings", "failures", "words"),
    },
    "run": {
        *("endings", "snapshot", "runs", "grace", "inbox", "takeover", "replica"),
        *("ownership", "suspects", "claims"),
    },
    "web": {"cookies", "threads", "auth", "requests", "responses", "endpoint", "routes"},
    "program": {
        *(
            "app",
            "check",
            "workers",
            "debts",
            "compact",
            "http10",
            "protocol",
            "server",
            "cli",
            "demo",
            "page",
        ),
        "__main__",
    },
}

# Who may import what somebody else wrote; what is in no fence may be imported by nobody.
FENCES: dict[str, set[str]] = {
    "redis": {"outage", "address", "store", "line", "node", "route", "cluster"},
    "fakeredis": {"address"},
    "hiredis": {"line"},
    "httpx": {"upstream", "answers", "transport", "connection", "codings", "failures"},
    "httptools": {"connection", "protocol"},
    "itsdangerous": {"tickets", "auth"},
    "pydantic": {"settings", "presets"},
    "pydantic_core": {"settings"},
    "pydantic_settings": {"settings"},
    "starlette": {
        *(
            "requests",
            "responses",
            "endpoint",
            "routes",
            "app",
            "demo",
            "page",
            "http10",
            "server",
            "cli",
        ),
    },
    "uvicorn": {"server", "protocol", "http10"},
    "click": {"cli"},
}
STANDARD = sys.stdlib_module_names

# Modules whose promises are kept by a test of another name.
TESTED_IN = {
    "address": "store",
    "__init__": "cli",
    "__main__": "cli",
    "chat": "upstream",
    "codings": "answers",
    "connection": "transport",
    "debts": "protocol",
    "compact": "protocol",
    "http10": "protocol",
    "complaints": "chat_shapes",
    "usage": "chat_shapes",
    "heads": "transport",
    "endings": "runs",
    "endpoint": "routes",
    "failures": "upstream",
    "snapshot": "runs",
    "tasks": "replica",
    "app": "routes",
    "crew": "cluster",
    "follower": "tail",
    "grace": "cancellation",
    "headroom": "limits",
    "inbox": "cancellation",
    "line": "store",
    "outage": "store",
    "rehearsal": "check",
    "majority": "beat",
    "memory": "beat",
    "mounts": "settings",
    "node": "store",
    "ownership": "replica",
    "presence": "records",
    "pages": "tail",
    "positions": "eventlog",
    "reader": "eventlog",
    "requests": "responses",
    "route": "cluster",
    "claims": "replica",
    "suspects": "takeover",
    "tails": "tail",
    "threads": "auth",
    "viewer": "tail",
    "server": "cli",
    "writer": "eventlog",
}

LINES = 350  # Of a module.
FUNCTION_LINES = 60
PARAMETERS = 7
BY_POSITION = 7  # Of more than four parameters; what a constructor joins is told by its type.

MODULES = {path.stem: path for path in sorted(HOME.glob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
SCRIPTS = {path.name: path for path in sorted((HOME / "lua").glob("*.lua"))}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def imports(name: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "gateway":
                yield from (f"gateway.{alias.name}" for alias in node.names)


def ours(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = {each.split(".")[1] for each in imports(name) if each.startswith("gateway.")}
    return found & MODULES.keys()


def floor(name: str) -> int:
    """Return the number of a module's floor."""
    return next(number for number, names in enumerate(FLOORS.values()) if name in names)


def functions(name: str) -> Iterator[Function]:
    """Yield a module's functions and methods, nested ones too."""
    yield from (node for node in ast.walk(TREES[name]) if isinstance(node, Function))


def parameters(function: Function) -> tuple[list[str], list[str]]:
    """Return the names of what is given by position and of what is given by name."""
    given = function.args
    by_position = [each.arg for each in [*given.posonlyargs, *given.args]]
    if by_position[:1] in (["self"], ["cls"]):
        by_position = by_position[1:]
    return by_position, [each.arg for each in given.kwonlyargs]


def is_command(function: Function) -> bool:
    """Whether click calls it, always by name."""
    return any(".command" in ast.unparse(each) for each in function.decorator_list)


every_module = pytest.mark.parametrize("name", MODULES)


def test_every_module_is_on_one_floor() -> None:
    named = [name for names in FLOORS.values() for name in names]
    assert sorted(named) == sorted(MODULES.keys() - {"__init__"})


@every_module
def test_imports_never_run_upwards(name: str) -> None:
    if name == "__init__":
        assert ours(name) == set()
    else:
        assert {each for each in ours(name) if floor(each) > floor(name)} == set()


def test_imports_run_in_no_circle() -> None:
    left = {name: ours(name) for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


@every_module
def test_what_others_wrote_stays_behind_its_fence(name: str) -> None:
    foreign = {each.split(".")[0] for each in imports(name)} - STANDARD - {"gateway"}
    assert {each for each in foreign if name not in FENCES.get(each, set())} == set()


@pytest.mark.parametrize("library", FENCES)
def test_no_fence_is_wider_than_what_is_used(library: str) -> None:
    users = {name for name in MODULES if library in {each.split(".")[0] for each in imports(name)}}
    assert FENCES[library] == users


@every_module
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= LINES


@every_module
def test_a_function_fits_on_one_screen(name: str) -> None:
    long = {
        function.name: (function.end_lineno or 0) - function.lineno + 1
        for function in functions(name)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES
    }
    assert long == {}


@every_module
def test_a_function_takes_few_things(name: str) -> None:
    counts = {f.name: sum(map(len, parameters(f))) for f in functions(name) if not is_command(f)}
    assert {f: count for f, count in counts.items() if count > PARAMETERS} == {}


@every_module
def test_of_many_parameters_all_but_two_have_names(name: str) -> None:
    many = {f"{f.name}:{f.lineno}": parameters(f) for f in functions(name) if not is_command(f)}
    assert {
        where: by_position
        for where, (by_position, by_name) in many.items()
        if len(by_position) + len(by_name) > 4 and len(by_position) > BY_POSITION
    } == {}


@every_module
def test_what_is_public_says_what_it_is(name: str) -> None:
    silent = [] if ast.get_docstring(TREES[name]) else [name]
    parents: list[ast.Module | ast.ClassDef] = [TREES[name], *_public_classes(TREES[name])]
    for parent in parents:
        for node in parent.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                silent += [] if ast.get_docstring(node) else [node.name]
    assert silent == []


def _public_classes(tree: ast.Module) -> list[ast.ClassDef]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [node for node in classes if not node.name.startswith("_")]


@every_module
def test_every_module_has_its_tests(name: str) -> None:
    assert (TESTS / f"test_{TESTED_IN.get(name, name)}.py").exists()


@every_module
def test_nobody_sleeps_on_the_event_loop(name: str) -> None:
    sleeps = {"time.sleep", "sleep"} if name != "workers" else set()
    calls = [ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert sleeps.intersection(calls) == set()


@every_module
def test_no_private_name_of_another_module_is_used(name: str) -> None:
    taken = [
        alias.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gateway")
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
    assert taken == []


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS.values()], ids=lambda path: path.name)
def test_nothing_is_left_to_do(path: Path) -> None:
    text = path.read_text("utf-8")
    assert [mark for mark in ("TODO", "FIXME", "XXX") if mark in text] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_its_keys_arguments_and_answer_first(name: str) -> None:
    lines = SCRIPTS[name].read_text("utf-8").splitlines()
    head = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("--"))])
    for word in ("-- KEYS: 1 ", "-- ARGV: 1 ", "-- Returns "):
        assert word in head


def test_every_script_is_run_by_somebody() -> None:
    named = {
        node.args[0].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".script")
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert named == {Path(name).stem for name in SCRIPTS}

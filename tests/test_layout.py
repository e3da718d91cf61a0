"""The layout: floors, fences and budgets, read from the source."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

import gateway
from tests.conftest import LONG

HOME = Path(gateway.__file__).parent
TESTS = Path(__file__).parent

# From the ground up. A package imports its own modules and those of floors below.
FLOORS: tuple[set[str], ...] = (
    {"errors", "sse", "tasks", "clock"},
    {"config", "telemetry"},
    {"upstream"},
    {"store"},
    {"limits"},
    {"eventlog"},
    {"channels"},
    {"membership"},
    {"auth", "webhooks"},
    {"runs"},
    {"web"},
    {"serve"},
    {"demo"},
    {"app"},
    {"chat"},
    {"options", "demonstration"},
    {"client", "report", "check", "streams", "usage", "push", "commands", "cli", "__main__"},
)

# Who may import what somebody else wrote; what is in no fence may be imported by nobody.
FENCES: dict[str, set[str]] = {
    "redis": {
        *("store.outage", "store.pools", "store.connection", "store.node", "store.routing"),
        *("store.topology", "store.client", "store.embedded"),
    },
    "fakeredis": {"store.embedded", "store.pools"},
    "hiredis": {"store.connection"},
    "httpx": {
        *("upstream.client", "upstream.answers", "upstream.transport", "upstream.connection"),
        *("upstream.codings", "upstream.failures", "upstream.lookup"),
        *("demo.front", "demo.plain", "chat.lines", "client"),
    },
    "httpx_sse": {"client"},
    "httptools": {"upstream.connection", "serve.protocol"},
    "itsdangerous": {"auth.tickets", "auth.signed", "auth.flask", "auth.guest"},
    "jwt": {"auth.jwt", "auth.keys"},
    "cryptography": {"auth.keys"},
    "pydantic": {
        *("config.dialects", "config.settings", "config.presets", "config.price"),
        *("config.faults", "config.lists", "config.templates", "config.values"),
        *("config.secrets", "config.webhooks"),
        *("config.user_limits", "chat.lines"),
    },
    "pydantic_core": {"config.settings"},
    "starlette": {
        *("web.requests", "web.responses", "web.event_stream", "web.endpoint", "web.routes"),
        *("web.health", "web.streams", "web.tickets", "web.completion", "web.usage"),
        *("web.sdk.answers", "web.sdk.callers", "web.sdk.completions", "web.sdk.errors"),
        *("web.sdk.kept_responses", "web.sdk.models", "web.sdk.replies"),
        *("web.users", "web.mount", "web.events", "web.channel", "web.composite"),
        *("web.raw_stream", "web.heartbeats", "web.chat.endpoints", "web.chat.stream"),
        *("app", "demo.upstream", "demo.page", "serve.http10", "serve.server", "cli"),
        *("demo.front", "demo.plain", "demonstration"),
    },
    "uvicorn": {"serve.server", "serve.protocol", "serve.http10"},
    "click": {"cli", "commands", "options"},
}
# Who may know what stands behind a seam; everybody else has the interface, in `base`.
BEHIND: dict[str, set[str]] = {
    "auth.custom": {"auth.loading"},
    "auth.django": {"auth.loading"},
    "auth.flask": {"auth.loading"},
    "auth.guest": {"auth.loading"},
    "auth.jwt": {"auth.loading"},
    "auth.signed": {"auth.loading"},
    "upstream.protocols.anthropic": {"upstream.protocols.table"},
    "upstream.protocols.anthropic_api": {"upstream.protocols.apis"},
    "upstream.protocols.chat": {"upstream.protocols.table"},
    "upstream.protocols.gemini": {"upstream.protocols.table"},
    "upstream.protocols.ollama": {"upstream.protocols.table"},
    "upstream.protocols.sse": {"upstream.protocols.table"},
    "upstream.protocols.responses": {"upstream.protocols.table"},
}
# What those who serve clients of an API's, or of none, know of it.
OF_APIS = ("api", "apis", "problems", "readings", "conversation")
STANDARD = sys.stdlib_module_names

# Modules whose promises are kept by a test of another name.
TESTED_IN = {
    "__init__": "cli",
    "__main__": "cli",
    "app": "web.routes",
    "auth.absence": "auth.forward",
    "auth.base": "auth.loading",
    "auth.custom": "auth.loading",
    "auth.django": "auth.frameworks",
    "auth.flask": "auth.frameworks",
    "auth.jwks": "auth.jwt",
    "auth.keys": "auth.jwt",
    "auth.refusal": "auth.forward",
    "auth.service": "web.users",
    "auth.session": "auth.frameworks",
    "auth.signed": "auth.loading",
    "auth.threads": "auth.loading",
    "chat.conversation": "chat.terminal",
    "chat.lines": "chat.terminal",
    "channels.publisher": "web.events",
    "channels.source": "web.events",
    "clock": "eventlog.tail",
    "commands": "cli",
    "config.addresses": "config.settings",
    "config.lists": "config.settings",
    "config.secrets": "config.settings",
    "config.values": "config.settings",
    "demo.plain": "demo.front",
    "demo.replicas": "demo.front",
    "demonstration": "demo.front",
    "demo.pretend.chat": "demo.upstream",
    "demo.pretend.faults": "demo.upstream",
    "demo.pretend.text": "demo.upstream",
    "eventlog.base": "eventlog.writer",
    "eventlog.channel": "web.events",
    "eventlog.entries": "eventlog.writer",
    "eventlog.fanout": "eventlog.tail",
    "eventlog.fetcher": "eventlog.tail",
    "eventlog.group_commit": "eventlog.writer",
    "eventlog.packs": "runs.compaction",
    "eventlog.pages": "eventlog.tail",
    "eventlog.reader": "eventlog.writer",
    "eventlog.viewer": "eventlog.tail",
    "config.user_limits": "limits.permits",
    "limits.headroom": "limits.subjects",
    "limits.statement": "web.usage",
    "limits.tallies": "limits.subjects",
    "membership.control": "runs.cancellation",
    "membership.suspects": "runs.takeover",
    "report": "streams",
    "options": "cli",
    "runs.aliases": "web.sdk.kept_responses",
    "runs.answer": "runs.attempts",
    "runs.booking": "limits.ledger",
    "runs.chats": "web.chat.endpoints",
    "runs.claims": "runs.supervisor",
    "runs.inquiry": "runs.listing",
    "runs.intake": "runs.run",
    "runs.logout": "web.users",
    "runs.notification": "webhooks.courier",
    "runs.ownership": "runs.supervisor",
    "runs.record": "runs.records",
    "runs.registry": "runs.supervisor",
    "runs.presence": "runs.records",
    "runs.rehearsal": "check",
    "runs.snapshot": "runs.run",
    "runs.source": "eventlog.tail",
    "serve.compact": "serve.protocol",
    "serve.deadlines": "serve.protocol",
    "serve.http10": "serve.protocol",
    "serve.server": "cli",
    "store.connection": "store.client",
    "store.keys": "store.client",
    "store.node": "store.client",
    "store.outage": "store.client",
    "store.per_node": "store.topology",
    "store.pools": "store.client",
    "store.quorum": "membership.heartbeat",
    "store.routing": "store.topology",
    "tasks": "runs.supervisor",
    "upstream.codings": "upstream.answers",
    "upstream.connection": "upstream.transport",
    "upstream.failures": "upstream.client",
    "upstream.heads": "upstream.transport",
    "upstream.lookup": "auth.forward",
    "upstream.protocols.anthropic_api": "upstream.protocols.apis",
    "upstream.protocols.anthropic_whole": "upstream.protocols.apis",
    "upstream.protocols.api": "upstream.protocols.apis",
    "upstream.retry_after": "upstream.client",
    "upstream.protocols.base": "upstream.protocols.table",
    "upstream.protocols.chat_api": "upstream.protocols.apis",
    "upstream.protocols.chat_whole": "upstream.protocols.apis",
    "upstream.protocols.anthropic_readings": "upstream.protocols.readings",
    "upstream.protocols.chat_readings": "upstream.protocols.readings",
    "upstream.protocols.conversation": "upstream.protocols.conversations",
    "upstream.protocols.gemini_readings": "upstream.protocols.readings",
    "upstream.protocols.ollama_readings": "upstream.protocols.readings",
    "upstream.protocols.responses_readings": "upstream.protocols.readings",
    "upstream.protocols.chat_chunks": "upstream.protocols.chat_state",
    "upstream.protocols.complaints": "upstream.protocols.chat_shapes",
    "upstream.protocols.error_text": "upstream.messages",
    "upstream.protocols.forms": "upstream.protocols.policy",
    "upstream.protocols.refusals": "upstream.client",
    "upstream.protocols.gemini_state": "upstream.protocols.gemini",
    "upstream.protocols.gemini_text": "upstream.protocols.gemini",
    "upstream.protocols.problems": "web.sdk.completions",
    "upstream.protocols.reasons": "upstream.protocols.chat_shapes",
    "upstream.protocols.requests": "upstream.protocols.chat",
    "upstream.protocols.sse_paths": "upstream.protocols.sse",
    "upstream.protocols.sse_state": "upstream.protocols.sse",
    "upstream.protocols.responses_api": "upstream.protocols.apis",
    "upstream.protocols.responses_events": "upstream.protocols.responses",
    "upstream.protocols.responses_frames": "upstream.protocols.responses",
    "upstream.protocols.responses_text": "upstream.protocols.responses_state",
    "upstream.protocols.terminal_state": "upstream.protocols.anthropic",
    "upstream.protocols.usage": "upstream.protocols.chat_shapes",
    "usage": "web.usage",
    "webhooks.outbox": "webhooks.courier",
    "webhooks.post": "webhooks.courier",
    "web.channel": "web.composite",
    "web.chat.answers": "web.chat.endpoints",
    "web.chat.stream": "web.chat.endpoints",
    "web.endpoint": "web.routes",
    "web.health": "web.routes",
    "web.life": "web.routes",
    "web.sdk.answers": "web.sdk.completions",
    "web.sdk.callers": "web.sdk.completions",
    "web.sdk.errors": "web.sdk.completions",
    "web.sdk.models": "web.sdk.completions",
    "web.sdk.replies": "web.sdk.completions",
    "web.sdk.urls": "web.sdk.completions",
    "web.openings": "web.snapshot",
    "web.parts": "web.composite",
    "web.streams": "web.routes",
    "web.tickets": "web.routes",
    "web.event_stream": "web.responses",
    "web.requests": "web.responses",
}

# What its owner calls private and we use: each has a test in `test_borrowed`, which names the
# version that it was last seen in.
BORROWED = {
    "serve.compact": {"_waiters"},
    "serve.protocol": {"_is_writable_event", "_start_asgi_task"},
    "store.connection": {"_writer"},
    "upstream.codings": {"_Decompress"},
}
PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_make"}  # Of every NamedTuple.

LINES = 350  # Of a module.
CLASS_LINES = 250
FUNCTION_LINES = 60
PARAMETERS = 7
BY_POSITION = 7  # Of more than four parameters; what a constructor joins is told by its type.
REACH = 3  # Names of a call: `run.log.append`.
REASON = "One idea: "  # Begins what a class says that is larger, or is made of more.


def dotted(path: Path) -> str:
    """Return a module's name under `gateway`; a package's is that of its folder."""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)


PATHS = {dotted(path): path for path in sorted(HOME.rglob("*.py"))}
PACKAGES = {name for name, path in PATHS.items() if path.stem == "__init__"} - {"__init__"}
MODULES = {name: path for name, path in PATHS.items() if name not in PACKAGES}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in PATHS.items()}
SCRIPTS = {path.name: path for path in sorted((HOME / "store" / "lua").glob("*.lua"))}

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
            if node.module.partition(".")[0] == "gateway":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = {each.removeprefix("gateway.") for each in imports(name)}
    return found & MODULES.keys()


def floor(name: str) -> int:
    """Return the number of a module's floor, which is that of its package."""
    return next(number for number, names in enumerate(FLOORS) if name.split(".")[0] in names)


def functions(name: str) -> Iterator[Function]:
    """Yield a module's functions and methods, nested ones too."""
    yield from (node for node in ast.walk(TREES[name]) if isinstance(node, Function))


def classes(name: str) -> Iterator[ast.ClassDef]:
    """Yield a module's classes, nested ones too."""
    yield from (node for node in ast.walk(TREES[name]) if isinstance(node, ast.ClassDef))


def size(node: Function | ast.ClassDef) -> int:
    """Return how many lines it has."""
    return (node.end_lineno or 0) - node.lineno + 1


def says_why(cls: ast.ClassDef) -> bool:
    """Whether a class gives a reason for its size."""
    return REASON in (ast.get_docstring(cls) or "")


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


every_package = pytest.mark.parametrize("name", sorted(PACKAGES))


def test_every_package_and_module_on_top_is_on_one_floor() -> None:
    named = [name for names in FLOORS for name in names]
    assert sorted(named) == sorted({name.split(".")[0] for name in PATHS.keys() - {"__init__"}})


@every_package
def test_a_package_says_what_it_is_and_nothing_else(name: str) -> None:
    assert ast.get_docstring(TREES[name])
    assert len(TREES[name].body) == 1


@every_module
def test_imports_never_run_upwards(name: str) -> None:
    if name == "__init__":
        assert ours(name) == {"app", "config.settings"}  # What an application imports.
    else:
        assert {each for each in ours(name) if floor(each) > floor(name)} == set()


def test_imports_run_in_no_circle() -> None:
    left = {name: ours(name) for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


def test_packages_import_each_other_in_no_circle() -> None:
    left: dict[str, set[str]] = {name.partition(".")[0]: set() for name in MODULES}
    for name in MODULES:
        package = name.partition(".")[0]
        left[package] |= {each.partition(".")[0] for each in ours(name)} - {package}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


@every_module
def test_what_others_wrote_stays_behind_its_fence(name: str) -> None:
    foreign = {each.split(".")[0] for each in imports(name)} - STANDARD - {"gateway"}
    assert {each for each in foreign if name not in FENCES.get(each, set())} == set()


@every_module
def test_what_a_provider_sends_is_known_to_its_protocol_alone(name: str) -> None:
    protocols = {each for each in ours(name) if each.startswith("upstream.protocols.")}
    if not name.startswith("upstream.protocols."):
        assert protocols <= {
            f"upstream.protocols.{each}"
            for each in (*OF_APIS, "base", "table", "demand", "error_text", "volume")
        }


@pytest.mark.parametrize("library", FENCES)
def test_no_fence_is_wider_than_what_is_used(library: str) -> None:
    users = {name for name in MODULES if library in {each.split(".")[0] for each in imports(name)}}
    assert FENCES[library] == users


@pytest.mark.parametrize("name", BEHIND)
def test_what_is_behind_a_seam_is_known_by_name_in_one_place(name: str) -> None:
    assert {each for each in MODULES if name in ours(each)} == BEHIND[name]


@every_module
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= LINES


@every_module
def test_a_function_fits_on_one_screen(name: str) -> None:
    sizes = {function.name: size(function) for function in functions(name)}
    assert {function: lines for function, lines in sizes.items() if lines > FUNCTION_LINES} == {}


@every_module
def test_a_function_takes_few_things(name: str) -> None:
    reasoned = {id(node) for cls in classes(name) if says_why(cls) for node in cls.body}
    counts = {
        f.name: sum(map(len, parameters(f)))
        for f in functions(name)
        if not is_command(f) and not (f.name == "__init__" and id(f) in reasoned)
    }
    assert {f: count for f, count in counts.items() if count > PARAMETERS} == {}


@every_module
def test_a_large_class_says_why_it_is_one_idea(name: str) -> None:
    sizes = {cls.name: size(cls) for cls in classes(name) if not says_why(cls)}
    assert {cls: lines for cls, lines in sizes.items() if lines > CLASS_LINES} == {}


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
    *packages, module = TESTED_IN.get(name, name).split(".")
    assert TESTS.joinpath(*packages, f"test_{module}.py").exists()


def test_only_modules_that_exist_have_their_tests_elsewhere() -> None:
    assert TESTED_IN.keys() <= MODULES.keys()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.name)
def test_tests_of_a_package_are_named_after_it(path: Path) -> None:
    *packages, _ = path.relative_to(TESTS).parts
    long_runs = {"faults", "hostile", "simulation", "third_party"}
    assert not packages or ".".join(packages) in PACKAGES | long_runs


@every_module
def test_events_are_framed_in_one_place(name: str) -> None:
    field = re.compile(rb"(^|\n)(data|event|id|retry)?:[ \n]")
    texts = [node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)]
    framed = [text for text in texts if isinstance(text, bytes) and field.search(text)]
    assert not framed or name == "sse"


@every_module
def test_nobody_sleeps_on_the_event_loop(name: str) -> None:
    sleeps = {"time.sleep", "sleep"} if name != "serve.workers" else set()
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


@every_module
def test_what_others_call_private_is_borrowed_openly(name: str) -> None:
    tree = TREES[name]
    # Of a name that a module gives itself nobody can say from the source whose it is.
    own = {node.name for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    own |= {
        node.attr for node in ast.walk(tree) if _is_own(node) and isinstance(node.ctx, ast.Store)
    }
    assert _private_names(tree) - own - PUBLIC_ALL_THE_SAME == BORROWED.get(name, set())


def _is_own(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")


def _private_names(tree: ast.Module) -> set[str]:
    """Return the attributes with one underscore in front, also those asked for by a string."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            found |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return {each for each in found if each.startswith("_") and not each.startswith("__")}


@every_module
def test_nobody_reaches_through_an_object_into_the_next_but_one(name: str) -> None:
    modules = {alias.asname or alias.name for alias in _imported(TREES[name])}
    calls = [node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    chains = {ast.unparse(each) for each in calls if _is_chain(each)}
    parts = {chain: chain.removeprefix("self.").split(".") for chain in chains}
    far = {chain for chain, names in parts.items() if len(names) > REACH}
    assert {chain for chain in far if parts[chain][0] not in modules} == set()


def _imported(tree: ast.Module) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from node.names


def _is_chain(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


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
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".script", "Script"))
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert named == {Path(name).stem for name in SCRIPTS}


@pytest.mark.parametrize("name", LONG)
def test_the_files_that_begin_first_are_there(name: str) -> None:
    assert (TESTS / name).is_file()

"""Fixtures: the loop, the two stores, a real Redis."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from gateway.store.client import RedisClient
from tests.clusters import RedisCluster, redis_cluster
from tests.support import RedisServer, redis_server

# An example that takes long shows a busy machine: by itself it would be a failure.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# They judge time or memory, most of other processes: tracing the crowd in this one only slows it.
CROWDS = {
    *("test_attacks", "test_bounds", "test_faults", "test_protocol", "test_rolling"),
    "test_schedules",
}


# Few tests that take long: of a file that began last, its worker alone would be busy for a minute.
LONG = [
    *("faults/test_faults.py", "simulation/test_schedules.py", "runs/test_takeover.py"),
    *("test_nginx.py", "test_browser.py", "runs/test_supervisor.py", "test_promises.py"),
    *("serve/test_workers.py", "test_conformance.py", "store/test_sentinel.py"),
    *("store/test_topology.py", "runs/test_background.py", "test_rolling.py", "test_bounds.py"),
    *("test_redis_faults.py", "test_replays.py", "serve/test_reload.py", "limits/test_ledger.py"),
    *("hostile/test_attacks.py", "test_nginx_browser.py", "test_one_connection.py"),
]


def pytest_configure(config: pytest.Config) -> None:
    """Let workers take files in the order of `pytest_collection_modifyitems`."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure no coverage in tests that judge time or memory; give workers long files first."""
    for item in items:
        if item.path.stem in CROWDS:
            item.add_marker(pytest.mark.no_cover)
    if not hasattr(config, "workerinput"):
        return
    first = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (first.get(item.path, len(LONG)), -tests[item.path]))


@pytest.fixture
def anyio_backend() -> str:
    """All async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Let no server of one test make another test hear what is of no interest to it."""
    loggers = [logging.getLogger(), logging.getLogger("uvicorn.error")]
    before = [each.level for each in loggers]
    yield
    for each, level in zip(loggers, before, strict=True):
        each.setLevel(level)


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real server for tests that only use it; ids are random, so they do not meet."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real server that a test may kill."""
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A real cluster of three masters for tests that leave it as it was."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=["embedded", "redis", "cluster"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """Every kind of store: see `redis_url`, and three masters."""
    if request.param == "embedded":
        return ""
    server: RedisServer | RedisCluster = request.getfixturevalue(f"shared_{request.param}")
    return server.url


@pytest.fixture
async def store(any_redis_url: str) -> AsyncIterator[RedisClient]:
    """Every kind of store, one after the other."""
    opened = RedisClient(any_redis_url)
    yield opened
    await opened.close()


@pytest.fixture(params=["embedded", "redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """Both stores: the fake in this process, and a real server."""
    if request.param == "embedded":
        return ""
    server: RedisServer = request.getfixturevalue("shared_redis")
    return server.url

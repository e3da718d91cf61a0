"""`gateway streams`: what it prints, to read and to parse, and how it exits."""

import asyncio
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.report import Report
from gateway.runs.listing import Found, Owner, Stream
from gateway.store.client import RedisClient
from gateway.streams import _remarks, _time, listed
from tests.runs.test_listing import Mute
from tests.support import RedisServer, ask, free_port, scripted, settings, until
from tests.test_promises import held, site


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the variables away that would be another site's."""
    for name in ("GATEWAY_REDIS_URL", "GATEWAY_REDIS_URL_FILE", "GATEWAY_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def command(*arguments: str, redis_url: str = "") -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["streams", *arguments], env={"GATEWAY_REDIS_URL": redis_url})


async def run(redis: RedisServer, *arguments: str) -> tuple[int, list[str], str]:
    """Run the command as an operator does; return its exit code, lines and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "streams", "--redis-url", redis.url, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, errors = await process.communicate()
    return process.returncode or 0, said.decode().splitlines(), errors.decode()


async def test_it_lists_and_cancels_what_runs_on_two_replicas(own_redis: RedisServer) -> None:
    async with scripted(held(3)) as upstream, site(own_redis, upstream) as here:
        prompt = "a prompt that is nobody's business"
        urls = [await here.ticket(ask(prompt)), await here.ticket()]
        pairs = ((0, urls[0]), (1, urls[0]), (1, urls[1]))
        looks = [asyncio.create_task(here.read(at, url)) for at, url in pairs]

        async def all_watched() -> Any:
            report = await listed(settings(redis_url=own_redis.url), None, as_json=True)
            rows = [json.loads(line) for line in report.lines]
            told = {row["viewers"]: row for row in rows if row["events"] == 3}
            return told if sorted(told) == [1, 2] else None

        rows = await until(all_watched)
        for row in rows.values():
            assert (row["subject"], row["preset"], row["events"]) == ("alice", "default", 3)
            assert (row["owner_state"], row["cancelled"]) == ("answers", False)
            assert 0 <= row["age"] < 30
        first = rows[2]["id"]
        said = (0, [f"{first}: cancelled"], "")
        assert await run(own_redis, "--cancel", first) == said
        assert {(await each).end["state"] for each in looks[:2]} == {"cancelled"}
        assert await run(own_redis, "--json", "--subject", "bob") == (0, [], "")
        code, table, errors = await run(own_redis, "--subject", "alice")
        assert (code, errors, len(table)) == (0, "", 2)
        assert table[0].split() == ["ID", "SUBJECT", "PRESET", "AGE", "EVENTS", "VIEWERS", "OWNER"]
        row = rows[1]
        shown = [row["id"], "alice", "default", row["owner"]]
        assert [word for word in table[1].split() if word in shown] == shown
        assert re.search(r" \d+s +3 +1 ", table[1])
        tickets = [url.partition("ticket=")[2] for url in urls]
        assert not any(word in str([rows, table]) for word in (prompt, *tickets))
        looks[2].cancel()


async def test_no_subject_can_speak_to_the_terminal(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    evil = "evil\x1b[2J\x07\r\n\u202egnol " + "x" * 80
    mute = Mute(store, evil)
    await mute.begin()
    given = settings(redis_url=own_redis.url, lease=1)

    async def gone() -> Report | None:
        report = await listed(given, None, as_json=False)
        return report if report.lines[-1].endswith("(gone)") else None

    report: Report = await until(gone, "its owner stood still while it was looked at")
    (head, line), (row,) = report.lines, (await listed(given, evil, as_json=True)).lines
    await store.close()
    assert line.isprintable()
    assert "\ufffd[2J" in line
    assert "x…" in line
    assert len(line) - len(mute.name) < len(head) + 40
    assert line.endswith(f"  ?       0        {mute.name} (gone)")
    assert row.isascii()
    assert json.loads(row)["subject"] == evil


def test_an_age_is_told_in_the_units_that_matter() -> None:
    assert [_time(each) for each in (0, 59, 60, 3599, 3600, 90061)] == [
        *("0s", "59s", "1m00s", "59m59s", "1h00m", "25h01m")
    ]


async def test_what_could_not_be_read_is_said() -> None:
    """A master of a Cluster that is away takes some of the streams out of sight."""
    row = Stream("id", "s", "p", 1, None, None, "owner", Owner.SILENT, cancelled=False)
    assert _remarks(Found([row], ["owner"], 2)) == [
        "owner does not answer: its viewers are not counted",
        "streams that cannot be read now, as their server is away: 2",
    ]


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--cancel", "x"]])
def test_an_embedded_store_is_said_to_be_out_of_sight(arguments: list[str]) -> None:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("gateway: GATEWAY_REDIS_URL: missing; ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--cancel", "x"]])
def test_a_redis_that_is_away_is_said_without_its_password(arguments: list[str]) -> None:
    result = command(*arguments, redis_url=f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("gateway: Redis: ConnectionError: ")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.stderr


def test_what_does_not_go_together_is_refused() -> None:
    for more in (["--json"], ["--subject", "alice"]):
        result = command("--cancel", "x", *more)
        assert result.exit_code == 2
        assert "--cancel goes with neither" in result.stderr


def test_no_id_is_a_wrong_use_and_cancels_nothing(shared_redis: RedisServer) -> None:
    result = command("--cancel", "", redis_url=shared_redis.url)
    assert result.exit_code == 2
    assert "--cancel: which stream?" in result.stderr


def test_an_id_that_looks_like_an_option_is_an_id(shared_redis: RedisServer) -> None:
    """One of 64 begins with a dash."""
    result = command("--cancel", "-xCAM21sxlQ4txmx7VqRw", redis_url=shared_redis.url)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith("-xCAM21sxlQ4txmx7VqRw: there is no such stream, ")

"""`gateway push`: what it stores and prints, and how it exits."""

import asyncio
import subprocess
import sys

from click.testing import CliRunner

from gateway.cli import main
from gateway.store.keys import new_id
from tests.support import RedisServer, free_port, running, until
from tests.web.test_events import Watcher


async def command(url: str, *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run the command as an operator does; return its exit code, lines and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "push", "--redis-url", url, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, errors = await process.communicate(given)
    return process.returncode or 0, said.decode().strip(), errors.decode()


async def test_a_message_from_a_shell_reaches_the_page_that_watches(
    shared_redis: RedisServer,
) -> None:
    user, url = new_id(), shared_redis.url
    async with running(redis_url=url) as gate, Watcher(user).on(gate) as page:
        typed = ("--event", "news", "--data", "from a shell", "--message-id", "k")
        first, again, piped, wrong = await asyncio.gather(
            command(url, user, *typed),
            command(url, user, *typed),
            command(url, user, "--data", "-", given=b"zwei\nZeilen"),
            command(url, user, "--event", "end", "--data", ""),
        )
        await until(lambda: len(page.events) == 2)
    assert first[:2] == again[:2]
    assert first[0] == piped[0] == 0
    assert sorted(page.data) == ["from a shell", "zwei\nZeilen"]
    assert {each.id.decode() for each in page.events} == {first[1], piped[1]}
    assert wrong[:2] == (2, "")
    assert "Error: bad_event: " in wrong[2]


def test_what_cannot_be_stored_is_told_in_a_line_and_by_the_exit_code() -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    cases = {("alice", ""): 2, ("alice", nowhere): 1, ("x" * 300, nowhere): 2}
    for (subject, url), code in cases.items():
        told = CliRunner().invoke(
            main, ["push", subject, "--data", "x"], env={"GATEWAY_REDIS_URL": url}
        )
        assert (told.exit_code, told.stdout) == (code, "")
        assert "gateway: " in told.stderr or "bad_subject" in told.stderr

"""SIGHUP: another receiver is for new streams, and nothing is told without its preset."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.receivers import Receiver, answers, hears, receiver
from tests.support import (
    SECRET,
    Process,
    ask,
    client,
    cookie,
    process,
    scripted,
    settings,
    until,
    whole,
)

pytestmark = pytest.mark.timeout(150)

PATIENCE = 50.0  # Seconds.


def table(name: str, url: str, app: Receiver, **changes: str) -> str:
    """Return a preset that is told to a receiver."""
    keys = {"url": url, **app.preset, **changes}
    return f"[presets.{name}]\n" + "".join(f'{key} = "{each}"\n' for key, each in keys.items())


async def reload(served: Process, path: Path, text: str) -> None:
    """Put a file in force; return when it is."""
    await asyncio.to_thread(path.write_text, text)
    served.signal(signal.SIGHUP)
    errors = served.process.stderr
    assert errors is not None

    def in_force() -> bool:
        words = "SIGHUP: the presets were read again"
        return any(words in line for line in iter(errors.readline, ""))

    assert await asyncio.wait_for(asyncio.to_thread(in_force), PATIENCE)


async def end(served: Process, preset: str) -> str:
    """Let a stream of a preset end; return its ticket's stream."""
    async with client(served.url) as http:
        sent = cookie(settings())
        made = await http.post(f"/tickets/{preset}", json=ask(), headers=sent)
        got = await http.get(made.json()["stream_url"], headers=sent)
        assert b'"state":"done"' in got.content
        return str(made.json()["ticket"]).partition(".")[0]


async def test_what_is_to_be_told_goes_where_it_was_to_go_and_waits_for_its_preset(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gateway.toml"
    refuses = answers("503 Later")
    async with scripted(whole) as upstream, receiver(refuses) as old, receiver() as new:
        both = [table(name, upstream.url, old) for name in ("kept", "gone")]
        path.write_text("".join(both))
        with process("serve", "--port", "0", secrets=SECRET, config=str(path)) as served:
            kept, gone = await end(served, "kept"), await end(served, "gone")
            await until(
                lambda: len({each.id for each in old.told}) == 2, "both are tried", PATIENCE
            )
            await reload(served, path, table("kept", upstream.url, new))
            later = await end(served, "kept")
            await until(lambda: new.heard, "the new receiver hears the new stream", PATIENCE)
            old.turns[:] = [hears]
            await until(lambda: old.heard, "the old one hears what it was to be told", PATIENCE)
            assert {each.data["stream_id"] for each in old.heard} == {kept}
            await reload(served, path, "".join(both))
            await until(lambda: len(old.heard) == 2, "its preset is back", PATIENCE)
    assert [each.data["stream_id"] for each in new.told] == [later]
    assert {each.data["stream_id"] for each in old.heard} == {kept, gone}

"""An upstream that nobody here wrote: npm's `@copilotkit/aimock`, which speaks many protocols."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.clients import node_modules

LIMITED = {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429}


def fixture(prompt: str, response: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return what aimock answers to a prompt that has these words."""
    match = {"userMessage": prompt, **options.pop("match", {})}
    return {"match": match, "response": response, "chunkSize": 5, **options}


class Mock:
    """A running aimock."""

    def __init__(self, url: str) -> None:
        self.base = url
        self.url = f"{url}/v1/chat/completions"

    def asked(self, prompt: str) -> int:
        """Return how many requests with this prompt it got, by its own journal."""
        journal = httpx.get(f"{self.base}/__aimock/journal", trust_env=False).json()
        return sum(prompt in json.dumps(each["body"]["messages"]) for each in journal)


@contextmanager
def mocking(fixtures: list[dict[str, Any]], folder: Path) -> Iterator[Mock]:
    """Run aimock as node's own process: the one that npx starts would outlive it."""
    program = node_modules() / "@copilotkit/aimock/dist/cli.js"
    file = folder / "fixtures.json"
    file.write_text(json.dumps({"fixtures": fixtures}))
    command: list[str | Path] = ["node", program, "--port", "0", "--fixtures", file]
    environment = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listening = (line for line in process.stdout if "listening on" in line)
        yield Mock(next(listening).split()[-1])
        process.kill()

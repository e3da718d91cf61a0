"""`transformers serve` with a tiny Llama of random weights, made here."""

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.demo.pretend.text import PARAGRAPHS
from tests.support import free_port
from tests.third_party.programs import installed, serving
from tests.third_party.server import Question, Server, Way

MODEL = "m"  # A folder in that of the server: it takes no other name for it.
UNESCAPED = json.dumps({"repetition_penalty": '1.0 "or so"'})  # It quotes that in its error.
MAKER = Path(__file__).parent / "tiny_llama.py"
_ALONE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


class Transformers(Server):
    """A running server; its model breaks at a word that it has no place for."""

    ways = (Way("openai"), Way("responses"))
    breaks = ("error", "unescaped")

    def question(self, way: Way, fate: str) -> Question:
        """Return one that the model breaks at, one that generating does, or a good one."""
        if fate == "unescaped":
            return Question(MODEL, more={"generation_config": UNESCAPED})
        return Question(MODEL, "Why <breaks>?") if fate == "error" else Question(MODEL)


def _make_model(programs: Path, folder: Path) -> None:
    command = [programs / "python", MAKER, folder]
    subprocess.run(command, input="\n".join(PARAGRAPHS).encode(), check=True, capture_output=True)


@asynccontextmanager
async def transformers(environments: Path, folder: Path) -> AsyncIterator[Transformers]:
    """Run it for the length of the block."""
    programs, port = installed("transformers", environments), free_port()
    _make_model(programs, folder / MODEL)
    command: list[str | Path] = [programs / "transformers", "serve", MODEL, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    base = f"http://127.0.0.1:{port}"
    with serving(command, f"{base}/health", folder / "transformers.log", **_ALONE):
        yield Transformers(base)

"""LiteLLM's proxy before the pretend upstream: a model for each provider and each fate."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.demo.upstream import UpstreamOptions, upstream
from tests.support import free_port, served
from tests.third_party.programs import installed, serving
from tests.third_party.server import Question, Server, Way

KEY = "sk-of-the-long-run"
PIECES = 60
BREAKS = ("error:6", "cut:6")
EARLY = ("cut:0", "close:0", "error:0", "html", "status:500", "status:502")
INTERVALS = {"whole": 0.005, "slow": 0.05}
FATES = (*INTERVALS, *BREAKS, *EARLY)
BASES = {"openai": "/v1", "anthropic": ""}  # What LiteLLM wants of a provider's URL.


class LiteLLM(Server):
    """A running proxy, before one pretend upstream for each fate."""

    ways = (
        *(Way(each, "openai") for each in ("openai", "responses", "anthropic", "gemini")),
        *(Way(each, "anthropic") for each in ("openai", "responses", "anthropic", "gemini")),
    )
    breaks = BREAKS
    early = EARLY

    def __init__(self, base: str, providers: dict[str, str]) -> None:
        super().__init__(base, KEY)
        self._providers = providers

    def question(self, way: Way, fate: str) -> Question:
        """Return one whose model has this fate."""
        return Question(model_name(way.provider, fate))

    def provider(self, way: Way, fate: str) -> str:
        """Return the URL of the pretend upstream of this fate."""
        return self._providers[fate]


def model_name(provider: str, fate: str) -> str:
    """Return the name of a model, which has to go into the path of a URL."""
    return f"{provider}-{fate.replace(':', '-')}"


def configuration(providers: dict[str, str]) -> dict[str, Any]:
    """Return LiteLLM's: it must ask a provider once, or nobody could count what we do."""
    models = [
        {
            "model_name": model_name(provider, fate),
            "litellm_params": {"model": f"{provider}/m", "api_base": base + path, "api_key": "k"},
        }
        for fate, base in providers.items()
        for provider, path in BASES.items()
    ]
    return {
        "model_list": models,
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }


def _options(fate: str) -> UpstreamOptions:
    fault = "" if fate in INTERVALS else fate
    return UpstreamOptions(fault=fault, tokens=PIECES, interval=INTERVALS.get(fate, 0.005))


@asynccontextmanager
async def litellm(environments: Path, folder: Path) -> AsyncIterator[LiteLLM]:
    """Run it for the length of the block."""
    program, port = installed("litellm", environments) / "litellm", free_port()
    base = f"http://127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        providers = {}
        for fate in FATES:
            providers[fate] = await stack.enter_async_context(served(upstream(_options(fate))))
        file = folder / "config.yaml"  # JSON is YAML.
        file.write_text(json.dumps(configuration(providers)))
        command: list[str | Path] = [program, "--config", file, "--host", "127.0.0.1"]
        health = f"{base}/health/liveliness"
        running = serving([*command, "--port", str(port)], health, folder / "litellm.log", **_ALONE)
        stack.enter_context(running)
        yield LiteLLM(base, providers)


_ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}  # It asks nobody on the way up.

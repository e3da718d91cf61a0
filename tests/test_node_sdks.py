"""The official SDKs of npm before a gateway: all is as without it, and what is not whole throws."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import test_clients
from tests.sdk_clients import SDKS, TOKEN, asked, bare, before, pretended
from tests.test_clients import cutting

scripts = test_clients.scripts

THROWN = {"openai": "APIError", "responses": "APIError", "anthropic": "APIError"}
LIMITED = {"error": "RateLimitError", "status": 429}
BROKEN = {"error": "InternalServerError", "status": 500}


@pytest.fixture
async def told(scripts: Path) -> dict[str, Any]:
    """What the SDKs made of the upstream and of the gateway before it, and how often it asked."""
    async with (
        pretended() as base,
        before(base, preset={"retries": 0}) as gate,
        cutting(gate, [9]) as (through, _),
    ):
        node = await asyncio.create_subprocess_exec(
            *("node", scripts / "sdks.mjs", base, gate.url, through),
            env={"PATH": os.environ["PATH"], "TOKEN": TOKEN},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await node.communicate()
        assert node.returncode == 0
        return {**json.loads(output), "asked": await asked(base)}


async def test_node_sdks_have_the_same_and_throw_what_is_not_whole_and_pay_once(
    told: dict[str, Any],
) -> None:
    for name, thrown in THROWN.items():
        of = told[name]
        assert bare(of["gateway"]) == bare(of["direct"])
        for fault in ("cut:3", "error:3"):
            assert of[fault]["error"] == thrown, (name, fault)
            assert len(of[fault]["events"]) >= SDKS[name].before + 3
        assert of["whole_cut"]["status"] == 502
        assert of["status:429"] == {"events": [], **LIMITED}
        assert of["status:500"] == {"events": [], **BROKEN}
    assert told["rest"] == told["responses"]["gateway"]["events"][6:]
    assert bare(told["again"]) == bare(told["openai"]["direct"]["whole"])
    # Of each API 2 directly, 2 whole, 2 not whole, 2 refusals of which one is sure, and an object
    # that is cut; and one that was asked for twice.
    assert told["asked"] == 3 * (2 + 2 + 2 + 3 + 1) + 1

"""What a page may ask, end to end: refusals name the member, store nothing and ask nobody."""

import json
from typing import Any

import httpx
import pytest

from tests.support import Served, ask, running, scripted, whole

PRESETS: dict[str, Any] = {
    "default": {"models": ["small", "large"], "fields": ["temperature"], "max_chars": 50},
    "talk": {
        "models": ["small"],
        "max_output_tokens": 9,
        "template": [
            {"role": "system", "content": "You are ${role}."},
            {"role": "user", "content": "${message}"},
        ],
        "variables": {
            "message": {"max_chars": 20},
            "role": {"choices": {"poet": "a poet", "pirate": "Jack"}, "default": "poet"},
        },
    },
    "house": {"system": "House rules.", "max_messages": 2},
    "spare": {"public": False},
}


async def post(gate: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    """POST a body to a preset's tickets."""
    headers = {**gate.cookie(), "Content-Type": "application/json"}
    return await gate.http.post(f"/tickets{path}", content=json.dumps(body), headers=headers)


async def test_a_role_reaches_the_upstream_as_its_template_says(redis_url: str) -> None:
    async with (
        scripted(whole) as upstream,
        running(redis_url=redis_url, upstream_url=upstream.url, presets=PRESETS) as gate,
    ):
        answer = await post(gate, "/talk", {"message": "Ahoy", "role": "pirate"})
        assert answer.status_code == 201
        assert (await gate.read(answer.json()["stream_url"])).end["state"] == "done"
    (call,) = upstream.calls
    assert call.json == {
        "messages": [
            {"role": "system", "content": "You are Jack."},
            {"role": "user", "content": "Ahoy"},
        ],
        "model": "small",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


SYSTEM = {"role": "system", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body", "code", "member"),
    [
        ("", ask(model="dear"), "model_not_allowed", "model"),
        ("", ask(model="small", seed=1), "field_not_allowed", "seed"),
        ("", {**ask(model="small"), "\ud800": 1}, "field_not_allowed", ""),
        ("", ask("x" * 51, model="small"), "request_too_long", ""),
        ("/talk", {"message": "x", "mood": "y"}, "variable_unknown", "mood"),
        ("/talk", {}, "variable_missing", "message"),
        ("/talk", {"message": "x" * 21}, "variable_too_long", "message"),
        ("/talk", {"message": "\ud800"}, "variable_not_allowed", "message"),
        ("/house", {"messages": [SYSTEM]}, "system_not_allowed", "messages[0].role"),
        ("/house", {"messages": [ask()["messages"][0]] * 3}, "too_many_messages", "messages"),
        ("/house", ask(n=1000), "too_many_tokens", "n"),
    ],
)
async def test_a_refusal_names_the_member_and_nothing_is_kept(
    path: str, body: dict[str, Any], code: str, member: str
) -> None:
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, presets=PRESETS) as gate,
    ):
        answer = await post(gate, path, body)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert member in answer.json()["detail"]
        assert not upstream.calls


async def test_a_preset_that_is_not_public_is_none_for_a_page() -> None:
    async with running(presets=PRESETS) as gate:
        for name in ("spare", "nothing"):
            answer = await post(gate, f"/{name}", ask())
            assert (answer.status_code, answer.json()["code"]) == (404, "preset_not_found")


async def test_without_a_default_preset_there_is_none_at_tickets() -> None:
    presets = {"talk": {**PRESETS["talk"], "url": "http://127.0.0.1:9/v1"}}
    async with running(upstream_url="", presets=presets) as gate:
        answer = await post(gate, "", ask())
        assert (answer.status_code, answer.json()["code"]) == (404, "preset_not_found")

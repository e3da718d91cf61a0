"""What a user has spent and has left, as it is told to the user and to the app's server."""

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.config.settings import load
from gateway.errors import Rejected
from gateway.limits.permits import Taken
from gateway.store.client import RedisClient
from gateway.store.keys import new_id, subject_keys
from gateway.tasks import in_thread
from tests.support import (
    OK,
    Call,
    RedisServer,
    Served,
    ask,
    chunk,
    free_port,
    gateway,
    running,
    sse,
)

TOKEN = "a-token-of-the-apps-server"
SERVICE = {"Authorization": f"Bearer {TOKEN}"}
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
TOLD = sse(
    chunk("Hel"), chunk("lo", finish="stop"), json.dumps({"choices": [], "usage": USAGE}).encode()
)
ROW = {
    "preset": "default",
    "model": "pretend",
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "cached_tokens": 0,
    "estimated_tokens": 0,
}


async def tells(call: Call) -> None:
    """Answer, and tell the usage."""
    await call.send(OK, TOLD + sse(b"[DONE]"))


def somebody() -> str:
    """Return a subject that no other test has."""
    return f"user-{new_id()}"


async def usage(gate: Served, subject: str, **days: str) -> httpx.Response:
    """Ask as the user."""
    named = {name.rstrip("_"): value for name, value in days.items()}
    return await gate.http.get("/usage", params=named, headers=gate.cookie(subject))


async def of_user(gate: Served, subject: str, query: str = "", **headers: str) -> httpx.Response:
    """Ask as the app's server."""
    url = f"/users/{quote(subject, safe='')}/usage{query}"
    return await gate.http.get(url, headers={**SERVICE, **headers})


async def today(store: RedisClient) -> date:
    """Return the day by Redis's clock."""
    ((seconds, _),) = await store.calls([["TIME"]])
    return datetime.fromtimestamp(int(seconds), UTC).date()


async def test_who_has_read_an_end_finds_it_booked_at_once(any_redis_url: str) -> None:
    presets = {"default": {"price": {"prompt": 2.0, "completion": 4.0}}}
    given = {"redis_url": any_redis_url, "presets": presets, "service_tokens": TOKEN}
    async with gateway(tells, **given) as (gate, _):
        user = somebody()
        for number in range(1, 6):
            url = await gate.ticket(subject=user)
            headers = {**gate.cookie(user), "Accept": "text/event-stream"}
            async with gate.http.stream("GET", url, headers=headers) as stream:
                async for line in stream.aiter_lines():
                    if line == "event: end":
                        break
                answer = await usage(gate, user)
            (row,) = answer.json()["days"]
            assert row["streams"] == number
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        day = (await today(gate.gateway.store)).isoformat()
        tokens = {"prompt_tokens": 55, "completion_tokens": 25}
        whole = {"day": day, **ROW, "streams": 5, **tokens, "cost": 0.00021}
        assert answer.json() == {"days": [whole], "limits": {}, "remaining": {}}
        assert (await of_user(gate, user)).json() == answer.json()
        assert (await usage(gate, somebody())).json()["days"] == []


async def test_the_limits_are_told_and_what_is_left_of_each(redis_url: str) -> None:
    presets: dict[str, Any] = {
        "default": {},
        "dear": {"limits": {"posts_per_minute": 5, "cost_per_day": 1.5}},
        "inner": {"public": False, "limits": {"streams": 1}},
    }
    limits = {"tokens_per_day": 100, "posts_per_minute": 3, "cost_per_day": 0.5}
    given = {"redis_url": redis_url, "presets": presets, "limits": limits}
    async with gateway(tells, **given) as (gate, _):
        user = somebody()
        for path in ("/tickets/dear", "/tickets"):
            made = await gate.http.post(path, json=ask(), headers=gate.cookie(user))
        ended = await gate.http.get(made.json()["stream_url"], headers=gate.cookie(user))
        assert b'"state":"done"' in ended.content
        told = (await usage(gate, user)).json()
        assert told["days"][0]["cost"] == 0
        assert told["limits"] == limits
        left = {"tokens_per_day": 84, "posts_per_minute": 1, "cost_per_day": 0.5}
        assert told["remaining"] == left
        here = {"posts_per_minute": 5, "cost_per_day": 1.5}
        assert told["presets"] == {
            "dear": {"limits": here, "remaining": {"posts_per_minute": 4, "cost_per_day": 1.5}}
        }


async def test_a_stream_at_once_tells_what_is_left_as_a_ticket_does() -> None:
    async with gateway(tells, limits={"posts_per_minute": 3, "tokens_per_day": 90}) as (gate, _):
        made = await gate.post()
        at_once = await gate.post(Accept="text/event-stream")
        assert b'"state":"done"' in at_once.content
        for answer, posts in ((made, 2), (at_once, 1)):
            policy = '"posts";q=3;w=60, "tokens";q=90;w=86400'
            assert answer.headers["ratelimit-policy"] == policy
            assert answer.headers["ratelimit"].startswith(f'"posts";r={posts};t=')
    async with gateway(tells) as (gate, _):
        assert "ratelimit" not in (await gate.post(Accept="text/event-stream")).headers


async def test_days_are_told_from_one_to_another(redis_url: str) -> None:
    async with running(redis_url=redis_url) as gate:
        store, user = gate.gateway.store, somebody()
        now = await today(store)
        for ago in (0, 1, 34):
            day = now - timedelta(ago)
            key = subject_keys(user).usage((day - date(1970, 1, 1)).days)
            await store.call("HSET", key, "p\nm\nstreams", ago + 1)

        async def streams(first: int | None, last: int | None) -> list[tuple[str, int]]:
            named = {"from": first, "to": last}
            query = {
                name: str(now - timedelta(ago)) for name, ago in named.items() if ago is not None
            }
            answer = await gate.http.get("/usage", params=query, headers=gate.cookie(user))
            assert answer.status_code == 200, answer.text
            return [(each["day"], each["streams"]) for each in answer.json()["days"]]

        found = [(str(now - timedelta(ago)), ago + 1) for ago in (34, 1, 0)]
        assert await streams(None, None) == found[2:]
        assert await streams(34, None) == await streams(34, 0) == found
        assert await streams(34, 1) == found[:2]
        assert await streams(1, 1) == found[1:2]
        assert await streams(0, -1) == found[2:]


WRONG = [
    *("from=yesterday", "from=", "to=", "from=2026-02-30", "from=20260101", "to=2026-1-1"),
    *("from=2026-01-01T00:00", "from=%D9%A2026-01-01", "from=2026-01-01%00", "to=0000-01-01"),
    *("from=2026-01-01&from=2026-01-01", "to=2026-01-01&to=2026-01-02", "from=-999-01-01"),
    *("from=2026-01-02&to=2026-01-01", "from=2016-01-01&to=2026-01-01", "from=1999-01-01"),
    *("from=2026-01-01&to=2026-02-05", "to=2026-01-01", "from=9999-12-31", "from=0001-01-01"),
    *("from=0001-01-01&to=0001-02-28", "from=9999-01-01&to=9999-12-31"),
]


async def test_days_that_cannot_be_told_are_refused_with_a_way_out(redis_url: str) -> None:
    async with running(redis_url=redis_url, service_tokens=TOKEN) as gate:
        for query in WRONG:
            own = await gate.http.get(f"/usage?{query}", headers=gate.cookie())
            for answer in (own, await of_user(gate, "alice", f"?{query}")):
                problem = answer.json()
                assert (answer.status_code, problem["code"]) == (400, "bad_range"), query
                assert problem["detail"]
        most = await usage(gate, "alice", from_="2026-01-01", to="2026-02-04")
        assert most.json()["days"] == []


async def test_a_range_of_too_many_days_is_told_which_will_do() -> None:
    async with running() as gate:
        answer = await usage(gate, "alice", from_="2025-01-01", to="2026-02-05")
        assert "from=2026-01-02 will do" in answer.json()["detail"]
        will_do = await usage(gate, "alice", from_="2026-01-02", to="2026-02-05")
        assert will_do.status_code == 200


async def test_who_may_ask_is_as_with_every_other_url() -> None:
    page = "https://app.example"
    async with running(allowed_origins=page, service_tokens=TOKEN) as gate:
        nobody = await gate.http.get("/usage?from=x")
        assert (nobody.status_code, nobody.json()["reason"]) == (401, "no_cookie")
        foreign = {**gate.cookie(), "Origin": "https://else.example"}
        refused = await gate.http.get("/usage", headers=foreign)
        assert (refused.status_code, refused.json()["code"]) == (403, "foreign_origin")
        ours = await gate.http.get("/usage", headers={**gate.cookie(), "Origin": page})
        assert ours.headers["access-control-allow-origin"] == page
        for path in ("/usage", "/users/alice/usage"):
            before = await gate.http.options(path, headers={"Origin": page})
            assert (before.status_code, before.headers["allow"]) == (204, "GET")
            for method in ("HEAD", "POST", "DELETE"):
                other = await gate.http.request(method, path, headers=gate.cookie())
                assert (other.status_code, other.headers["allow"]) == (405, "GET")
        own = await gate.http.get("/users/alice/usage?from=x", headers=gate.cookie())
        assert (own.status_code, own.headers["www-authenticate"]) == (401, "Bearer")
        for subject in ("", "%00", "x" * 257):
            answer = await gate.http.get(f"/users/{subject}/usage", headers=SERVICE)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_subject")


async def test_a_store_that_is_away_is_said(own_redis: RedisServer) -> None:
    limits = {"streams": 1}
    async with running(
        redis_url=own_redis.url, service_tokens=TOKEN, limits=limits, lease=10
    ) as gate:
        own_redis.kill()
        for answer in await asyncio.gather(usage(gate, "alice"), of_user(gate, "alice")):
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        own_redis.start()


async def test_who_looks_with_another_lease_takes_nobodys_slot(shared_redis: RedisServer) -> None:
    limits = {"streams": 2}
    given: dict[str, Any] = {"redis_url": shared_redis.url, "limits": limits}
    async with running(**given, lease=60) as owner, running(**given, lease=1) as other:
        user, store = somebody(), owner.gateway.store
        leases = subject_keys(user).leases
        permits = owner.gateway.records.limits.permits
        await store.script(*permits.to_run(user, "a-stream", "default", Taken()))
        await usage(other, user)
        assert await store.call("ZCARD", leases) == 1
        assert (await usage(owner, user)).json()["remaining"] == {"streams": 1}


# The command


def command(*arguments: str, redis_url: str = "", config: str = "") -> Result:
    """Run `gateway usage` in this process."""
    given = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_CONFIG": config}
    return CliRunner().invoke(main, ["usage", *arguments], env=given)


async def test_an_operator_reads_the_same_at_the_terminal(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        'upstream_url = "http://127.0.0.1:9/v1"\n'
        "[limits]\ntokens_per_day = 100\n"
        "[presets.default]\nprice = {prompt = 2.0, completion = 4.0}\n"
        "limits = {cost_per_day = 0.5}\n"
    )
    redis, (user, evil) = shared_redis.url, (somebody(), "evil\x1b[2J " + "x" * 40)
    given = load({"config": str(config)})
    limits = {"limits": given.limits, "presets": given.presets}
    async with gateway(tells, redis_url=redis, **limits) as (gate, _):
        for model in ("small", evil):
            url = await gate.ticket(ask(model=model), subject=user)
            await gate.http.get(url, headers=gate.cookie(user))
        shown = (await usage(gate, user)).json()

    def run(*arguments: str) -> Result:
        return command(user, *arguments, redis_url=redis, config=str(config))

    assert json.loads((await in_thread(partial(run, "--json"))).stdout) == shown
    day = shown["days"][0]["day"]
    lines = (await in_thread(partial(run, "--from", day, "--to", day))).stdout.splitlines()
    head = "DAY PRESET MODEL STREAMS PROMPT COMPLETION CACHED ESTIMATED COST"
    assert " ".join(lines[0].split()) == head
    assert " ".join(lines[2].split()) == f"{day} default small 1 11 5 0 0 0.000042"
    assert "x… " in lines[1]
    assert all(line.isprintable() for line in lines)
    assert [" ".join(line.split()) for line in lines[3:]] == [
        *("", "PRESET LIMIT OF LEFT", "(all) tokens_per_day 100 68"),
        "default cost_per_day 0.5 0.499916",
    ]


def test_what_is_asked_wrongly_at_the_terminal_is_said() -> None:
    gone = f"redis://127.0.0.1:{free_port()}/0"
    ten_years = ["--from", "2016-01-01", "--to", "2026-01-01"]
    for code, words, arguments in (
        (2, "GATEWAY_REDIS_URL: missing; an embedded store", ["alice"]),
        (1, "gateway: Redis: ", ["alice", "--redis-url", gone]),
        (2, "Write a day as", ["alice", "--from", "yesterday"]),
        (
            2,
            "at most 35",
            ["alice", *ten_years, "--redis-url", gone],
        ),
        (2, "printable", ["a\n", "--redis-url", gone]),
        (2, "SUBJECT", []),
    ):
        result = command(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr
        assert "Traceback" not in result.stderr


# In the application


async def test_an_application_asks_without_a_request(redis_url: str) -> None:
    limits = {"streams": 3}
    async with gateway(tells, redis_url=redis_url, limits=limits) as (gate, _):
        user, now = somebody(), await today(gate.gateway.store)
        await gate.http.get(await gate.ticket(subject=user), headers=gate.cookie(user))
        told = await gate.gateway.usage(user)
        assert told.told() == (await usage(gate, user)).json()
        assert (told.days[0].day, told.days[0].prompt_tokens, told.remaining) == (now, 11, limits)
        assert (await gate.gateway.usage(user, now - timedelta(2), now - timedelta(1))).days == []
        for subject, first, code in (
            (user, date(1999, 1, 1), "bad_range"),
            ("", now, "bad_subject"),
        ):
            with pytest.raises(Rejected) as caught:
                await gate.gateway.usage(subject, first)
            assert caught.value.code == code

"""The Redis of the simulation answers as a real one does: the same commands to both."""

import hashlib
import random
from itertools import product
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis as Client
from redis.exceptions import ResponseError

import gateway
from tests.simulation.redis import Redis, RedisError
from tests.support import RedisServer

# The real clock cannot be set: the scripts get one that stands still.
SCRIPTS = {
    path.stem: path.read_bytes().replace(b"redis.call('TIME')", b"{'1700000000', '5000'}")
    for path in (Path(gateway.__file__).parent / "store" / "lua").glob("*.lua")
}
KEYS = [b"{t}a", b"{t}b"]
OF_OTHERS = {
    "admit": [b"{t}bytes", b"{t}until"],
    "settle": [b"{t}bytes", b"{t}until"],
    "permit": [b"{t}slots", b"{t}leases", b"{t}today", b"{t}posts", b"{t}posts.p"],
    "book": [b"{t}booked", b"{t}today", b"{t}usage:1", b"{t}usage:2"],
    "push": [b"{t}events", b"{t}channel", b"{t}watchers", b"{t}message"],
    "remember": [b"{t}asked"],
    "owe": [b"{t}a", b"{t}hook"],
    **{name: [b"{t}hook"] for name in ("tell", "put_off", "told")},
    "pack": [*KEYS, b"{t}packed"],
    "read": [KEYS[1], b"{t}packed"],
}
OWNERS = [b"me", b"you"]
VALUES = b"""local kept = redis.pcall('HINCRBY', KEYS[1], 'f', ARGV[1])
return {1, {2.7, {kept, true}, redis.call('PING')}, ARGV[1] + 0.5, {1, false, 3, nil, 5}}"""


class Both:
    """Sends each command to the model and to a real server, and compares the answers."""

    def __init__(self, url: str) -> None:
        self.model = Redis()
        self.real = Client.from_url(url, protocol=2)
        self.real.flushdb()
        self.real.script_flush()

    def send(self, *command: Any) -> Any:
        words = [each if isinstance(each, bytes) else str(each).encode() for each in command]
        seconds, micros = self.real.time()
        self.model.now = int(seconds) * 1_000_000 + int(micros)
        ours = self.model.run(words)
        packed = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
        connection = self.real.connection_pool.get_connection()
        try:
            connection.send_packed_command([packed])  # type: ignore[no-untyped-call]
            theirs: Any = connection.read_response()
        except ResponseError as error:
            theirs = error
        finally:
            self.real.connection_pool.release(connection)
        if command[0] == "SMEMBERS" and isinstance(ours, list):
            ours, theirs = sorted(ours), sorted(theirs)
        assert _plain(ours) == _plain(theirs), words
        return ours

    def script(self, name: str, *args: Any) -> Any:
        digest = hashlib.sha1(SCRIPTS[name]).hexdigest()
        keys = OF_OTHERS.get(name, KEYS)
        reply = self.send("EVALSHA", digest, len(keys), *keys, *args)
        if isinstance(reply, RedisError):
            reply = self.send("EVAL", SCRIPTS[name], len(keys), *keys, *args)
        return reply


def _plain(reply: Any) -> Any:
    """Leave out an error's words: those of a script name the line they are from."""
    if isinstance(reply, Exception):
        return "an error"
    if isinstance(reply, list):
        return [_plain(each) for each in reply]
    return reply.encode() if isinstance(reply, str) else reply


def _command(rng: random.Random, epoch: int) -> list[Any]:
    field, number = rng.choice([b"f", b"g"]), rng.randrange(4)
    log, record = KEYS[1], KEYS[0]
    return rng.choice(
        [
            *(["HSET", record, field, number], ["HGET", record, field], ["HDEL", record, field]),
            *(
                ["HSETNX", record, field, number],
                ["HINCRBY", record, b"n", number],
                ["HMGET", record, b"f", b"g", b"state"],
            ),
            *(
                ["XADD", log, f"{epoch}-{number}", number, b"frames"],
                ["XLEN", log],
                ["EXISTS", record, log],
            ),
            *(["XADD", log, "NOMKSTREAM", f"{epoch}-{number}", number, b"frames"],),
            *(["XRANGE", log, "-", "+", "COUNT", 3], ["XRANGE", log, f"({epoch}-1", "+"]),
            *(["XREVRANGE", log, "+", "-", "COUNT", 1], ["DEL", rng.choice(KEYS)]),
            *(["XDEL", log, f"{epoch}-{number}", "1-1"], ["XRANGE", b"{t}events", "-", "+"]),
            *(["DEL", b"{t}message"], ["HDEL", b"{t}channel", b"server"]),
            *(["SET", b"{t}s", number, "NX", "PX", 90_000], ["GET", b"{t}s"], ["GET", record]),
            *(["SADD", b"{t}m", field], ["SREM", b"{t}m", field], ["SMEMBERS", b"{t}m"]),
            *(["PEXPIRE", rng.choice(KEYS), 90_000], ["HGETALL", b"{t}none"], ["SADD", log, 1]),
        ]
    )


def _sorted(rng: random.Random) -> list[Any]:
    key, member = b"{t}z", rng.choice([b"a", b"b", b"c", b"d"])
    score = rng.choice([-1, 0, 1.5, 2, 1_700_000_000_005, "inf", "x"])
    low = rng.choice(["-inf", 0, "(0", "(1.5", 2, "x"])
    high = rng.choice(["+inf", 2, "(2", "(1700000000005"])
    first, last = rng.randrange(-3, 3), rng.randrange(-3, 3)
    limit = ["LIMIT", rng.randrange(2), rng.randrange(-1, 3)]
    scores = rng.choice([[], ["WITHSCORES"]])
    options = rng.choice([[], [], ["NX"], ["XX"], ["GT"], ["LT", "CH"], ["CH"]])
    return rng.choice(
        [
            *[["ZADD", key, *options, score, member, 2, b"e"]] * 3,
            *(["ZREM", key, member, b"e"], ["ZSCORE", key, member], ["ZCARD", key]),
            *(["ZRANGE", key, first, last, *scores], ["ZREVRANGE", key, first, last, *scores]),
            ["ZRANGEBYSCORE", key, low, high, *scores, *limit],
            ["ZRANGE", key, low, high, "BYSCORE", *limit, *scores],
            ["ZRANGE", key, high, low, "BYSCORE", "REV", *limit],
            *(["ZREVRANGEBYSCORE", key, high, low, *scores], ["ZCOUNT", key, low, high]),
            *(["ZREMRANGEBYSCORE", key, low, 1], ["ZREMRANGEBYRANK", key, first, -2]),
            *(["ZADD", KEYS[0], 1, member], ["HGET", key, b"f"], ["PTTL", b"{t}none"]),
            ["HINCRBY", b"{t}h", member, rng.choice([3, -4, "x", (1 << 63) - 9])],
            *(["HDEL", b"{t}h", member, b"e"], ["HGETALL", b"{t}h"], ["DEL", key]),
            *[["EVAL", VALUES, 1, b"{t}h", rng.choice([1, 1 << 52])]] * 2,
        ]
    )


def _script(rng: random.Random, epoch: int) -> tuple[str, list[Any]]:
    owner, nonce = rng.choice(OWNERS), rng.choice(["n1", "n2"])
    last, end = f"{epoch}-{rng.randrange(3)}", f"{epoch}-{rng.randrange(2, 6)}"
    ends = ["done", end, 1, b"end", "cancelled", end, 1, b"stop"]
    torn = rng.choice(["", "", f"{epoch}-0 1", f"{last} 2"])
    before: list[list[Any]] = [[0, torn], [-1, torn], [1, torn, "1-3", 2, b"text"]]
    slot = rng.choice([[0, 0, ""], [50, 5, "p"], [7, 0, "other"]])
    packs: list[list[Any]] = [[f"{epoch}-0", "", 0], [last, b"\x00pack", 500], []]
    bounds = [rng.choice([0, 2]), rng.choice([0, 1]), rng.choice([0, 100]), rng.choice([0, 9])] * 2
    hook: list[tuple[str, list[Any]]] = [
        ("create", [0, 90_000, "digest", "webhook", "p http://x"]),
        ("owe", [90_000]),
        ("tell", [rng.choice([0, 20_000]), 90_000, rng.choice(["", "1"])]),
        ("put_off", [rng.choice([0, 5_000]), 90_000, 3, b"body", b"{}"]),
        ("told", [90_000]),
    ]
    return rng.choice(
        [
            *hook,
            ("create", [rng.choice([0, 60_000]), 90_000, "digest", "request", b"{}"]),
            ("claim", [owner, nonce, 90_000, rng.randrange(2)]),
            ("takeover", [owner, rng.choice(OWNERS), nonce, 90_000]),
            ("hold", [owner, epoch, 90_000, *rng.choice(before), "subject", "alice"]),
            ("seal", [owner, epoch, last, 90_000, b"{}", *ends, rng.choice(["", "bill"])]),
            ("cancel", [90_000, b"event: end\n", b"{}"]),
            ("admit", [5_000, rng.choice([0, 10_000]), owner, rng.choice([900, 3_000]), 90_000]),
            ("settle", [90_000, owner, rng.choice([0, 700]), 10_000, b"she", 0, 0]),
            ("permit", [rng.choice(["post", "run", "look"]), 5_000, owner, "p", 70, 3, *bounds]),
            ("permit", ["hold", 5_000, owner, *slot, b"she", 0, 0, ""]),
            ("book", [owner, 1, 90_000, 99_000, "p", "m", 3, 4, 0, 1, 5, 1]),
            ("remember", [90_000, owner, 1]),
            ("push", [b"data: x\n", 90_000, 3, rng.choice([60, 900]), 90_000, owner, 90_000]),
            ("pack", [end, rng.randrange(1, 4), 3, *rng.choice(packs), end, "", 0]),
            ("read", [rng.choice(["", last, end]), rng.choice([1, 700]), 200]),
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_model_answers_as_a_real_redis(seed: int, shared_redis: RedisServer) -> None:
    rng = random.Random(seed)
    both = Both(shared_redis.url.replace("/0", "/9"))
    epoch = 5
    for _ in range(120):
        if rng.random() < 0.4:
            name, args = _script(rng, epoch)
            reply = both.script(name, *args)
            told = isinstance(reply, list) and name in {"claim", "takeover"}
            if told and reply[0] in {b"claimed", b"taken"}:
                epoch = int(reply[1])
        else:
            both.send(*rng.choice([_command(rng, epoch), _sorted(rng)]))
    both.real.close()


def test_a_log_is_packed_and_read_as_by_a_real_redis(shared_redis: RedisServer) -> None:
    both = Both(shared_redis.url.replace("/0", "/9"))
    both.script("create", 60_000, 90_000, "digest", "request", b"{}")
    _, epoch, _ = both.script("claim", "me", "n1", 90_000, 0)
    first, last, end = (f"{epoch.decode()}-{seq}" for seq in (0, 2, 3))
    both.send("XADD", KEYS[1], last, 2, b"frames")
    packs = [first, "", 0, last, b"\x00pack", 500, end, "", 0]
    assert both.script("pack", end, 3, 3, *packs) == 0
    both.script("seal", "me", epoch, last, 90_000, b"{}", *["done", end, 1, b"end"] * 2, "")
    assert both.script("pack", end, 4, 3, *packs) == 0
    assert both.script("pack", end, 3, 3, *packs) == 1
    assert both.script("pack", end, 3, 3, *packs) == 0
    for at, size in product(("", first, f"{epoch.decode()}-1", last, end), (1, 700, 1000)):
        assert both.script("read", at, size, 200)
    both.send("XRANGE", b"{t}packed", "-", "+")
    both.send("HGETALL", KEYS[0])
    both.real.close()

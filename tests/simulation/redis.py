"""A small Redis: exactly the commands that the gateway sends, and its scripts in a real Lua 5.1.

Pure: no clock and no connections. `Redis.now` is set by whoever runs it. What it answers is
compared with a real server in `test_model.py`.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lupa import lua51

from tests.simulation import sorted_sets

Args = list[bytes]
Reply = Any  # bytes, int, None, list, Status or RedisError (never raised to the outside).
Id = tuple[int, int]

DENIED_WHEN_FULL = {b"SET", b"HSET", b"HSETNX", b"HINCRBY", b"SADD", b"XADD", b"ZADD"}
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_OOM = "OOM command not allowed when used memory > 'maxmemory'."


class RedisError(Exception):
    """An error reply."""


class Status(str):
    """A simple string, as OK."""


class Stream(list[tuple[Id, Args]]):
    """A stream: entries in the order of their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Id = (0, 0)


class Redis:
    """The data of one server and what commands do to it; `now` is its clock, in microseconds."""

    def __init__(self) -> None:
        self.now = 0
        self.process = 0  # Which one it is: another begins to write its own history.
        self.data: dict[bytes, Any] = {}
        self.expires: dict[bytes, int] = {}  # In milliseconds.
        self.published: list[tuple[bytes, bytes]] = []
        self.scripts: dict[bytes, str] = {}
        self.full = False
        self.wrote = False
        self.on_entry: Callable[[bytes, Id, Args], None] = lambda key, number, fields: None
        self._lua = _Lua.shared()

    def run(self, command: Args) -> Reply:
        """Run one command; an error is returned, not raised."""
        try:
            return self._call(command)
        except RedisError as error:
            return error

    def _call(self, command: Args) -> Reply:
        name = command[0].upper()
        method = _COMMANDS.get(name)
        if method is None:
            raise RedisError(f"ERR unknown command '{name.decode()}'")
        if self.full and name in DENIED_WHEN_FULL:
            raise RedisError(_OOM)
        try:
            return method(self, *command[1:])
        except ValueError as error:
            raise RedisError(f"ERR {error}") from error

    # Keys

    def value(self, key: bytes, kind: type) -> Any:
        """Return what a key holds, None if nothing; raises if it is of another kind."""
        due = self.expires.get(key)
        if due is not None and due <= self.now // 1000:
            self.forget(key)
        value = self.data.get(key)
        if value is not None and type(value) is not kind:
            raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def forget(self, key: bytes) -> bool:
        """Drop a key."""
        self.expires.pop(key, None)
        return self.data.pop(key, None) is not None

    def _exists(self, key: bytes) -> bool:
        due = self.expires.get(key)
        if due is not None and due <= self.now // 1000:
            self.forget(key)
        return key in self.data

    def make(self, key: bytes, kind: type) -> Any:
        """Return what a key holds, to be written to."""
        value = self.value(key, kind)
        if value is None:
            value = self.data[key] = kind()
        self.wrote = True
        return value

    def _del(self, *keys: bytes) -> Reply:
        self.wrote = True
        return sum(self._exists(key) and self.forget(key) for key in keys)

    def _exist(self, *keys: bytes) -> Reply:
        return sum(self._exists(key) for key in keys)

    def _pexpire(self, key: bytes, milliseconds: bytes) -> Reply:
        if not self._exists(key):
            return 0
        self.wrote = True
        self.expires[key] = self.now // 1000 + int(milliseconds)
        return 1

    def _pttl(self, key: bytes) -> Reply:
        if not self._exists(key):
            return -2
        return self.expires[key] - self.now // 1000 if key in self.expires else -1

    def _get(self, key: bytes) -> Reply:
        return self.value(key, bytes)

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        words = [each.upper() for each in options]
        if b"NX" in words and self._exists(key):
            return None
        self.wrote = True
        self.data[key] = value
        self.expires.pop(key, None)
        if b"PX" in words:
            self.expires[key] = self.now // 1000 + int(options[words.index(b"PX") + 1])
        return Status("OK")

    # Hashes and sets

    def _hset(self, key: bytes, *pairs: bytes) -> Reply:
        fields = self.make(key, dict)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(fields) - before

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> Reply:
        fields = self.make(key, dict)
        new = field not in fields
        fields.setdefault(field, value)
        return int(new)

    def _hincrby(self, key: bytes, field: bytes, by: bytes) -> Reply:
        more = int(by)
        fields = self.make(key, dict)
        result = int(fields.get(field, b"0")) + more
        if result != max(_LEAST, min(result, _MOST)):
            raise RedisError("ERR increment or decrement would overflow")
        fields[field] = b"%d" % result
        return result

    def _hget(self, key: bytes, field: bytes) -> Reply:
        return (self.value(key, dict) or {}).get(field)

    def _hmget(self, key: bytes, *fields: bytes) -> Reply:
        found = self.value(key, dict) or {}
        return [found.get(field) for field in fields]

    def _hlen(self, key: bytes) -> Reply:
        return len(self.value(key, dict) or {})

    def _hexists(self, key: bytes, field: bytes) -> Reply:
        return int(field in (self.value(key, dict) or {}))

    def _hgetall(self, key: bytes) -> Reply:
        return [part for pair in (self.value(key, dict) or {}).items() for part in pair]

    def _hdel(self, key: bytes, *fields: bytes) -> Reply:
        return self.drop(key, self.value(key, dict), fields)

    def _sadd(self, key: bytes, *members: bytes) -> Reply:
        found = self.make(key, _Set)
        before = len(found)
        found.update(dict.fromkeys(members))
        return len(found) - before

    def _srem(self, key: bytes, *members: bytes) -> Reply:
        return self.drop(key, self.value(key, _Set), members)

    def _smembers(self, key: bytes) -> Reply:
        return list(self.value(key, _Set) or ())

    def drop(self, key: bytes, found: dict[bytes, Any] | None, names: Sequence[bytes]) -> int:
        """Take names out of what a key holds; one that holds nothing is no key."""
        if not found:
            return 0
        gone = [name for name in dict.fromkeys(names) if name in found]
        for name in gone:
            del found[name]
        self.wrote = self.wrote or bool(gone)
        if not found:
            self.forget(key)
        return len(gone)

    # Streams

    def _xadd(self, key: bytes, *rest: bytes) -> Reply:
        words = list(rest)
        if words[0].upper() == b"NOMKSTREAM":
            words.pop(0)
            if self.value(key, Stream) is None:
                return None
        number = _id(words.pop(0))
        stream = self.value(key, Stream)
        if number == (0, 0):
            raise RedisError("ERR The ID specified in XADD must be greater than 0-0")
        if stream is not None and number <= stream.last:
            raise RedisError(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item"
            )
        stream = self.make(key, Stream)
        stream.append((number, words))
        stream.last = number
        self.on_entry(key, number, words)
        return b"%d-%d" % number

    def _xdel(self, key: bytes, *numbers: bytes) -> Reply:
        stream, gone = self.value(key, Stream), {_id(each) for each in numbers}
        kept = [each for each in stream or () if each[0] not in gone]
        count = len(stream or ()) - len(kept)
        if count:
            self.wrote = True
            stream[:] = kept
        return count

    def _xlen(self, key: bytes) -> Reply:
        return len(self.value(key, Stream) or [])

    def _xrange(self, key: bytes, start: bytes, end: bytes, *count: bytes) -> Reply:
        return _limited(self._between(key, start, end), count)

    def _xrevrange(self, key: bytes, end: bytes, start: bytes, *count: bytes) -> Reply:
        return _limited(self._between(key, start, end)[::-1], count)

    def _between(self, key: bytes, start: bytes, end: bytes) -> list[Any]:
        entries = self.value(key, Stream) or []
        if start != b"-":
            low, beyond = _id(start.removeprefix(b"(")), start.startswith(b"(")
            entries = [each for each in entries if each[0] > low or (each[0] == low and not beyond)]
        if end != b"+":
            entries = [each for each in entries if each[0] <= _id(end)]
        return [[b"%d-%d" % number, list(fields)] for number, fields in entries]

    # The rest

    def _time(self) -> Reply:
        return [b"%d" % (self.now // 1_000_000), b"%d" % (self.now % 1_000_000)]

    def _info(self, _: bytes) -> Reply:
        return b"# Replication\r\nmaster_replid:%040x\r\n" % self.process

    def _ping(self) -> Reply:
        return Status("PONG")

    def _ok(self, *_: bytes) -> Reply:
        return Status("OK")

    def _publish(self, channel: bytes, message: bytes) -> Reply:
        self.published.append((channel, message))
        return 0

    def _evalsha(self, digest: bytes, count: bytes, *rest: bytes) -> Reply:
        text = self.scripts.get(digest)
        if text is None:
            raise RedisError("NOSCRIPT No matching script.")
        return self._script(text, int(count), rest)

    def _eval(self, text: bytes, count: bytes, *rest: bytes) -> Reply:
        self.scripts[hashlib.sha1(text).hexdigest().encode()] = text.decode()
        return self._script(text.decode(), int(count), rest)

    def _script(self, text: str, count: int, rest: Sequence[bytes]) -> Reply:
        before, self.wrote = self.wrote, False
        try:
            return self._lua.run(text, rest[:count], rest[count:], self._from_script)
        finally:
            self.wrote = self.wrote or before

    def _from_script(self, command: Args) -> Reply:
        # A script that has written may go on although the memory is full.
        full, self.full = self.full, self.full and not self.wrote
        try:
            return self._call(command)
        finally:
            self.full = full


class _Set(dict[bytes, None]):
    """A set in the order in which it was filled: the same at each run."""


def _id(text: bytes) -> Id:
    first, _, second = text.partition(b"-")
    return int(first), int(second or 0)


def _limited(entries: list[Any], count: Sequence[bytes]) -> list[Any]:
    return entries[: int(count[1])] if count else entries


class _Lua:
    """One warm runtime for all; the scripts are pure but for `redis.call`."""

    _shared: "_Lua | None" = None

    def __init__(self) -> None:
        self._runtime = lua51.LuaRuntime(encoding=None, register_eval=False)
        self._functions: dict[str, Any] = {}
        self._call: Callable[[Args], Reply]
        self._globals = self._runtime.globals()
        self._globals[b"redis"] = self._runtime.table_from(
            {b"call": self._called, b"pcall": self._tried}
        )

    @classmethod
    def shared(cls) -> "_Lua":
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    def run(
        self,
        text: str,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        call: Callable[[Args], Reply],
    ) -> Reply:
        function = self._functions.get(text)
        if function is None:
            function = self._functions[text] = self._runtime.compile(text.encode())
        self._call = call
        self._globals[b"KEYS"] = self._runtime.table_from(keys)
        self._globals[b"ARGV"] = self._runtime.table_from(args)
        return _from_lua(function())

    def _called(self, *words: Any) -> Any:
        return self._to_lua(self._call([_word(each) for each in words]))

    def _tried(self, *words: Any) -> Any:
        try:
            return self._called(*words)
        except RedisError as error:
            return self._runtime.table_from({b"err": str(error).encode()})

    def _to_lua(self, reply: Reply) -> Any:
        if isinstance(reply, list):
            return self._runtime.table_from([self._to_lua(each) for each in reply])
        if isinstance(reply, Status):
            return self._runtime.table_from({b"ok": reply.encode()})
        return False if reply is None else reply


def _word(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float) and not (value.is_integer() and abs(value) < _MOST // 2):
        return b"%.17g" % value
    return b"%d" % value


def _from_lua(value: Any) -> Reply:
    if isinstance(value, bool):
        return 1 if value else None
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, int | float):
        return int(value)
    for kind, made in ((b"err", RedisError), (b"ok", Status)):
        if isinstance(value[kind], bytes):
            return made(value[kind].decode())
    items: list[Reply] = []
    while (item := value[len(items) + 1]) is not None:
        items.append(_from_lua(item))
    return items


_COMMANDS: dict[bytes, Callable[..., Reply]] = {
    b"CLIENT": Redis._ok,
    b"DEL": Redis._del,
    b"EVAL": Redis._eval,
    b"EVALSHA": Redis._evalsha,
    b"EXISTS": Redis._exist,
    b"GET": Redis._get,
    b"HDEL": Redis._hdel,
    b"HGET": Redis._hget,
    b"HGETALL": Redis._hgetall,
    b"HEXISTS": Redis._hexists,
    b"HLEN": Redis._hlen,
    b"HMGET": Redis._hmget,
    b"HSET": Redis._hset,
    b"HINCRBY": Redis._hincrby,
    b"HSETNX": Redis._hsetnx,
    b"INFO": Redis._info,
    b"PEXPIRE": Redis._pexpire,
    b"PING": Redis._ping,
    b"PTTL": Redis._pttl,
    b"PUBLISH": Redis._publish,
    b"SADD": Redis._sadd,
    b"SELECT": Redis._ok,
    b"SET": Redis._set,
    b"SMEMBERS": Redis._smembers,
    b"SREM": Redis._srem,
    b"TIME": Redis._time,
    b"XADD": Redis._xadd,
    b"XDEL": Redis._xdel,
    b"XLEN": Redis._xlen,
    b"XRANGE": Redis._xrange,
    b"XREVRANGE": Redis._xrevrange,
    **sorted_sets.COMMANDS,
}

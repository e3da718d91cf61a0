"""Pools: what GATEWAY_REDIS_URL says, and the connections that follow from it.

    redis://[user:password@]host[:port][/db]                  rediss:// with TLS
    unix://[user:password@]/path/of/the/socket[?db=0]
    redis+sentinel://[user:password@]host:port,…/master[/db]  rediss+sentinel:// with TLS
    redis+cluster://[user:password@]host:port,…               rediss+cluster:// with TLS

Options follow after `?`. What redis-py would take there as well (timeouts, retries, the protocol,
decoding, the number of connections) is the gateway's own to decide: it depends on each of them.
What is wrong is said without what was given, as that may be a part of a password.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.errors import SettingsError

TIMEOUT = 2.0  # Seconds for one reply: an EventSource must hear "come back" before it gives up.
CONNECTIONS = 4

_NAME = "GATEWAY_REDIS_URL"
_LOGIN = frozenset(("username", "password", "client_name"))
_FILES = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
_TLS = _FILES | {
    *("ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers"),
    *("ssl_min_version", "ssl_password", "ssl_include_verify_flags", "ssl_exclude_verify_flags"),
}
_IDLE = "health_check_interval"  # Does no harm, and nothing: the gateway looks each second itself.
_OF_SENTINELS = "sentinel_"
_TLS_OF_SENTINELS = "sentinel_tls"
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Address:
    """Where Redis is, and how to log in; `kind` is embedded, single, sentinel or cluster."""

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    master: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # Of connections to Redis.
    asking: dict[str, Any] = field(default_factory=dict, repr=False)  # Of those to Sentinels.

    @classmethod
    def of(cls, url: str) -> "Address":
        """Return what a URL says; raises SettingsError, with files that cannot be read too."""
        try:
            return _address(url.strip())
        except SettingsError as error:
            raise SettingsError(f"{_NAME}: {error}") from None

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts} {self.master}".rstrip() or str(self.options.get("path", ""))

    def pool(self) -> ConnectionPool:
        """Return the connections to the one server, or to the master. Nothing is opened yet."""
        if self.kind == "embedded":
            fake: Any = FakeAsyncRedisConnection
            return ConnectionPool(connection_class=fake, server=FakeServer(), protocol=2)
        if self.kind != "sentinel":
            return ConnectionPool(**_ours(self.options))
        manager = SentinelManager([])  # type: ignore[no-untyped-call]
        manager.sentinels = [Redis.from_pool(self._asked(*each)) for each in self.hosts]
        given = _ours(self.options)
        given["ssl"] = given.pop("connection_class") is SSLConnection
        return SentinelConnectionPool(self.master, manager, **given)  # type: ignore[no-untyped-call]

    def _asked(self, host: str, port: int) -> ConnectionPool:
        """They are asked one after the other: one that hangs must leave time for the rest."""
        made = self.sentinel(host, port)
        made.connection_kwargs["socket_timeout"] = TIMEOUT / (len(self.hosts) + 2)
        return made

    def server(self, host: str, port: int) -> ConnectionPool:
        """Return the connections to one server of a Cluster."""
        return ConnectionPool(**_ours({**self.options, "host": host, "port": port}))

    def sentinel(self, host: str, port: int) -> ConnectionPool:
        """Return the connections to one of the Sentinels."""
        return ConnectionPool(**_ours({**self.asking, "host": host, "port": port}))


class SentinelManager(Sentinel):
    """Those who know the master; each question goes through a list of its own.

    redis-py moves who answered to the front of one list for all: two questions at once leave it
    twice there, and another one never asked again, nor closed.
    """

    async def discover_master(self, service_name: str) -> Any:
        """Return host and port of the master; raises MasterNotFoundError."""
        asking = copy(self)
        asking.sentinels = list(self.sentinels)
        found = await super(SentinelManager, asking).discover_master(service_name)
        self.sentinels = asking.sentinels
        return found


def _ours(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pool: what was given, and what the gateway depends on."""
    pinned = {
        "protocol": 2,  # The shape of replies depends on it.
        "retry": Retry(NoBackoff(), 0),  # Who may send again, and when, is decided above.
        "socket_timeout": None,  # A pipeline has its own; this one costs a task for every batch.
        "socket_connect_timeout": TIMEOUT,
        "max_connections": 2 * CONNECTIONS,
    }
    if given["connection_class"] is not UnixDomainSocketConnection:
        pinned["socket_keepalive"] = True
    return given | pinned


def addresses(hosts: str) -> list[tuple[str, int]]:
    """Return the parts of `host:port,host:port`, nothing if one of them is no address."""
    pairs = [each.rpartition(":") for each in hosts.split(",")]
    try:
        found = [(host.strip("[]"), int(port)) for host, _, port in pairs]
    except ValueError:
        return []
    return found if all(host and 0 < port < 1 << 16 for host, port in found) else []


def _address(url: str) -> Address:
    if not url:
        return Address("embedded")
    parts = _split(url)
    tls = parts.scheme.partition("+")[0] == "rediss"
    make = _KINDS.get(parts.scheme.replace("rediss", "redis", 1))
    if make is None:
        raise SettingsError(
            "must start with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, "
            "redis+cluster:// or rediss+cluster://"
        )
    made = make(parts, _options(parts), tls)
    _try(made)
    return made


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; no character of a password may have ended one of them early."""
    words = "a user name or password has its /, ?, # and @ as %2F, %3F, %23 and %40"
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        SplitResult("", hosts if "," not in hosts else "", "", "", "").port  # noqa: B018
    except ValueError:
        raise SettingsError(f"is no URL with a host and a port; {words}") from None
    lost = "@" not in parts.netloc and "@" in parts.path + parts.query
    if parts.fragment or "#" in url or (lost and parts.scheme != "unix"):
        raise SettingsError(f"cannot be read; {words}")
    return parts


def _options(parts: SplitResult) -> dict[str, str]:
    """Return what follows `?`, and the login."""
    given = dict(reversed(parse_qsl(parts.query, keep_blank_values=True)))  # The first one counts.
    if any("password" in name for name in given) or "@" in parts.query:
        known = {name: value for name, value in given.items() if name in _all_options()}
        if len(known) < len(given):  # Not even its name: it may be the rest of a password.
            raise SettingsError(f"has an option that is none; {_possible()}")
    for name, value in given.items():
        if name not in _all_options():
            raise SettingsError(f"?{name[:40]!r} is no option here; {_possible()}")
        if not value:
            raise SettingsError(f"?{name} is empty")
    login = parts.netloc.rpartition("@")[0].partition(":")
    for name, value in zip(("username", "password"), login[::2], strict=True):
        if value:
            given[name] = unquote(value)
    return given


def _all_options() -> set[str]:
    plain = {"db", _IDLE, *_LOGIN, *_TLS}
    return {*plain, _TLS_OF_SENTINELS, *(_OF_SENTINELS + each for each in plain)}


def _possible() -> str:
    return (
        "possible are db, client_name, username, password, ssl_… as in redis-py, and for Sentinels "
        "sentinel_username, sentinel_password, sentinel_ssl_…, sentinel_tls; the rest the gateway "
        "sets itself"
    )


def _single(parts: SplitResult, given: dict[str, str], tls: bool) -> Address:
    if "," in parts.netloc.rpartition("@")[2]:
        raise SettingsError("names several; that is redis+sentinel:// or redis+cluster://")
    options = _connection(given, tls)
    options["host"] = parts.hostname or "localhost"
    options["port"] = parts.port or 6379
    _set_db(options, parts.path.strip("/"))
    return Address("single", ((options["host"], options["port"]),), options=options)


def _socket(parts: SplitResult, given: dict[str, str], tls: bool) -> Address:
    if not parts.path.strip("/") or (parts.netloc and "@" not in parts.netloc):
        raise SettingsError("expected unix:///path/of/the/socket")
    options = _connection(given, tls)
    options |= {"connection_class": UnixDomainSocketConnection, "path": unquote(parts.path)}
    return Address("single", options=options)


def _watched(parts: SplitResult, given: dict[str, str], tls: bool) -> Address:
    nodes = addresses(parts.netloc.rpartition("@")[2])
    master, _, db = parts.path.strip("/").partition("/")
    if not nodes or not master:
        raise SettingsError("expected redis+sentinel://host:port,…/master")
    asks = _truth(_TLS_OF_SENTINELS, given.pop(_TLS_OF_SENTINELS, str(tls)))
    own = {
        name.removeprefix(_OF_SENTINELS): given.pop(name)
        for name in list(given)
        if name.startswith(_OF_SENTINELS)
    }
    if "db" in own:
        raise SettingsError("?sentinel_db is no option here: a Sentinel has none")
    # One authority has signed for both, as a rule; a login is of one of them only.
    shared = {name: value for name, value in given.items() if name in _TLS} if asks else {}
    if asks and not tls:
        given = {name: value for name, value in given.items() if name not in _TLS}
    options = _connection(given, tls)
    _set_db(options, unquote(db))
    asking = _connection({**shared, **own}, asks)
    return Address("sentinel", tuple(nodes), unquote(master), options, asking)


def _many(parts: SplitResult, given: dict[str, str], tls: bool) -> Address:
    nodes = addresses(parts.netloc.rpartition("@")[2])
    options = _connection(given, tls)
    _set_db(options, parts.path.strip("/"))
    if not nodes:
        raise SettingsError("expected redis+cluster://host:port,host:port")
    if options.pop("db", 0):
        raise SettingsError("a Cluster has the database 0 only")
    return Address("cluster", tuple(nodes), options=options)


_KINDS: dict[str, Callable[[SplitResult, dict[str, str], bool], Address]] = {
    "redis": _single,
    "unix": _socket,
    "redis+sentinel": _watched,
    "redis+cluster": _many,
}


def _connection(given: dict[str, str], tls: bool) -> dict[str, Any]:
    """Return the arguments of connections; raises SettingsError where one cannot be."""
    made: dict[str, Any] = {"connection_class": SSLConnection if tls else Connection}
    for name, value in given.items():
        if name.startswith(_OF_SENTINELS):
            raise SettingsError(f"?{name} is for redis+sentinel://")
        if name in _TLS and not tls:
            raise SettingsError(f"?{name} is for TLS, which is rediss://")
        if name != _IDLE:
            made[name] = _value(name, value)
    return made


def _value(name: str, value: str) -> Any:
    if name == "ssl_check_hostname":
        return _truth(name, value)
    if name == "ssl_cert_reqs":
        return value.lower().removeprefix("cert_")  # Celery's way to write it.
    if name == "client_name" and (not value.isprintable() or " " in value):
        raise SettingsError(f"?{name} has no white space")
    try:
        return URL_QUERY_ARGUMENT_PARSERS.get(name, str)(value)
    except (TypeError, ValueError):
        raise SettingsError(f"?{name} cannot be that") from None


def _truth(name: str, value: str) -> bool:
    if value.lower() not in _TRUTHS:
        raise SettingsError(f"?{name} is true or false")
    return _TRUTHS[value.lower()]


def _set_db(options: dict[str, Any], path: str) -> None:
    if path:
        if not path.isdecimal():
            raise SettingsError("after the host comes the number of a database")
        options.setdefault("db", int(path))
    if options.get("db", 0) < 0:
        raise SettingsError("?db is the number of a database")


def _try(address: Address) -> None:
    """Make what connections are made of, so that it fails now: later it would look like Redis away.

    Files are read for it; each connection reads them again, as certificates are renewed.
    """
    asking = {f"{_OF_SENTINELS}{name}": value for name, value in address.asking.items()}
    for name, value in {**address.options, **asking}.items():
        if name.removeprefix(_OF_SENTINELS) in _FILES:
            try:
                with open(value, "rb"):
                    pass
            except OSError as error:
                raise SettingsError(f"?{name} cannot be read: {error.strerror}") from None
    host, port = address.hosts[0] if address.hosts else ("", 0)
    pools = [address.sentinel(host, port)] if address.kind == "sentinel" else []
    pools.append(address.server(host, port) if address.kind == "cluster" else address.pool())
    for each in pools:
        try:
            connection: Any = each.make_connection()  # type: ignore[no-untyped-call]
            with suppress(AttributeError):  # Without TLS.
                connection.ssl_context.get()
        except (TypeError, ValueError, RedisError, OSError, ssl.SSLError) as error:
            raise SettingsError(f"TLS cannot be set up: {type(error).__name__}") from None

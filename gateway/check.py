"""Check: settings, Redis and upstream, each with a verdict, before anybody depends on them."""

from contextlib import suppress
from dataclasses import dataclass

from gateway.auth import authenticator
from gateway.cluster import SLOTS, Cluster
from gateway.errors import GatewayError, Passing, SettingsError, with_cause
from gateway.node import Node, sentinel_url, sentinels
from gateway.settings import Settings
from gateway.store import BEATS, Store
from gateway.upstream import Upstream

_SHORT = 16  # Characters; a secret below this can be guessed.
_NOT_FOUND = 404
_SENTINELS = 3  # Two of them must be left to agree on anything.


@dataclass(frozen=True, slots=True)
class Verdict:
    """One finding: ok, warning or fault."""

    level: str
    subject: str
    words: str

    @property
    def fault(self) -> bool:
        """Whether the gateway will not work."""
        return self.level == "fault"

    def __str__(self) -> str:
        return f"{self.level:8}{self.subject:10}{self.words}"


async def verdicts(settings: Settings) -> list[Verdict]:
    """Return what is to be said of everything the gateway depends on."""
    return [
        *_settings(settings),
        *await _store(settings),
        *[verdict for name in _presets(settings) for verdict in await _upstream(settings, name)],
    ]


def _settings(settings: Settings) -> list[Verdict]:
    found: list[Verdict] = []
    if not settings.secrets:
        found.append(Verdict("fault", "settings", "GATEWAY_SECRETS: missing"))
    for name in ("secrets", "cookie_secrets"):
        lengths = [len(each.get_secret_value()) for each in getattr(settings, name)]
        if min(lengths, default=_SHORT) < _SHORT:
            words = f"GATEWAY_{name.upper()}: shorter than {_SHORT} characters"
            found.append(Verdict("warning", "settings", words))
    try:
        authenticator(settings)
    except SettingsError as error:
        found.append(Verdict("fault", "settings", str(error)))
    return found or [Verdict("ok", "settings", "complete")]


def _presets(settings: Settings) -> list[str]:
    return [*(["default"] if "default" not in settings.presets else []), *settings.presets]


async def _store(settings: Settings) -> list[Verdict]:
    if settings.embedded:
        words = "embedded: one process, and nothing survives it"
        return [Verdict("warning", "redis", words)]
    try:
        store = Store(settings.redis_url)
        try:
            if store.cluster is not None:
                return await _cluster(store, store.cluster)
            info = _parsed(await store.call("INFO"))
        finally:
            await store.close()
    except GatewayError as error:
        return [Verdict("fault", "redis", str(error))]
    if info.get("cluster_enabled") == "1":
        words = "it is one server of a Cluster; say redis+cluster://"
        return [Verdict("fault", "redis", words)]
    if settings.redis_url.startswith("redis+sentinel:"):
        return _durability(info) + _failover(info) + await _sentinels(settings.redis_url)
    return _durability(info)


async def _cluster(store: Store, cluster: Cluster) -> list[Verdict]:
    shards = await cluster.shards()
    state = _parsed(await store.call("CLUSTER", "INFO"))
    words = f"cluster of {len(shards)} masters, state {state.get('cluster_state')}"
    assigned = state.get("cluster_slots_assigned", "0")
    if assigned != str(SLOTS):
        words += f", {assigned} of {SLOTS} slots have a master"
    found = [Verdict("ok" if _all_is_well(state) else "fault", "redis", words)]
    for master, replicas in shards:
        found += await _server(master, "fault")
        for replica in replicas:
            found += await _server(replica, "warning")
        if not replicas:
            words = f"{master.name}: has no replica: while it is away its streams wait"
            found.append(Verdict("warning", "redis", words + await _of_all(master)))
    books = [cluster.home(BEATS + tag) for tag in store.books]
    for node in {each for each in books if books.count(each) > len(books) // 2}:
        words = f"{node.name}: has most copies of the beats: while it is away no stream begins"
        found.append(Verdict("warning", "redis", words))
    return found


def _all_is_well(state: dict[str, str]) -> bool:
    return state.get("cluster_state") == "ok" and state.get("cluster_slots_assigned") == str(SLOTS)


async def _of_all(master: Node) -> str:
    """Return what is to be added where one master's absence stops the others too."""
    with suppress(GatewayError):  # It may be forbidden to ask.
        _, value = await master.call("CONFIG", "GET", "cluster-require-full-coverage")
        if value == b"yes":
            return ", and with cluster-require-full-coverage those of all others"
    return ""


async def _server(node: Node, level: str) -> list[Verdict]:
    """Return the verdicts on one server of a Cluster; `level` is of one that does not answer."""
    try:
        found = _durability(_parsed(await node.call("INFO")))
    except GatewayError as error:
        found = [Verdict(level, "redis", str(error))]
    return [Verdict(each.level, each.subject, f"{node.name}: {each.words}") for each in found]


def _parsed(info: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _durability(info: dict[str, str]) -> list[Verdict]:
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    found = [Verdict("ok", "redis", f"answers, version {version}")]
    if int(version.partition(".")[0]) < 7:
        found = [Verdict("fault", "redis", f"version {version}; 7.0 is the oldest that will do")]
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory") != "0":
        words = f"maxmemory-policy {policy} throws streams away; set noeviction"
        found.append(Verdict("warning", "redis", words))
    if info.get("aof_enabled") != "1":
        words = "appendonly is off: a restart forgets unredeemed tickets and ended streams"
        found.append(Verdict("warning", "redis", words))
    if info.get("connected_slaves", "0") != "0" and "min_slaves_good_slaves" not in info:
        words = "min-replicas-to-write is 0: a failover can lose a claim, and cost a second call"
        found.append(Verdict("warning", "redis", words))
    return found


def _failover(info: dict[str, str]) -> list[Verdict]:
    if info.get("connected_slaves", "0") != "0":
        return []
    return [Verdict("warning", "redis", "no replica is connected: there is nobody to fail over to")]


async def _sentinels(url: str) -> list[Verdict]:
    """Ask each one: a wrong address among them shows only when it is needed."""
    nodes, master, _ = sentinels(url)
    found: list[Verdict] = []
    if len(nodes) < _SENTINELS:
        words = f"{len(nodes)} Sentinel(s) named: name all, three at least, on own machines"
        found.append(Verdict("warning", "redis", words))
    for host, port in nodes:
        store = Store(sentinel_url(url, host, port))
        try:
            await store.call("SENTINEL", "CKQUORUM", master)
        except Passing as error:
            words = f"Sentinel {host}:{port}: {error}"
            found.append(Verdict("warning", "redis", words))
        finally:
            await store.close()
    return found or [Verdict("ok", "redis", f"{len(nodes)} Sentinels can agree on a failover")]


async def _upstream(settings: Settings, name: str) -> list[Verdict]:
    preset = settings.preset(name)
    assert preset is not None
    if not preset.url:
        if settings.presets:
            return []
        return [Verdict("fault", "upstream", "GATEWAY_UPSTREAM_URL: missing")]
    upstream = Upstream()
    try:
        status = await upstream.reach(preset)
        words = f"{name}: {preset.url} answers ({status} to OPTIONS; the key was not tried)"
        if status == _NOT_FOUND:
            words = f"{name}: {preset.url}: 404 to OPTIONS; is it the full URL of an endpoint?"
        return [Verdict("warning" if status == _NOT_FOUND else "ok", "upstream", words)]
    except GatewayError as error:
        words = with_cause(f"{name}: {preset.url}: {error}", error)
        return [Verdict("fault", "upstream", words)]
    finally:
        await upstream.close()

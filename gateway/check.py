"""Check: settings, Redis and upstream, each with a verdict, before anybody depends on them."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.auth.loading import authenticators
from gateway.auth.trial import remarks
from gateway.config.allowances import allowance, bounds_of
from gateway.config.preset_book import PresetBook
from gateway.config.presets import endpoint_doubts
from gateway.config.settings import Settings
from gateway.errors import GatewayError, SettingsError, Unavailable, redacted, with_cause
from gateway.runs.rehearsal import Rehearsal
from gateway.store.client import RedisClient
from gateway.store.keys import HEARTBEATS, new_id
from gateway.store.node import Node
from gateway.store.pools import Address
from gateway.store.topology import SLOTS, ClusterTopology
from gateway.upstream.client import Upstream

_SHORT = 16  # Characters; a secret below this can be guessed.
_NOT_THERE = frozenset((404, 410))
_AWAY = frozenset((502, 503, 504))  # Of a proxy that has nobody behind it, for now.
_DRAWS = 10_000  # Of ids, until one is at home on a given master.
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
        *await _login(settings),
        *_allowances(settings),
        *_limits(settings),
        *await _store(settings),
        *[verdict for name in _presets(settings) for verdict in await _upstream(settings, name)],
    ]


def _settings(settings: Settings) -> list[Verdict]:
    found: list[Verdict] = []
    if not settings.secrets:
        found.append(Verdict("fault", "settings", "GATEWAY_SECRETS: missing"))
    found += [Verdict("fault", "settings", words) for words in short_secrets(settings)]
    try:
        authenticators(settings)
    except SettingsError as error:
        found.append(Verdict("fault", "settings", with_cause(str(error), error)))
    return found or [Verdict("ok", "settings", "complete")]


def short_secrets(settings: Settings) -> list[str]:
    """Return what is to be said of secrets that can be guessed, a line for each setting."""
    found = []
    for name in ("secrets", "cookie_secrets"):
        lengths = [len(each.get_secret_value()) for each in getattr(settings, name)]
        if min(lengths, default=_SHORT) < _SHORT:
            words = f"shorter than {_SHORT} characters, which can be guessed"
            found.append(f"GATEWAY_{name.upper()}: {words}")
    return found


async def _login(settings: Settings) -> list[Verdict]:
    with suppress(SettingsError):  # It was told.
        told = await remarks(settings)
        return [Verdict(level, "login", with_cause(words, None)) for level, words in told]
    return []


def _allowances(settings: Settings) -> list[Verdict]:
    presets = settings.presets.items()
    told = [Verdict("ok", "preset", f"{name}: {allowance(each)}") for name, each in presets]
    return told + [
        Verdict("ok", "webhook", f"{name}: {redacted(each.webhook)} is told of each end; signed")
        for name, each in presets
        if each.webhook
    ]


def _limits(settings: Settings) -> list[Verdict]:
    """Return what users may ask for and spend, and where a cost is bounded that nobody counts."""
    book = PresetBook(settings)
    presets = {name: each for name in _presets(settings) if (each := book.get(name))}
    own = {f"{name}: ": each.limits for name, each in presets.items()}
    told = {where: bounds_of(each) for where, each in {"": settings.limits, **own}.items()}
    uncounted = [
        f"{name}: it has no price, so cost_per_day counts nothing of it"
        for name, each in presets.items()
        if (settings.limits.cost_per_day or each.limits.cost_per_day) and not each.price
    ]
    return [
        *(Verdict("ok", "limits", where + words) for where, words in told.items() if words),
        *(Verdict("warning", "limits", words) for words in uncounted),
    ]


def _presets(settings: Settings) -> list[str]:
    return [*(["default"] if "default" not in settings.presets else []), *settings.presets]


async def _store(settings: Settings) -> list[Verdict]:
    if settings.embedded:
        words = "embedded: one process, and nothing survives it"
        return [Verdict("warning", "redis", words)]
    try:
        store = RedisClient(settings.redis_url)
        try:
            cluster, address = store.cluster, Address.of(settings.redis_url)
            found = await (_cluster(store, cluster) if cluster else _single(store, address))
            if not any(each.fault for each in found):
                found += await _channels(store)
        finally:
            await store.close()
    except GatewayError as error:
        return [Verdict("fault", "redis", str(error))]
    return found


async def _single(store: RedisClient, address: Address) -> list[Verdict]:
    info, found = await _told(store.call)
    if info.get("cluster_enabled") == "1":
        words = "it is one server of a Cluster; say redis+cluster://"
        return [Verdict("fault", "redis", words)]
    if info.get("role") == "slave":
        words = "it is a replica, and what is written there is lost; name its master"
        return [Verdict("fault", "redis", words)]
    found += await _rehearsed(store, new_id())
    if address.kind == "sentinel":
        found += (_failover(info) if info else []) + await _sentinels(address)
    return found


async def _told(call: Callable[..., Awaitable[bytes]]) -> tuple[dict[str, str], list[Verdict]]:
    """Return what a server tells of itself, and verdicts on it; it may be forbidden to ask."""
    try:
        info = _parsed(await call("INFO"))
    except Unavailable as error:
        if error.__cause__ is not None:
            raise
        told = "its version, what it keeps and how full it is are not told"
        words = f"answers; {told} ({error}): GATEWAY_STORE_SHARE keeps nothing back"
        return {}, [Verdict("warning", "redis", words)]
    return info, _durability(info)


async def _rehearsed(store: RedisClient, stream_id: str) -> list[Verdict]:
    words = await Rehearsal(store, stream_id).run()
    return [Verdict("fault", "redis", words)] if words else []


async def _channels(store: RedisClient) -> list[Verdict]:
    why = await Rehearsal(store, new_id()).hears()
    words = f"no channels gw:inbox:*: what other replicas run is read once a second ({why})"
    return [Verdict("warning", "redis", words)] if why else []


async def _cluster(store: RedisClient, cluster: ClusterTopology) -> list[Verdict]:
    shards = await cluster.shards()
    words = f"cluster of {len(shards)} masters"
    found = []
    try:
        state = _parsed(await store.call("CLUSTER", "INFO"))
        words += f", state {state.get('cluster_state')}"
        assigned = state.get("cluster_slots_assigned", "0")
        if assigned != str(SLOTS):
            words += f", {assigned} of {SLOTS} slots have a master"
        found.append(Verdict("ok" if _all_is_well(state) else "fault", "redis", words))
    except Unavailable as error:
        if error.__cause__ is not None:
            raise
        found.append(Verdict("warning", "redis", f"{words}; its state is not told ({error})"))
    for master, replicas in shards:
        found += await _server(master, "fault", store)
        for replica in replicas:
            found += await _server(replica, "warning")
        if not replicas:
            words = f"{master.name}: has no replica: while it is away its streams wait"
            found.append(Verdict("warning", "redis", words + await _of_all(master)))
    copies = [cluster.node_for(HEARTBEATS + tag) for tag in store.quorum_tags]
    for node in {each for each in copies if copies.count(each) > len(copies) // 2}:
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


async def _server(node: Node, level: str, store: RedisClient | None = None) -> list[Verdict]:
    """Return the verdicts on one server of a Cluster; `level` is of one that does not answer.

    With the store it is a master, which has to take what the gateway does.
    """
    try:
        _, found = await _told(node.call)
        if store is not None:
            drawn = (new_id() for _ in range(_DRAWS))
            at_home = next((each for each in drawn if store.node_for(each) is node), None)
            found += await _rehearsed(store, at_home) if at_home else []
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


async def _sentinels(address: Address) -> list[Verdict]:
    """Ask each one: a wrong address among them shows only when it is needed."""
    found: list[Verdict] = []
    if len(address.hosts) < _SENTINELS:
        words = f"{len(address.hosts)} Sentinel(s) named: name all, three at least, on own machines"
        found.append(Verdict("warning", "redis", words))
    for host, port in address.hosts:
        node = Node(address.sentinel(host, port))
        try:
            await node.call("SENTINEL", "CKQUORUM", address.master)
        except Unavailable as error:
            words = f"Sentinel {host}:{port}: {error}"
            found.append(Verdict("warning", "redis", words))
        finally:
            await node.close()
    agreed = f"{len(address.hosts)} Sentinels can agree on a failover"
    return found or [Verdict("ok", "redis", agreed)]


async def _upstream(settings: Settings, name: str) -> list[Verdict]:
    preset = PresetBook(settings).get(name)
    if preset is None:
        if settings.presets:
            return []
        return [Verdict("fault", "upstream", "GATEWAY_UPSTREAM_URL: missing")]
    where = f"{name}: {redacted(preset.url)}"
    upstream = Upstream()
    try:
        doubts = [
            Verdict("warning", "upstream", f"{where}: {each}")
            for each in endpoint_doubts(preset, preset.url)
        ]
        return [_status(where, await upstream.reach(preset)), *doubts]
    except GatewayError as error:
        return [Verdict("fault", "upstream", with_cause(f"{where}: {error}", error))]
    finally:
        await upstream.close()


def _status(where: str, status: int) -> Verdict:
    """Return the verdict on what an upstream answers to OPTIONS."""
    if status in _NOT_THERE:
        words = f"{where}: {status} to OPTIONS; is it the full URL of an endpoint?"
        return Verdict("fault", "upstream", words)
    if 300 <= status < 400:
        words = f"{where}: {status} to OPTIONS; redirects are not followed: name where it leads"
        return Verdict("fault", "upstream", words)
    words = f"{where} answers ({status} to OPTIONS; the key was not tried)"
    return Verdict("warning" if status in _AWAY else "ok", "upstream", words)

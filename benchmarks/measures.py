"""What is measured of each server, one function a measure; each returns its figures by name."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import redis

from benchmarks.load import Plan, Probe, Result, Target, drive, post_tickets, run
from benchmarks.peers import Bench, Peer, Running, start_gateway
from benchmarks.process import Absent, machine_cpu

Figures = dict[str, float]

WORST_P99_MS: Final = 50.0
DELIVERED: Final = 0.97
STEP: Final = 1.2
LOAD_FULL: Final = 0.95  # of the load's core
DISTURBED: Final = 0.1  # of a core, by others
SPARE_FILES: Final = 400


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long and how much."""

    window: float
    steps: int
    open_streams: int
    open_seconds: float
    open_grace: float
    tickets: float
    log: int
    per_second: int  # streams opened for a measure of what is steady
    settle: float

    @classmethod
    def quick(cls) -> Effort:
        return cls(
            1.0,
            4,
            2000,
            open_seconds=2.0,
            open_grace=3,
            tickets=1.5,
            log=2_000,
            per_second=300,
            settle=0.8,
        )

    @classmethod
    def full(cls) -> Effort:
        return cls(
            3.0,
            8,
            10_000,
            open_seconds=5.0,
            open_grace=20,
            tickets=3.0,
            log=10_000,
            per_second=200,
            settle=1.5,
        )

    def paced(self, streams: int, windows: int = 1) -> Plan:
        """Streams of one event per 20 ms, opened slowly enough not to be what is measured."""
        window = windows * self.window
        return Plan.paced(streams, window, per_second=self.per_second, settle=self.settle)


@dataclasses.dataclass
class Subject:
    """One started server in one round, and what is already known of it."""

    bench: Bench
    peer: Peer
    running: Running
    effort: Effort
    figures: Figures = dataclasses.field(default_factory=dict)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)

    def drive(
        self, plan: Plan, probe: Probe | None = None, *, target: Target | None = None
    ) -> tuple[Result, Figures]:
        """Run a plan; lost and repeated events count whatever the load, cut streams are judged
        by each measure."""
        result, grown = run(drive(target or self.running.target, plan, probe))
        self.faults["lost"] += result.lost
        self.faults["repeated"] += result.repeated
        if not result.ok:
            self.say(f"{result.whole} of {result.streams} whole, {result.reasons}")
        return result, grown

    def probe(self) -> Figures:
        bench = self.bench
        return {
            "server": self.running.child.cpu(),
            "load": bench.upstream.cpu() + bench.redis.cpu() + time.process_time(),
            "redis": bench.redis.cpu(),
            "machine": machine_cpu(),
        }

    def say(self, text: str) -> None:
        print(f"  {self.peer.name}: {text}", file=sys.stderr, flush=True)


def others_share(grown: Figures, seconds: float) -> float:
    """How much of a core was used by what is no part of this."""
    return max(0.0, grown["machine"] - grown["server"] - grown["load"]) / seconds


def warm_up(subject: Subject) -> bool:
    """The first requests import, compile and connect. True if they were answered."""
    streams = min(20, subject.peer.light)
    for _ in range(2):
        result, _ = subject.drive(Plan(streams, 10, 10, ramp=0.5, grace=15))
    return result.ok


def calm_down(subject: Subject) -> None:
    """Wait until an overloaded server has worked off what it was left with."""
    for _ in range(10):
        before = subject.running.child.cpu()
        time.sleep(0.3)
        if subject.running.child.cpu() - before < 0.06:
            return


def latency(subject: Subject) -> Figures:
    """Added latency and time to the first event, at 50 streams of one event per 20 ms."""
    streams = min(50, subject.peer.light)
    result, _ = subject.drive(subject.effort.paced(streams, windows=2))
    return {
        "latency_streams": streams,
        "p50_ms": result.p50_ms,
        "p99_ms": result.p99_ms,
        "ttft_ms": result.ttft_p50_ms,
        "get_ttft_ms": result.get_ttft_p50_ms,
    }


def cpu(subject: Subject) -> Figures:
    """CPU per event at 10,000 events/s, or at the peer's own light load where it is less."""
    streams = min(200, subject.peer.light)
    store = redis.Redis(port=subject.bench.redis.port)

    def probe() -> Figures:
        stats = store.info("stats")
        names = ("total_commands_processed", "total_net_input_bytes", "total_net_output_bytes")
        return subject.probe() | {name: float(stats[name]) for name in names}

    result, grown = subject.drive(subject.effort.paced(streams, windows=2), probe)
    store.close()
    events = max(1, result.window_events)
    figures = {"cpu_rate": result.rate, "cpu_us": grown["server"] * 1e6 / events}
    figures["others"] = others_share(grown, result.seconds)
    if subject.peer.redis:
        per_1000 = 1000 / events
        figures |= {
            "redis_us": grown["redis"] * 1e6 / events,
            "redis_commands": grown["total_commands_processed"] * per_1000,
            "redis_in_kb": grown["total_net_input_bytes"] * per_1000 / 1024,
            "redis_out_kb": grown["total_net_output_bytes"] * per_1000 / 1024,
        }
    return figures


class Step(NamedTuple):
    """What came of a number of streams."""

    good: bool
    rate: float
    cpu_us: float
    full: bool  # the load's core was


def step(subject: Subject, streams: int) -> Step:
    """Try a number of streams; again, up to twice, where other work on the machine spoiled it."""
    plan = dataclasses.replace(subject.effort.paced(streams), grace=3.0)
    for left in (2, 1, 0):
        result, grown = subject.drive(plan, subject.probe)
        good = result.ok and result.p99_ms <= WORST_P99_MS
        good = good and result.rate >= DELIVERED * streams * 1000 / plan.interval_ms
        others = others_share(grown, result.seconds)
        subject.say(
            f"{result.rate:,.0f} events/s, p99 {result.p99_ms:.1f} ms, others {others:.0%}: "
            + ("held" if good else "not held")
        )
        if good or others < DISTURBED or not left:
            break
        calm_down(subject)
    cpu_us = grown["server"] * 1e6 / max(1, result.window_events)
    return Step(good, result.rate, cpu_us, grown["load"] > LOAD_FULL * result.seconds)


def max_rate(subject: Subject) -> Figures:
    """The most events/s that arrive whole, 97 % of the offer, 99 of 100 within 50 ms."""
    guess = subject.figures.get("max_streams") or 20_000 / max(4.0, subject.figures["cpu_us"])
    streams, best, failed = max(2, int(guess)), Figures(), False
    for _ in range(subject.effort.steps):
        tried = step(subject, streams)
        if tried.good:
            full = float(tried.full)
            best = {"max_rate": tried.rate, "max_streams": streams, "max_cpu_us": tried.cpu_us}
            if failed:
                break
            streams = int(streams * STEP) + 1
            continue
        full, failed = float(tried.full), True
        if best or streams == 1:
            break
        streams = max(1, int(streams / STEP))
        calm_down(subject)
    return best | {"load_full": full} if best else {"max_rate": 0.0}


def blast(subject: Subject) -> Figures:
    """Events/s where the upstream sends as fast as it is read: about three seconds' worth."""
    total = min(150_000, max(4_000, int(3 * subject.figures.get("max_rate", 0))))
    streams = max(2, total // 5_000)
    result, _ = subject.drive(Plan(streams, total // streams, 0, grace=20))
    return {"blast_rate": result.events / result.seconds} if result.ok else {}


def opened(subject: Subject) -> Figures:
    """Many nearly idle streams opened at once, on a fresh server: who ends whole, KB of each."""
    effort, child = subject.effort, subject.running.child
    room = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES) // 2
    streams = min(effort.open_streams, room)
    interval = int(effort.open_seconds * 500) + 2_000  # The first still runs at the window's end.
    plan = Plan(streams, 3, interval, effort.open_seconds, 2.5, 0.8, grace=effort.open_grace)
    sizes = [child.rss_kb()]

    def probe() -> Figures:
        sizes.append(child.rss_kb())
        return {}

    result, _ = subject.drive(plan, probe)
    figures: Figures = {
        "open_streams": streams,
        "open_whole": result.whole,
        "open_seconds": result.open_seconds,
        "open_ttft_p99_ms": result.ttft_p99_ms,
    }
    if result.begun > 0.9 * streams:
        figures["idle_kb"] = (max(sizes) - sizes[0]) / result.begun
    return figures


def tickets(subject: Subject) -> Figures:
    """Tickets per second on 32 connections."""
    target = subject.running.target
    rate, statuses = run(post_tickets(target, 32, subject.effort.tickets))
    subject.say(f"{rate:,.0f} tickets/s {dict(statuses)}")
    return {"tickets_rate": rate}


def catch_up(subject: Subject) -> Figures:
    """Events/s of one viewer that comes back after the first event of a finished stream: on the
    replica that ran it, and on another, which has it from Redis. One event per ms was logged, so
    hardly any entry holds more than one."""
    events = subject.effort.log
    first, _ = subject.drive(Plan(1, events, 1, grace=20))
    other = start_gateway(subject.bench)
    figures: Figures = {}
    try:
        for name, target in (("catch_up_own", subject.running.target), ("catch_up", other.target)):
            target = dataclasses.replace(target, kind="get")
            request = target.get(first.stream_url, f"Last-Event-ID: {first.first_id}")
            plan = Plan(1, events, 0, first=1, request=request, grace=20)
            result, _ = subject.drive(plan, target=target)
            if result.ok:
                figures[name] = result.events / result.seconds
    finally:
        other.stop()
    return figures


def stored(subject: Subject) -> Figures:
    """Bytes of Redis's memory that a finished stream takes, and each event of it."""
    store = redis.Redis(port=subject.bench.redis.port)
    grown = []
    for events in (3, 303):
        before = store.info("memory")["used_memory"]
        subject.drive(Plan(50, events, 10, ramp=0.5, grace=15))
        grown.append((store.info("memory")["used_memory"] - before) / 50)
    store.close()
    event = (grown[1] - grown[0]) / 300
    return {"stored_event": event, "stored_stream": grown[0] - 3 * event}


Measure = Callable[[Subject], Figures]
COMMON: Final[tuple[Measure, ...]] = (latency, cpu, max_rate, blast)
GATEWAY: Final[tuple[Measure, ...]] = (stored, tickets, catch_up)


def measure(
    bench: Bench, peer: Peer, effort: Effort, known: Figures
) -> tuple[Figures, Counter[str]]:
    """All figures of one peer in one round."""
    faults: Counter[str] = Counter()
    figures: Figures = dict(known)
    ours = peer.name.startswith("gateway")
    for group in (COMMON + (GATEWAY if ours else ()), (opened,)):
        running = peer.start(bench)
        subject = Subject(bench, peer, running, effort, figures, faults)
        try:
            if not warm_up(subject):
                raise Absent(f"started, but gave no whole stream: {dict(subject.faults)}")
            for job in group:
                figures |= job(subject)
                calm_down(subject)
        finally:
            running.stop()
    return figures, faults

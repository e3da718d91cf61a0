"""Harness: plays a schedule in a world, and makes the report."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.faults.channels import Channels, judge_channel
from tests.faults.followers import Followers
from tests.faults.oracle import judge
from tests.faults.pages import Page, usage_of
from tests.faults.schedule import USERS, Answer, Step, Stream, Watch
from tests.faults.story import KINDS, Facts, Finding, Hit, Loss, Story
from tests.faults.upstream import Upstream
from tests.faults.usage import judge_slots, judge_tokens, judge_usage, rows_of
from tests.faults.webhooks import Hooks, judge_webhooks
from tests.faults.world import World
from tests.nginx import absent

_SLACK = 1.5  # Seconds that a busy machine takes to begin a stream.
_BOOKED = 15.0  # Seconds after which all that has ended must be booked.
_DEAF = 6.0  # Seconds that nobody hears of the first ends.
_HEARD = 60.0  # Seconds after which all ends must be heard, once their receiver is fair.
_PATIENCE = 90.0  # Seconds after which a stream without an end is one.
_LAST = 7_000_000  # From here on streams are numbered that begin when all have ended.


@dataclass
class Report:
    """What a run did, and what it found."""

    streams: int = 0
    viewers: int = 0
    connections: int = 0
    events: int = 0
    calls: int = 0
    messages: int = 0  # Of channels.
    seconds: float = 0.0
    lag: float = 0.0  # The longest the harness's own loop was late, in seconds.
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)  # Of the streams that something is wrong with.

    def __add__(self, other: "Report") -> "Report":
        names = [each.name for each in fields(self) if each.name != "lag"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Report(**sums, lag=max(self.lag, other.lag))

    def __str__(self) -> str:
        kinds = Counter(each.kind for each in self.findings)
        lines = [
            f"{self.streams} streams, {self.viewers} viewers on {self.connections} connections, "
            f"{self.events} events, {self.calls} upstream calls, {self.messages} messages, "
            f"{self.seconds:.0f} s, the harness was late by {self.lag:.2f} s at most",
            "faults:  " + _counts(self.faults),
            "ends:    " + _counts(self.states),
            "allowed: " + (_counts(self.allowed) or "nothing was needed"),
            "wrong:   " + ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS),
        ]
        lines += [f"  {each.kind}: ticket {each.ticket}: {each.text}" for each in self.findings]
        lines += self.stories
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


async def play(
    steps: Sequence[Step],
    folder: Path,
    kind: str = "single",
    *,
    lease: float = 2.0,
    limit: int = 0,
) -> Report:
    """Play a schedule in a new world, with a Redis of a kind, and return the report.

    With a `limit` a user may run no more streams at once.
    """
    # Each process that is waited for holds a thread.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    upstream = Upstream()
    await upstream.start()
    proxied = not absent()
    hooks = Hooks()
    given: dict[str, Any] = {"kind": kind, "lease": lease, "proxied": proxied, "limit": limit}
    patience = _patience(steps, limit)
    world = World(folder, upstream.url, **given, patience=patience, hook=hooks.keys)
    pages: list[Page] = []
    channels, report = Channels(world), Report()
    began = time.monotonic()
    watching = asyncio.create_task(_watch(report))
    opening = asyncio.create_task(hooks.open(_DEAF))
    try:
        await world.start()
        async with channels.playing():
            await _play(steps, world, upstream, pages)
            await world.settle()
        if limit:
            pages += await _crowded(world, upstream, lease + _SLACK)
        await _judge_books(report, world, [page.story for page in pages])
        await opening
        await _judge_hooks(report, world, hooks, [page.story for page in pages])
    finally:
        watching.cancel()
        opening.cancel()
        await hooks.close()
        await world.stop()
        await upstream.stop()
    report.seconds = time.monotonic() - began
    _sum_up(report, world, upstream, pages)
    for channel in channels.told:
        report.messages += len(channel.messages)
        report.findings += judge_channel(channel, world.facts)
    return report


def _patience(steps: Sequence[Step], limit: int) -> float:
    """Return after how many seconds a stream has none but itself to wait for.

    Where slots are few it may be the last of its user's: who waits has no turn.
    """
    answers = (stream.answer for step in steps for stream in step.streams)
    work = sum(each.events * each.interval for each in answers)
    return _PATIENCE + (work / USERS / limit if limit else 0.0)


async def _play(steps: Sequence[Step], world: World, upstream: Upstream, pages: list[Page]) -> None:
    followers = Followers(world)
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                for stream in step.streams:
                    page = Page(world, upstream, stream, followers.follow)
                    pages.append(page)
                    group.create_task(page.play())
                if step.fault is not None:
                    await world.apply(step.fault.kind, step.fault.where, step.fault.how)
                await asyncio.sleep(step.pause)
        await followers.finish()
    finally:
        await followers.close()


async def _crowded(world: World, upstream: Upstream, seconds: float) -> list[Page]:
    """Begin twice as many streams of each user as it may run: half of them must find their slots.

    Nothing goes wrong any more, so here nothing excuses one that runs too much.
    """
    answer, asked = Answer(12, 0.1), time.monotonic()
    numbers = range(_LAST, _LAST + USERS * world.limit * 2)
    pages = [Page(world, upstream, Stream(each, 0.0, answer, (Watch(),))) for each in numbers]
    async with asyncio.TaskGroup() as group:
        for page in pages:
            group.create_task(page.play())
    stories = [page.story for page in pages]
    for user in sorted({story.stream.user for story in stories}):
        theirs = [story for story in stories if story.stream.user == user]
        in_time = sum(bool(each.calls) and each.calls[0].at < asked + seconds for each in theirs)
        if in_time < world.limit:
            words = f"only {in_time} of its streams began after all had ended"
            world.findings.append(Finding("overrun", theirs[0].stream.number, words))
    return pages


async def _judge_books(report: Report, world: World, stories: list[Story]) -> None:
    """Judge what is booked, as soon as all is; what a dead owner left is found after a lease."""
    facts, deadline = world.facts, time.monotonic() + _BOOKED
    users = sorted({story.stream.user for story in stories})
    while True:
        rows = rows_of({user: await usage_of(world, user) for user in users})
        findings = list(judge_usage(stories, rows, facts))
        if not findings or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    for story in stories:
        findings += judge_tokens(story)
    if world.limit:
        findings += judge_slots(stories, facts, world.limit)
    report.findings += findings
    about = {number for each in findings for number in (each.ticket, *each.others)}
    report.stories += [told(each, facts) for each in stories if each.stream.number in about]


async def _judge_hooks(report: Report, world: World, hooks: Hooks, stories: list[Story]) -> None:
    """Judge what was told of the ends, as soon as all of them were heard."""
    hooks.be_fair()
    deadline = time.monotonic() + _HEARD
    while True:
        findings = list(judge_webhooks(stories, hooks.told, world.facts))
        if not findings or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    report.findings += findings
    report.faults["deaf"] += sum(not each.heard for each in hooks.told)


async def _watch(report: Report) -> None:
    """Note how late this process is: a machine that starves it starves the replicas too."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.1)
        report.lag = max(report.lag, time.monotonic() - before - 0.1)


def _sum_up(report: Report, world: World, upstream: Upstream, pages: Sequence[Page]) -> None:
    facts = world.facts
    for page in pages:
        story = page.story
        verdict = judge(story, facts)
        report.findings += verdict.findings
        report.stories += [told(story, facts)] if verdict.findings else []
        report.states[verdict.state or "none"] += 1
        report.allowed.update(verdict.allowed)
        report.faults.update(page.played)
        report.viewers += len(story.transcripts)
        report.connections += sum(each.connections for each in story.transcripts)
        report.events += sum(len(each.events) for each in story.transcripts)
    report.streams = len(pages)
    report.calls = sum(map(len, upstream.calls.values()))
    report.findings += world.findings
    report.faults.update(upstream.played)
    report.faults.update(world.played)


def told(story: Story, facts: Facts) -> str:
    """Return a story in a few lines, its times in seconds after the POST."""

    def since(when: float) -> str:
        return f"{when - story.posted:.2f}"

    lines = [f"  ticket {story.stream.number}: {story.stream.answer.fault} {story.stream.fault}"]
    lines[0] += f", asked for at {story.posted:.2f}, {story.path}"
    lines += [
        f"call {c.replica} {since(c.at)} to {since(c.ended)} {c.outcome}, "
        f"asked for again by {c.others}, {c.cancels} cancels"
        for c in story.calls
    ]
    lines += [
        f"viewer {since(t.began)} to {since(t.ended)}: {len(t.events)} events, "
        f"the end at {since(t.over)}, {t.final} {t.why}"
        for t in story.transcripts
    ]
    lines += [f"DELETE {since(d.at)}: {d.status} {d.state}" for d in story.deletions]
    injected: list[Hit | Loss] = [*facts.hits, *facts.losses]
    lines += [
        f"{each.kind} {getattr(each, 'replica', '')} {since(each.at)} to {since(each.until)}"
        for each in injected
        if each.until >= story.posted - 2 and each.at <= story.ended
    ]
    return "\n    ".join(lines)


def new_seed() -> int:
    """Return a seed that nobody chose."""
    return random.SystemRandom().randrange(1 << 32)

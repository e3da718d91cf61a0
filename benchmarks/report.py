"""Medians, ratios and goals of a run; the table, the JSON and the chart."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.measures import DISTURBED
from benchmarks.peers import PEERS

Rounds = dict[str, list[dict[str, float]]]

COLUMNS: Final = (
    ("max_rate", "events/s", "{:,.0f}"),
    ("cpu_us", "CPU us/event", "{:.0f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("ttft_ms", "TTFT ms", "{:.1f}"),
    ("blast_rate", "blast ev/s", "{:,.0f}"),
    ("open_whole", "whole", "{:,.0f}"),
    ("idle_kb", "KB/stream", "{:.1f}"),
)
OWN: Final = (
    "tickets_rate",
    "catch_up",
    "catch_up_own",
    "get_ttft_ms",
    "max_cpu_us",
    "redis_commands",
    "redis_in_kb",
    "redis_out_kb",
    "redis_us",
    "stored_event",
    "stored_stream",
    "faults",
)
DURABLE_COLOUR: Final = "#1f6feb"
OTHER_COLOUR: Final = "#9aa4b2"


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure of the gateway, or its ratio to a peer's, and the bound it is held against."""

    text: str
    figure: str
    bound: float
    against: str = ""
    at_most: bool = False


GOALS: Final = (
    Goal("events/s, against LiteLLM", "max_rate", 20, "litellm"),
    Goal("events/s, against Starlette + httpx", "max_rate", 4, "starlette"),
    Goal("events/s, against resumable-stream", "max_rate", 1.6, "resumable-stream"),
    Goal("events/s, against nginx", "max_rate", 0.5, "nginx"),
    Goal("CPU per event, against nginx", "cpu_us", 2.2, "nginx", at_most=True),
    Goal("added latency p50, ms", "p50_ms", 0.5, at_most=True),
    Goal("added latency p99, ms", "p99_ms", 1.5, at_most=True),
    Goal("KB per idle stream", "idle_kb", 20, at_most=True),
    Goal("share of the streams opened at once that end whole", "open_share", 1),
    Goal("seconds to open them, of 5 asked for", "open_seconds", 5.5, at_most=True),
    Goal("tickets/s", "tickets_rate", 4_000),
    Goal("events lost, repeated or out of order", "faults", 0, at_most=True),
)


def median(rounds: Sequence[dict[str, float]], name: str) -> float | None:
    values = [figures[name] for figures in rounds if name in figures]
    return statistics.median(values) if values else None


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    made: dict[str, dict[str, float]] = {}
    for peer, all_ in rounds.items():
        names = sorted({name for figures in all_ for name in figures})
        values = ((name, median(all_, name)) for name in names)
        made[peer] = {name: round(value, 3) for name, value in values if value is not None}
    return made


def ratio(rounds: Rounds, name: str, one: str, other: str) -> float | None:
    """The median of each round's own ratio: what disturbs a round disturbs both."""
    pairs = zip(rounds.get(one, ()), rounds.get(other, ()), strict=False)
    values = [a[name] / b[name] for a, b in pairs if a.get(name) and b.get(name)]
    return statistics.median(values) if values else None


def judge(rounds: Rounds) -> list[dict[str, Any]]:
    judged = []
    for goal in GOALS:
        value = (
            ratio(rounds, goal.figure, "gateway", goal.against)
            if goal.against
            else median(rounds.get("gateway", ()), goal.figure)
        )
        holds: Callable[[float, float], bool] = operator.le if goal.at_most else operator.ge
        judged.append(
            {
                "goal": goal.text,
                "bound": ("<= " if goal.at_most else ">= ") + f"{goal.bound:,g}",
                "value": None if value is None else round(value, 3),
                "met": None if value is None else holds(value, goal.bound),
            }
        )
    return judged


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if "model name" in line), "unknown")
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def document(
    rounds: Rounds, versions: dict[str, str], absent: dict[str, str], quick: bool
) -> dict[str, Any]:
    ratios = {
        peer: {
            other: round(value, 3)
            for other in ("nginx", "litellm")
            if (value := ratio(rounds, "max_rate", peer, other)) is not None
        }
        for peer in rounds
    }
    return {
        "machine": machine(),
        "quick": quick,
        "versions": versions,
        "absent": absent,
        "medians": medians(rounds),
        "max_rate_ratios": ratios,
        "goals": judge(rounds),
        "rounds": rounds,
    }


def cell(figures: dict[str, float], name: str, form: str) -> str:
    if name not in figures or (name == "max_rate" and not figures[name]):
        return "-"
    text = form.format(figures[name])
    if name == "max_rate" and figures.get("load_full"):
        text = f">= {text}"
    if name == "open_whole":
        text += f" of {figures['open_streams']:,.0f}"
    if name == "p50_ms" and figures["latency_streams"] < 50:
        text += f" ({figures['latency_streams']:.0f} streams)"
    return text


def table(made: dict[str, Any]) -> str:
    """Markdown, which reads well enough on a terminal."""
    titles = ["", "durable", *(title for _, title, _ in COLUMNS)]
    titles[3:3] = ["x nginx", "x LiteLLM"]
    rows = [titles, ["---"] * len(titles)]
    for peer, figures in made["medians"].items():
        cells = [cell(figures, name, form) for name, _, form in COLUMNS]
        ratios = made["max_rate_ratios"][peer]
        cells[1:1] = [f"{ratios[o]:.2f}" if o in ratios else "-" for o in ("nginx", "litellm")]
        rows.append([PEERS[peer].label, PEERS[peer].durable, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def more(made: dict[str, Any]) -> str:
    """The gateway's own figures, the goals and who was absent."""
    lines = []
    for peer in ("gateway", "gateway-2"):
        if own := made["medians"].get(peer):
            kept = (f"{name} {own[name]:,.1f}" for name in OWN if name in own)
            lines.append(f"{PEERS[peer].label}: {', '.join(kept)}")
    others = max((f.get("others", 0.0) for f in made["medians"].values()), default=0.0)
    if others > DISTURBED:
        lines.append(f"DISTURBED: other work used up to {others:.0%} of a core; run it again")
    for goal in made["goals"]:
        verdict = {None: "not measured", True: "met", False: "MISSED"}[goal["met"]]
        lines.append(f"{verdict:12} {goal['goal']}: {goal['value']} ({goal['bound']})")
    lines += [f"absent: {PEERS[peer].label}: {reason}" for peer, reason in made["absent"].items()]
    return "\n".join(lines)


def chart(made: dict[str, Any]) -> str:
    """Events per second and core, a bar each."""
    shown = {p: f for p, f in made["medians"].items() if p != "direct" and f.get("max_rate")}
    most = max((figures["max_rate"] for figures in shown.values()), default=1.0)
    height = 34 * len(shown) + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="760" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="24" font-size="15" font-weight="600">Events per second on one core, '
        "p99 added latency at most 50 ms</text>",
    ]
    ordered = sorted(shown.items(), key=lambda item: -item[1]["max_rate"])
    for row, (peer, figures) in enumerate(ordered):
        y, width = 42 + 34 * row, 360 * figures["max_rate"] / most
        times = made["max_rate_ratios"][peer].get("litellm")
        text = cell(figures, "max_rate", "{:,.0f}") + (f" = {times:.1f}x LiteLLM" if times else "")
        colour = DURABLE_COLOUR if PEERS[peer].durable != "nothing" else OTHER_COLOUR
        parts += [
            f'<text x="190" y="{y + 16}" text-anchor="end">{escape(PEERS[peer].label)}</text>',
            f'<rect x="200" y="{y}" width="{width:.1f}" height="24" rx="3" fill="{colour}"/>',
            f'<text x="{206 + width:.1f}" y="{y + 16}" fill="#333333">{escape(text)}</text>',
        ]
    note = "Blue: every event is stored before it is shown. Grey: a crash loses the stream."
    parts.append(f'<text x="16" y="{height - 12}" fill="#555555">{note}</text></svg>')
    return "\n".join(parts) + "\n"


def write(made: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "chart.svg").write_text(chart(made))
    (out / "table.md").write_text(table(made) + "\n\n" + more(made) + "\n")

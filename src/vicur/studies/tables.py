"""A study's results for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vicur.wording import printable


def study_table(summary: dict[str, Any]) -> Table:
    """Accuracies, differences to base, visual advantage, leakage and seconds. In 80 columns no number is cut:
    long titles of methods are wrapped."""
    seeds = summary["seeds"]
    source = f"over {seeds} seeds, Student's t" if seeds > 1 else "over test problems"
    table = Table(
        title="CueBench segments: accuracy in %",
        caption=(
            f"± half-width of the 95 % interval ({source}); VA: visual advantage of the answers in nats per "
            "token, scored by the larger teacher, and by the model itself (own); hint: rollouts with the "
            'word "hint" per seed; s: seconds'
        ),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method")
    for title in ("in domain", "- base", "out of dom", "VA", "own", "hint", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    to_base = {d["ours"]: d["in_domain"] for d in summary["differences"] if d["theirs"] == "base"}
    for name, method in summary["methods"].items():
        advantage = method["visual_advantage"]
        table.add_row(
            escape(printable(method["title"])),
            _accuracy(method["in_domain"]),
            _difference(to_base.get(name)),
            _accuracy(method["out_of_domain"]),
            f"{advantage['teacher']:.2f}",
            f"{advantage['own']:.2f}",
            f"{method['hint_leakage']['samples'] / seeds:.0f}",
            f"{method['seconds']:.0f}",
        )
    return table


def headlines(summary: dict[str, Any]) -> list[str]:
    """One sentence for each comparison that the study lists in `compare`."""
    lines = []
    for difference in summary["differences"]:
        first, second, in_domain = difference["ours"], difference["theirs"], difference["in_domain"]
        if second != "base":
            verdict = (
                "above 0"
                if in_domain["low"] > 0
                else "below 0"
                if in_domain["high"] < 0
                else "the interval includes 0"
            )
            lines.append(
                f"{summary['methods'][first]['title']} minus {summary['methods'][second]['title']}, in "
                f"domain: {in_domain['value']:+.1f} points "
                f"[{in_domain['low']:+.1f}, {in_domain['high']:+.1f}]: {verdict}."
            )
    return lines


def _accuracy(estimate: dict[str, float]) -> str:
    return f"{estimate['accuracy']:.1f} ±{(estimate['high'] - estimate['low']) / 2:.1f}"


def _difference(estimate: dict[str, float] | None) -> str:
    return "" if not estimate else f"{estimate['value']:+.1f} ±{(estimate['high'] - estimate['low']) / 2:.1f}"

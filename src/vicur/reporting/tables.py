"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

TITLES = {
    "base": "base",
    "base_with_cue": "base, shown cue",
    "teacher": "larger teacher",
    "opsd_answer": "OPSD answer",
    "opsd_cue": "OPSD cue",
    "opsd_cue_recovery": "OPSD cue+recov.",
    "opd_cue": "OPD cue",
}


def quickstart_table(summary: dict[str, Any]) -> Table:
    """Accuracies, differences to base, hint leakage and seconds, 80 columns wide."""
    seeds = summary["seeds"]
    source = f"{seeds} seeds, Student's t" if seeds > 1 else "drawing the test problems"
    table = Table(
        title="CueBench segments: accuracy in %",
        caption=f"± half of the 95 % interval ({source}); hint: rollouts with the word/occurrences, a seed",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    for title in ("in domain", "- base", "out of dom", "- base", "hint", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, method in summary["methods"].items():
        difference = summary["differences"].get(f"{name} - base", {})
        leakage = method["hint_leakage"]
        table.add_row(
            TITLES[name],
            _accuracy(method["in_domain"]),
            _difference(difference.get("in_domain")),
            _accuracy(method["out_of_domain"]),
            _difference(difference.get("out_of_domain")),
            f"{leakage['samples'] / seeds:.0f}/{leakage['occurrences'] / seeds:.0f}",
            f"{method['seconds']:.0f}",
        )
    return table


def headline(summary: dict[str, Any]) -> str:
    """The comparison that ViCuR is about, in a sentence."""
    difference = summary["differences"]["opsd_cue - opsd_answer"]["in_domain"]
    verdict = "above 0" if difference["low"] > 0 else "below 0" if difference["high"] < 0 else "0 is inside"
    return (
        f"Cue minus answer, in domain: {difference['value']:+.1f} points "
        f"[{difference['low']:+.1f}, {difference['high']:+.1f}]: {verdict}."
    )


def _accuracy(found: dict[str, float]) -> str:
    return f"{found['accuracy']:.1f} ±{(found['high'] - found['low']) / 2:.1f}"


def _difference(found: dict[str, float] | None) -> str:
    return "" if not found else f"{found['value']:+.1f} ±{(found['high'] - found['low']) / 2:.1f}"

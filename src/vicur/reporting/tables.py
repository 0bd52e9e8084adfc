"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

TITLES = {
    "base": "base",
    "base_with_cue": "base, shown the cue",
    "teacher": "larger teacher",
    "opsd_answer": "OPSD, answer",
    "opsd_cue": "OPSD, cue",
    "opsd_cue_recovery": "OPSD, cue + recovery",
    "opd_cue": "OPD, larger teacher + cue",
}


def quickstart_table(summary: dict[str, Any]) -> Table:
    """Accuracies, differences to base, hint leakage and seconds."""
    seeds = summary["seeds"]
    intervals = f"over {seeds} seeds (t)" if seeds > 1 else "over test problems"
    table = Table(title=f"CueBench segments, accuracy in %, 95 % intervals {intervals}")
    table.add_column("method")
    for title in ("in domain", "to base", "out of domain", "to base", "hint leakage", "seconds"):
        table.add_column(title, justify="right")
    for name, method in summary["methods"].items():
        difference = summary["differences"].get(f"{name} - base")
        leakage = method["hint_leakage"]
        table.add_row(
            TITLES[name],
            _accuracy(method["in_domain"]),
            _difference(difference and difference["in_domain"]),
            _accuracy(method["out_of_domain"]),
            _difference(difference and difference["out_of_domain"]),
            f"{leakage['samples']}/{leakage['occurrences']}",
            f"{method['seconds']:.0f}",
        )
    return table


def headline(summary: dict[str, Any]) -> str:
    """The comparison that ViCuR is about, in a sentence."""
    difference = summary["differences"]["opsd_cue - opsd_answer"]["in_domain"]
    verdict = "above 0" if difference["low"] > 0 else "below 0" if difference["high"] < 0 else "includes 0"
    return (
        f"Cue minus answer, in domain: {difference['value']:+.1f} points, 95 % interval "
        f"[{difference['low']:+.1f}, {difference['high']:+.1f}] ({verdict})."
    )


def _accuracy(value: dict[str, float]) -> str:
    return f"{value['accuracy']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _difference(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"

"""The look of all figures, and how they are saved.

Figures are drawn with matplotlib and saved as SVG with real text, so that they can be searched, read aloud
and shown on a dark page. Every colour comes from here: `vicur report` replaces exactly these.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vicur.files import write_text, write_whole
from vicur.wording import printable

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#d9dde2", "#ffffff"
"""Text and axes, secondary text, grid lines, background."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#9a6c00", "#56b4e9", "#5b6470", "#7f3b9d")
"""Colours of series, after Okabe and Ito: readers with any colour vision can tell neighbours apart. They are
combined with other line styles and markers, so that no reader depends on colour."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_MARKERS = 40
"""Number of points of a series up to which each has a marker."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vicur",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Settings of matplotlib for all figures. Without dates and random ids, equal figures are equal files."""


@contextmanager
def styled() -> Iterator[None]:
    """The look of all figures: they are drawn and saved inside."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 4.4, height: float = 3.0, **sharing: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row.

    Args:
        rows, columns: number of panels.
        width, height: size of a panel in inches.
        sharing: passed to `Figure.subplots`, e.g. sharey=True.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **sharing)
    return figure, [panel for line in panels for panel in line]


def series_style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of the n-th series of a figure."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def draw_series(panel: Axes, x: Sequence[float], y: Sequence[float], index: int, label: str) -> None:
    """Draw a series as a line; markers only where they would not merge.

    Args:
        panel: the panel to draw in.
        x, y: the points.
        index: number of the series, which decides its style.
        label: name in the legend.
    """
    style = series_style(index)
    if len(x) > MOST_MARKERS:
        style["marker"] = ""
    panel.plot(x, y, label=plain_text(label), **style)


def draw_band(
    panel: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], index: int
) -> None:
    """Draw the interval around a series."""
    panel.fill_between(x, low, high, color=SERIES[index % len(SERIES)], alpha=0.16, linewidth=0)


def legend(figure: Figure, panel: Axes) -> None:
    """One legend for all panels, below them, if there is more than one series."""
    handles, labels = panel.get_legend_handles_labels()
    if len(handles) < 2:
        return
    canvas = FigureCanvasAgg(figure)  # measures the texts
    for columns in range(min(4, len(handles)), 0, -1):
        drawn = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or drawn.get_window_extent(canvas.get_renderer()).width <= figure.bbox.width:
            return
        drawn.remove()


def plain_text(text: str) -> str:
    """A text from outside as matplotlib shows it: no control characters, no formulas."""
    return printable(text).replace("$", r"\$")


def svg_of(figure: Figure) -> str:
    """A figure, drawn inside `styled`, as SVG; characters that no font has are text in it, too."""
    buffer = io.StringIO()
    with _saving():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def _saving() -> Iterator[None]:
    with styled(), warnings.catch_warnings():
        # A character that no font has is a box in the PNG; the SVG has it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def write_figure(figure: Figure, path: Path, *, replace: bool = True) -> None:
    """Write a figure, drawn inside `styled`, in the format of the path's suffix, .svg or .png.

    Raises:
        OSError: the file cannot be written.
    """
    if path.suffix == ".svg":
        write_text(path, svg_of(figure), replace=replace)
        return

    def write(partial: Path) -> None:
        with _saving():
            figure.savefig(partial, format="png", dpi=120)

    write_whole(path, write, replace=replace)

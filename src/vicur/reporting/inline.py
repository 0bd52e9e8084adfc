"""Figures as parts of a page: SVG whose colours follow the page's theme."""

from __future__ import annotations

import io
import re

from matplotlib.figure import Figure

from vicur.reporting.figures import GRID, INK, MUTED, PAPER, SERIES, styled

THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
"""The page's variable for each colour of a figure; the page defines them for light and for dark."""


def inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """A figure as an SVG element.

    Args:
        figure: the figure, drawn inside `styled`.
        prefix: put before every id, so that the figures of a page do not share any.
        description: text for readers who do not see it.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in THEMED.items():
        svg = re.sub(re.escape(colour), variable, svg, flags=re.IGNORECASE)
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width: {round(width * 96 / 72)}px" '
        f'role="img" aria-label="{_attribute(description)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return opening + svg[svg.index(">") + 1 :]


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

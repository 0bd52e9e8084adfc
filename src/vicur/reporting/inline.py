"""Figures as parts of a page: SVG whose colours follow the page's theme."""

from __future__ import annotations

import re
from html import escape

from vicur.reporting.figures import GRID, INK, MUTED, PAPER, SERIES

THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
"""The page's variable for each colour of a figure; the page defines them for light and for dark."""


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """A figure as an SVG element.

    Args:
        svg: the figure, as `svg_of` gives it.
        prefix: put before every id, so that the figures of a page do not share any.
        description: text for readers who do not see it.
    """
    svg = svg[svg.index("<svg") :]
    width, height = map(float, re.findall(r'\b(?:width|height)="([\d.]+)pt"', svg[: svg.index(">")]))
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in THEMED.items():
        svg = re.sub(re.escape(colour), variable, svg, flags=re.IGNORECASE)
    opening = (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width: {round(width * 96 / 72)}px" '
        f'role="img" aria-label="{escape(description)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return opening + svg[svg.index(">") + 1 :]

"""Consoles on which no text can act on the terminal, whatever it contains."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from vicur.wording import printable


def protected(console: Console) -> Console:
    """The same console; from now on it shows control and bidi characters as escapes (`wording.printable`)."""
    console.push_render_hook(_Protection())
    return console


def error_console() -> Console:
    """A console for standard error."""
    return protected(Console(stderr=True))


class _Protection(RenderHook):
    """Replaces the text of everything that a console renders, whether sentence, table or progress bar."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Protected(renderable) for renderable in renderables]


@dataclass(frozen=True)
class _Protected:
    """A renderable whose segments are printable. What rich itself sends to the terminal is left as it is."""

    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

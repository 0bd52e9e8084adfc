"""The settings of a command as text for the terminal, by section."""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from vicur.settings.reference import optional_components, settings_of

WIDTH = 100


def settings_help(component: type, required: Collection[str] = ()) -> str:
    """Every setting of a command with its type, default and docstring, by section.

    Args:
        component: the section of settings that the command takes.
        required: names of settings that the command requires although they have a default.
    """
    sections: dict[str, list[str]] = {}
    for setting in settings_of(component):
        section = setting.name.rpartition(".")[0]
        default = "required" if setting.name in required else setting.default_in_words
        head = f"  {setting.name} ({setting.kind}; {default})".replace("`", "")
        sections.setdefault(section, []).append(f"{head}\n{textwrap.indent(_filled(setting.text), ' ' * 6)}")
    lines = []
    optional = {name for name, _ in optional_components(component, "")}
    for name, entries in sections.items():
        note = " (unset unless named; {} for its defaults)" if name in optional else ""
        lines += [f"{name or 'settings'}{note}", *entries, ""]
    return "\n".join(lines)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH - 6, break_on_hyphens=False, break_long_words=False)

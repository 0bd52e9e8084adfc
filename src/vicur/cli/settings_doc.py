"""Generates docs/settings.md, the reference of all settings, from the dataclasses that define them.

    python -m vicur.cli.settings_doc > docs/settings.md

A setting's text is the docstring under its field; a section's is the first paragraph of its class.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from vicur.cues.settings import BuildConfig
from vicur.run.recipe import Recipe
from vicur.settings.reference import Setting, optional_components, settings_of
from vicur.settings.schema import setting_types

WIDTH = 110
INTRODUCTION = """\
# Settings

Every setting of a recipe and of `vicur cues build`: name, type, default, and what it does. `make docs`
generates this page from the dataclasses that define the settings.

A dot in a name is a level of YAML in a recipe. On the command line it is part of the name:

```yaml
student: {recovery: {enabled: true}}
```
```bash
vicur train cuebench/opsd_cue student.recovery.enabled=true
```

`null` means that a setting is unset. A section whose default is `null` is used only if the recipe names it;
`{}` names it with all its defaults. No number is above 1e30 or below -1e30.
`vicur train RECIPE --print-config` prints a recipe with every value.
"""
BUILDING = """\
## `vicur cues build`

Its `data.*` settings are those of a recipe. [cues.md](cues.md) explains its use.
"""


def page() -> str:
    """The whole of docs/settings.md."""
    parts = [INTRODUCTION]
    kinds = get_type_hints(Recipe)
    for section in fields(Recipe):
        if is_dataclass(kinds[section.name]):
            parts += _section(kinds[section.name], section.name)
        else:  # a table of sections that another section describes
            (setting,) = (s for s in settings_of(Recipe) if s.name == section.name)
            parts += [f"## `{section.name}`", "", _entry(setting), ""]
    of_recipes = setting_types(Recipe)
    parts += [BUILDING, *(_entry(s) for s in settings_of(BuildConfig) if s.name not in of_recipes)]
    return "\n".join(parts).rstrip() + "\n"


def _section(component: type, name: str) -> list[str]:
    """A section of a recipe; the components in it that are null unless named get headings of their own."""
    lines = [f"## `{name}`", "", _first_paragraph(component), "", *_lines(component, f"{name}.")]
    optional = optional_components(component, f"{name}.")
    while optional:
        setting, inner = optional.pop(0)
        lines += [f"### `{setting}`", "", _first_paragraph(inner), "", *_lines(inner, f"{setting}.")]
        optional = optional_components(inner, f"{setting}.") + optional
    return lines


def _lines(component: type, prefix: str) -> list[str]:
    """The settings of a component, without those of the optional ones in it."""
    elsewhere = tuple(f"{name}." for name, _ in optional_components(component, prefix))
    entries = [_entry(s) for s in settings_of(component, prefix) if not s.name.startswith(elsewhere)]
    return [*entries, ""]


def _entry(setting: Setting) -> str:
    head = f"- **`{setting.name}`** ({setting.kind}; {setting.default_in_words})"
    return f"{head}\\\n{textwrap.indent(_filled(setting.text, WIDTH - 2), '  ')}"


def _first_paragraph(component: type) -> str:
    text = inspect.cleandoc(component.__doc__ or "").split("\n\n")[0]
    return _filled(" ".join(text.split()), WIDTH)


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    print(page(), end="")

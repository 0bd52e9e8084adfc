"""The reference of all settings, docs/settings.md, written from the dataclasses that own them.

    python -m vicur.cli.settings_doc > docs/settings.md

A setting's text is the docstring under its field; a section's is the first paragraph of its class.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vicur.cues.settings import BuildConfig
from vicur.run.recipe import Recipe

WIDTH = 110
INTRODUCTION = """\
# Settings

Every setting of a recipe and of `vicur cues build`: name, type, default, and what it does. This page is
written by `make docs` from the dataclasses that own the settings.

In a recipe a dot is a level of YAML, on the command line it is part of the name:

```yaml
student: {recovery: {enabled: true}}
```
```bash
vicur train cuebench/opsd_cue student.recovery.enabled=true
```

`null` means that the setting is not given. A section with default `null` is used once it is named, and `{}`
names it with all its defaults. `vicur train RECIPE --print-config` prints a recipe with every value.
"""
BUILDING = """\
## `vicur cues build`

On the command line these are options: `--model NAME`, `--endpoint.base_url URL`. [cues.md](cues.md) has the
steps.
"""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted.
        kind: its type, in words.
        default: as YAML.
        text: its docstring, in one line.
    """

    name: str
    kind: str
    default: str
    text: str

    def __str__(self) -> str:
        head = f"- **`{self.name}`** ({self.kind}; default {self.default})"
        return f"{head}\\\n{textwrap.indent(_filled(self.text, WIDTH - 2), '  ')}"


def page() -> str:
    """The whole of docs/settings.md."""
    parts = [INTRODUCTION]
    for own in fields(Recipe):
        parts += _section(get_type_hints(Recipe)[own.name], own.name)
    parts += [BUILDING, *_lines(BuildConfig, "")]
    return "\n".join(parts).rstrip() + "\n"


def settings_of(component: type, prefix: str = "", defaults: Any = None) -> Iterator[Setting]:
    """The settings of a component and of the components in it, by dotted name, in the order of the fields.

    Args:
        component: a dataclass with a docstring under each field.
        prefix: what their names start with.
        defaults: an instance that holds the defaults, where they are not those of the fields.

    Raises:
        ValueError: a setting has no docstring.
    """
    hints, texts = get_type_hints(component), field_docstrings(component)
    for own in fields(component):
        name, kind = f"{prefix}{own.name}", hints[own.name]
        default = _default(own) if defaults is None else getattr(defaults, own.name)
        inner = _component(kind)
        if inner is not kind:
            if own.name not in texts:
                raise ValueError(f"{component.__name__}.{own.name} has no docstring under it.")
            yield Setting(name, in_words(kind), _as_yaml(default), texts[own.name])
        if inner is not None:
            yield from settings_of(inner, f"{name}.", default)


def field_docstrings(component: type) -> dict[str, str]:
    """The docstring under each field of a dataclass that has one, each in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(component))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def in_words(kind: Any) -> str:
    """A type as a user of YAML knows it.

    Raises:
        ValueError: a type that no setting has had so far.
    """
    simple = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}
    if kind == dict[str, Any]:
        return "table"
    if kind in simple:
        return simple[kind]
    if is_dataclass(kind):
        return "section"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple):
        return f"list of {in_words(inner[0])}s"
    if origin is dict:
        return f"table of {in_words(inner[1])}s by name"
    if not inner:
        raise ValueError(f"There are no words for the type {kind!r} of a setting.")
    return " or ".join(map(in_words, inner))


def _section(component: type, name: str) -> list[str]:
    """A section of a recipe; the components in it that are null unless named get headings of their own."""
    lines = [f"## `{name}`", "", _first_paragraph(component), "", *_lines(component, f"{name}.")]
    for setting, inner in _optional_components(component, f"{name}."):
        lines += [f"### `{setting}`", "", _first_paragraph(inner), "", *_lines(inner, f"{setting}.")]
    return lines


def _lines(component: type, prefix: str) -> list[str]:
    """The settings of a component, without those of the optional ones in it."""
    elsewhere = tuple(f"{name}." for name, _ in _optional_components(component, prefix))
    own = [str(s) for s in settings_of(component, prefix) if not s.name.startswith(elsewhere)]
    return [*own, ""]


def _optional_components(component: type, prefix: str) -> list[tuple[str, type]]:
    """Those that are null unless they are named, by name."""
    kinds = ((f"{prefix}{name}", kind, _component(kind)) for name, kind in get_type_hints(component).items())
    return [(name, inner) for name, kind, inner in kinds if inner is not None and inner is not kind]


def _first_paragraph(component: type) -> str:
    text = inspect.cleandoc(component.__doc__ or "").split("\n\n")[0]
    return _filled(" ".join(text.split()), WIDTH)


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)


def _component(kind: Any) -> type | None:
    """The dataclass that a setting is, or is unless it is null."""
    kinds = (own for own in (kind, *get_args(kind)) if isinstance(own, type))
    return next((own for own in kinds if is_dataclass(own)), None)


def _default(own: Field[Any]) -> Any:
    return own.default if own.default_factory is MISSING else own.default_factory()


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


if __name__ == "__main__":
    print(page(), end="")

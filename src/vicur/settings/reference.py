"""Describes every setting of a component: name, type, bounds, default and help, for docs and --help."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from vicur.settings.section import LARGEST, default_of, plain


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted name.
        kind: its type, in words.
        default: default value as YAML; None if the setting is required.
        text: its docstring, in one line.
    """

    name: str
    kind: str
    default: str | None
    text: str

    @property
    def default_in_words(self) -> str:
        """E.g. "default `64`"; "required" without a default."""
        return "required" if self.default is None else f"default {self.default}"


def settings_of(component: type, prefix: str = "", defaults: Any = None) -> Iterator[Setting]:
    """The settings of a component and of the components in it, by dotted name, in the order of the fields.

    Args:
        component: a dataclass with a docstring under each field.
        prefix: prefix of their names.
        defaults: an instance that holds the defaults, if they differ from those of the fields.

    Raises:
        ValueError: a setting has no docstring.
    """
    hints, texts = get_type_hints(component, include_extras=True), field_docstrings(component)
    for setting_field in fields(component):
        name, kind = f"{prefix}{setting_field.name}", hints[setting_field.name]
        default = default_of(setting_field) if defaults is None else getattr(defaults, setting_field.name)
        inner = _component(kind)
        if inner is not kind:
            if setting_field.name not in texts:
                raise ValueError(f"{component.__name__}.{setting_field.name} has no docstring under it.")
            default_text = None if default is MISSING else _as_yaml(default)
            yield Setting(name, in_words(kind), default_text, texts[setting_field.name])
        if inner is not None and get_origin(kind) is dict:
            yield from settings_of(inner, f"{name}.NAME.")
        elif inner is not None:
            yield from settings_of(inner, f"{name}.", default)


def field_docstrings(component: type) -> dict[str, str]:
    """The docstring under each field of a dataclass that has one, each in one line; inherited ones too."""
    bases = [base for base in reversed(component.__mro__) if is_dataclass(base)]
    return {name: text for base in bases for name, text in _field_docstrings(base).items()}


def _field_docstrings(component: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(component))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, following in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def in_words(kind: Any) -> str:
    """A type in words for a user of YAML.

    Raises:
        ValueError: the type has no description here.
    """
    simple = {bool: "true or false", int: "integer", float: "number", str: "string", NoneType: "null"}
    if kind == dict[str, Any]:
        return "mapping"
    if kind in simple:
        return simple[kind]
    if is_dataclass(kind):
        return "section"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return in_words(inner[0]) + _bounds(kind.__metadata__)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple):
        return f"list of {_plural(in_words(inner[0]))}"
    if origin is dict:
        return f"mapping from names to {_plural(in_words(inner[1]))}"
    if not inner:
        raise ValueError(f"A setting has the type {kind!r}, for which `in_words` has no description.")
    return " or ".join(map(in_words, inner))


def _plural(words: str) -> str:
    """The words of a type for several values: "numbers in [0, 1)"."""
    noun, space, bounds = words.partition(" ")
    return words if noun.startswith("`") else f"{noun}s{space}{bounds}"


def _bounds(metadata: Sequence[Any]) -> str:
    """The range of a number, such as " ≥ 1" or " in (0, 1]"; the limit of all numbers is left out."""
    marks = [mark for extra in metadata if isinstance(extra, FieldInfo) for mark in extra.metadata]
    low: tuple[str, str, Any] | None = None
    high: tuple[str, str, Any] | None = None
    for mark in marks:
        match mark:
            case Ge(ge=bound):
                low = None if bound == -LARGEST else ("[", "≥", bound)
            case Gt(gt=bound):
                low = ("(", ">", bound)
            case Le(le=bound):
                high = None if bound == LARGEST else ("]", "≤", bound)
            case Lt(lt=bound):
                high = (")", "<", bound)
    if low is not None and high is not None:
        return f" in {low[0]}{plain(low[2])}, {plain(high[2])}{high[0]}"
    only = low or high
    return "" if only is None else f" {only[1]} {plain(only[2])}"


def optional_components(component: type, prefix: str) -> list[tuple[str, type]]:
    """Names and types of the components that are null unless they are set."""
    kinds = ((f"{prefix}{name}", kind, _component(kind)) for name, kind in get_type_hints(component).items())
    return [
        (name, inner)
        for name, kind, inner in kinds
        if inner is not None and inner is not kind and get_origin(kind) is not dict
    ]


def _component(kind: Any) -> type | None:
    """The dataclass of a section, also of an optional one; None for any other setting."""
    kinds = (candidate for candidate in (kind, *get_args(kind)) if isinstance(candidate, type))
    return next((candidate for candidate in kinds if is_dataclass(candidate)), None)


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"

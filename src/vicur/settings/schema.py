"""Settings of a component, a frozen dataclass, from files, options and `key=value` overrides.

A setting is named by its path through nested dataclasses: `rollout.sampling.temperature`. Settings come in
layers; later layers win over earlier ones. Each layer records its origin, so that an error message can name
the file or the override that caused it.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from pydantic import TypeAdapter, ValidationError

from vicur.settings.familiar import answer_for
from vicur.settings.reading import Unreadable, parse_yaml
from vicur.settings.section import PRIVATE, SECTION, SettingsError, default_of, explain, short
from vicur.wording import is_printable

Component = TypeVar("Component")
_LONGEST_NAME = 200
"""Maximum length of an unknown name for which the nearest setting is searched."""


@dataclass(frozen=True)
class Layer:
    """Settings from one file, option or override.

    Attributes:
        origin: the file, option or override, as the user wrote it.
        flat: values by dotted name.
        origins: origins of the settings that come from elsewhere, such as the base of a file.
    """

    origin: str
    flat: dict[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin_of(self, key: str) -> str:
        """The origin of one setting."""
        return self.origins.get(key, self.origin)


class Schema(Generic[Component]):
    """The settings of a component, by dotted names.

    Args:
        component: a dataclass.
        command: the command whose settings these are, for answers to names from other libraries.
    """

    def __init__(self, component: type[Component], command: str = "") -> None:
        self.command = command
        self.kinds = setting_types(component)
        self._sections = {parent for key in self.kinds for parent in _parents(key)}
        marked = set(private_settings(component))
        self._private = marked | {parent for key in marked for parent in _parents(key)}
        self._adapter: TypeAdapter[Component] = TypeAdapter(component)
        self._defaults = Layer("", dict(_own_defaults(component)))

    def override(self, text: str, origin: str | None = None) -> Layer:
        """The layer of one `key=value` or `--key=value`; `-` in the key is read as `_`.

        Args:
            text: e.g. "optimizer.learning_rate=1e-4".
            origin: the setting as the user wrote it, if that differs from `text`.

        Raises:
            SettingsError: it has no value, or one that YAML cannot read.
        """
        key, equals, value = text.removeprefix("--").partition("=")
        if not equals:
            raise SettingsError(f"Override {text!r} must have the form key=value.")
        key, origin = key.replace("-", "_"), origin or text
        if self._may_hold_key(key):
            origin = re.split("[= ]", origin, maxsplit=1)[0]
        return Layer(origin, self.flatten(nest({key: self._parse(origin, key, value)})))

    def _may_hold_key(self, name: str) -> bool:
        """Whether the value of an override must not be shown: it is private, or its name is not known."""
        known = name in self.kinds or self._is_section(name) or self._entry_of(name) is not None
        inside = any(parent in self.kinds and parent in self._private for parent in _parents(name))
        return not known or inside or name in self._private

    def overrides(self, texts: Iterable[str]) -> list[Layer]:
        """The layers of several overrides, in order."""
        return [self.override(text) for text in texts]

    def flatten(self, settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """Nested settings by dotted name."""
        flat: dict[str, Any] = {}
        for key, value in settings.items():
            if isinstance(value, dict) and value and not self._is_table(f"{prefix}{key}"):
                flat |= self.flatten(value, f"{prefix}{key}.")
            else:  # an empty section selects an optional component without changing its settings
                flat[f"{prefix}{key}"] = value
        return flat

    def load(self, layers: Sequence[Layer]) -> Component:
        """The component with these settings; later layers win, and a null removes what was set before.

        Raises:
            SettingsError: a setting does not exist (the message names the nearest), or a value is invalid.
        """
        for layer in layers:
            for key, value in layer.flat.items():
                if not self.knows(key, value):
                    raise _blamed(layer.origin_of(key), self._complaint(key, value))
        layers = [self._defaults, *layers]
        merged = self.merged("", layers)
        for key, value in merged.flat.items():
            if isinstance(value, bool) and not _takes_bool(self.kinds.get(key)):  # pydantic reads 1 and 0
                raise _blamed(merged.origin_of(key), f"{key} must not be {str(value).lower()}.")
        try:
            component = self._adapter.validate_python(nest(merged.flat))
        except ValidationError as error:
            key, sentence = explain(error, self.kinds, self._private)
            if key in self.kinds:  # set somewhere, or required and set nowhere
                origin = merged.origin_of(key) if key in merged.flat else ""
            else:
                origin = self._origin_of_conflict(layers, sentence)
            raise _blamed(origin, sentence) from error
        for key, value in settings_in(component):
            if (fault := _unfit_number(value)) is not None:
                raise _blamed(merged.origin_of(key) if key in merged.flat else "", f"{key} must be {fault}.")
        return component

    def knows(self, key: str, value: Any) -> bool:
        """Whether there is such a setting, or such a section if the value is {} or null."""
        return key in self.kinds or (value in ({}, None) and self._is_section(key))

    def _complaint(self, key: str, value: Any) -> str:
        if self._is_section(key):
            ending = "" if key in self._private else f", not {short(value)}"
            return f"{key} must be {SECTION}{ending}."
        return self.unknown(key)

    def unknown(self, key: str) -> str:
        """A message that there is no such setting, with the one that was probably meant."""
        if len(key) > _LONGEST_NAME:
            return f"there is no setting {short(key)}."
        near = difflib.get_close_matches(key, list(self.kinds), n=1, cutoff=0.85)
        if "." in key and near:  # a typo
            return f"there is no setting {key!r}; did you mean {near[0]!r}?"
        answer = answer_for(key, self.command)
        same_name = [name for name in self.kinds if name.rpartition(".")[2] == key]
        if answer is None and len(same_name) == 1:
            answer = f"it is {same_name[0]} here."
        if answer is not None:
            return f"there is no setting {key!r}: {answer}"
        near = difflib.get_close_matches(key, list(self.kinds), n=1, cutoff=0.5)
        return f"there is no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ".")

    def _parse(self, origin: str, key: str, value: str) -> Any:
        """A value as YAML reads it, but for a text setting the text itself: a path may contain anything."""
        kind = self.kinds.get(key, self._entry_of(key))
        kinds = set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}
        is_none = NoneType in kinds and value in ("null", "")
        is_list = value.startswith("[") and any(get_origin(option) in (list, tuple) for option in kinds)
        is_word = any(get_origin(option) is Literal and value in get_args(option) for option in kinds)
        if is_word or (str in kinds and not is_none and not is_list):
            return value
        try:
            return parse_yaml(value)
        except Unreadable as error:
            private = self._may_hold_key(key)
            if isinstance(error.__cause__, yaml.YAMLError):
                text = "the value" if private else repr(value)
                raise SettingsError(f"{origin}: {text} is not a value that YAML can read.") from error
            raise SettingsError(f"{origin}: {'the value' if private else short(value)} {error}") from error

    def merged(self, origin: str, layers: Iterable[Layer]) -> Layer:
        """Several layers as one; later settings win.

        A null removes what earlier layers set under that name; a setting that cannot be null then has its
        default.
        """
        flat: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for layer in layers:
            for key, value in layer.flat.items():
                self._put(flat, key, value)
                origins[key] = layer.origin_of(key)
        return Layer(origin, flat, origins)

    def _put(self, flat: dict[str, Any], key: str, value: Any) -> None:
        before = flat.pop(key, None)
        if value is None and self._is_section(key):
            for old in [name for name in flat if name.startswith(f"{key}.")]:
                del flat[old]
        if self._is_table(key) and isinstance(before, dict) and isinstance(value, dict):
            value = _merged_tables(before, value)
        if self._is_table(key) and isinstance(value, dict) and is_dataclass(get_args(self.kinds[key])[1]):
            value = {name: entry for name, entry in value.items() if entry is not None}
        if value is not None or not self._has_default(key):
            flat[key] = value

    def _origin_of_conflict(self, layers: Sequence[Layer], sentence: str) -> str:
        """The origin of the first layer that makes settings contradict each other; "" if the defaults do."""
        for count in range(len(layers)):
            try:
                self._adapter.validate_python(nest(self.merged("", layers[:count]).flat))
            except ValidationError as error:
                if explain(error, self.kinds, self._private)[1] == sentence:
                    return layers[count - 1].origin if count else ""
        return layers[-1].origin if layers else ""

    def _entry_of(self, key: str) -> Any:
        """The type of a table entry such as data.columns.answer; None if the key is not an entry."""
        table = next(
            (name for name in self.kinds if key.startswith(f"{name}.") and self._is_table(name)), None
        )
        return None if table is None else get_args(self.kinds[table])[1]

    def _is_table(self, key: str) -> bool:
        """Whether a setting is a table with keys of the user's choice, such as data.columns."""
        return get_origin(self.kinds.get(key)) is dict

    def _is_section(self, key: str) -> bool:
        return key in self._sections

    def _has_default(self, key: str) -> bool:
        """Whether a null means "use the default": for sections, and for settings that cannot be null."""
        if key in self.kinds:
            return NoneType not in get_args(self.kinds[key])
        return self._is_section(key)


def _merged_tables(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two tables as one; where both have a table under a name, these are merged likewise."""
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged_tables(old, value) if both and isinstance(old, dict) else value
    return merged


def schema_of(component: type[Component], command: str = "") -> Schema[Component]:
    """The schema of a component, made once."""
    return _schema(cast(Any, component), command)


@functools.cache
def _schema(component: type[Any], command: str) -> Schema[Any]:
    return Schema(component, command)


def setting_types(component: type, prefix: str = "") -> dict[str, Any]:
    """The type of every setting by dotted name, including the names of optional components.

    Args:
        component: a dataclass.
        prefix: put before every name.
    """
    hints = get_type_hints(component)
    types: dict[str, Any] = {}
    for name in (item.name for item in fields(cast(Any, component))):
        nested = section_in(hints[name])
        if nested is not hints[name]:
            types[f"{prefix}{name}"] = hints[name]
        if nested is not None:
            types |= setting_types(cast(type, nested), f"{prefix}{name}.")
    return types


def section_in(kind: Any) -> Any:
    """The section that a setting of a type is, or may be; None if it is none. The sections of a table with
    names of the user's choice do not count: they have no dotted names of their own."""
    if get_origin(kind) is dict:
        return None
    parts = (part for part in (kind, *get_args(kind)) if isinstance(part, type))
    return next((part for part in parts if is_dataclass(part)), None)


def private_settings(component: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that are marked as private."""
    hints = get_type_hints(component, include_extras=True)
    for name in (item.name for item in fields(cast(Any, component))):
        kind = hints[name]
        if get_origin(kind) is Annotated and PRIVATE in kind.__metadata__:
            yield f"{prefix}{name}"
        nested = section_in(kind)
        if nested is not None:
            yield from private_settings(nested, f"{prefix}{name}.")


def _own_defaults(component: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings for which a component's default section differs from that section's own defaults.

    Overriding one setting of the section must not reset the others.
    """
    for name, default in _defaults(component).items():
        if is_dataclass(default):
            plain = _defaults(type(default))
            for inner, value in ((inner, vars(default)[inner]) for inner in plain):
                if value != plain[inner] and not is_dataclass(value):
                    yield f"{prefix}{name}.{inner}", value
            yield from _own_defaults(type(default), f"{prefix}{name}.")


def _defaults(component: type[Any]) -> dict[str, Any]:
    """The default of every field that has one."""
    defaults = {field.name: default_of(field) for field in fields(component)}
    return {name: default for name, default in defaults.items() if default is not MISSING}


def _blamed(origin: str, sentence: str) -> SettingsError:
    """The error of a setting, after the place where it was set, if that is known."""
    return SettingsError(f"{origin}: {sentence}" if origin else sentence)


def _parents(key: str) -> Iterator[str]:
    """The names of the sections that a setting is in: "a" and "a.b" for "a.b.c"."""
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def settings_in(component: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The value of every setting of a component by dotted name."""
    for item in fields(component):
        value = getattr(component, item.name)
        if is_dataclass(value):
            yield from settings_in(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def _unfit_number(value: Any) -> str | None:
    """What a number in a value would have to be, in words that follow "must be"; None if all can be used.

    The types check most settings, but not the entries of a mapping, nor the settings of a user's class. An
    integer may have been written as text.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"a finite number, not {value}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"between -2^63 and 2^63, not {short(value)}"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((fault for part in parts if (fault := _unfit_number(part)) is not None), None)


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name as nested sections."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            if not place.get(parent):
                place[parent] = {}
            place = place[parent]
        if not (value == {} and place.get(last)):
            place[last] = value
    return nested


def as_yaml(settings: Any) -> str:
    """All settings of a component as YAML; reading them back gives the same component."""
    plain = json.loads(json.dumps(asdict(settings)))  # tuples become lists, which YAML has too
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes texts that could act on a terminal in double quotes, where such characters are escapes."""

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        allowed, self.allow_unicode = self.allow_unicode, is_printable(text)
        super().write_double_quoted(text, split)
        self.allow_unicode = allowed

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A text as a node."""
        style = None if is_printable(text) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _takes_bool(kind: Any) -> bool:
    """Whether a boolean may go to pydantic, which would silently read it as 1 or 0 for a number."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return not {int, float} & set(kinds) or bool in kinds

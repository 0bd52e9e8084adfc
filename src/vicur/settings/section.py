"""Sections of settings: frozen dataclasses whose fields state their bounds and their help.

    @section
    class SamplingConfig:
        '''How responses are sampled.'''

        temperature: NonNegative = 1.0
        '''Sampling temperature; 0 for greedy decoding.'''

The docstring under a field is its help text, and its type is its check: pydantic validates every
construction, from Python, from a file and from the command line alike. `__post_init__` holds only checks
that relate two fields. NaN and infinity are rejected everywhere.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from dataclasses import Field as DataclassField
from dataclasses import field as dataclass_field
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from vicur.paths import expand

Section = TypeVar("Section")

PathText = Annotated[str, AfterValidator(expand)]
"""The type of a setting that holds a path: `~` becomes the home folder."""
Count = Annotated[int, Field(ge=1)]
"""A whole number, at least 1."""
Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""
NonNegative = Annotated[float, Field(ge=0)]
"""A number, 0 or more."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""A number of at least 0 and below 1."""

_SHOWN = 200
"""Maximum length of a value in a message, in characters."""


class SettingsError(ValueError):
    """Settings that cannot be read or are invalid; the message is written for the user."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclass_field,))
def section(cls: type[Section]) -> type[Section]:
    """Make a class a section of settings.

    Raises:
        SettingsError: raised by the class's constructor if a value does not fit its field.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    validated = cast(type[Section], pydantic_dataclass(frozen=True, config=config)(cls))
    _explain_mistakes(validated)
    return validated


def _explain_mistakes(cls: type[Any]) -> None:
    """Make the constructor raise a one-sentence `SettingsError` instead of pydantic's report."""
    construct: Callable[..., None] = cls.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            kinds = {name: info.annotation for name, info in cls.__pydantic_fields__.items()}
            _, sentence = explain(error, kinds)
            raise SettingsError(sentence) from error

    cls.__init__ = __init__


def default_of(field: DataclassField[Any]) -> Any:
    """The default of a dataclass field; `MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def explain(error: ValidationError, kinds: Mapping[str, Any]) -> tuple[str, str]:
    """The setting that caused the first error, and a sentence that names it.

    Args:
        error: pydantic's error.
        kinds: the type of every setting by its dotted name.

    Returns:
        the setting's dotted name (a section's name or "" if several settings contradict each other), and the
        sentence.
    """
    errors = error.errors(include_url=False)
    key = _setting_of(errors[0], kinds)
    same_setting = [mistake for mistake in errors if _setting_of(mistake, kinds) == key]
    for mistake in same_setting:
        if mistake["type"] == "value_error":
            return key, str(mistake["ctx"]["error"])
    if same_setting[0]["type"] == "unexpected_keyword_argument":
        return key, f"There is no setting {'.'.join(map(str, same_setting[0]['loc']))[:_SHOWN]}."
    if same_setting[0]["type"] == "missing" and ".".join(map(str, same_setting[0]["loc"])) == key:
        return key, f"{key} is required."
    expected = list(dict.fromkeys(_expected(mistake) for mistake in same_setting))
    entry = same_setting[0]["loc"][len(key.split(".")) :]
    name = f"{key}.{entry[0]}" if get_origin(kinds.get(key)) is dict and entry else key
    return key, f"{name} must be {' or '.join(expected)}, not {short(same_setting[0]['input'])}."


def _setting_of(error: ErrorDetails, kinds: Mapping[str, Any]) -> str:
    """The longest prefix of an error's location that is a setting or a section.

    Indices into lists and branches of unions may follow it.
    """
    parts = [str(part) for part in error["loc"]]
    sections = {key.rpartition(".")[0] for key in kinds}
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in kinds or name in sections:
            return name
    return ".".join(parts[:1]) if error["type"] == "unexpected_keyword_argument" else ""


def _expected(error: ErrorDetails) -> str:
    """A description of the expected value that can follow "must be"."""
    bounds = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"above {plain(bounds['gt'])}"
        case "greater_than_equal":
            return "0 or more" if bounds["ge"] == 0 else f"at least {plain(bounds['ge'])}"
        case "less_than":
            return f"below {plain(bounds['lt'])}"
        case "less_than_equal":
            return f"at most {plain(bounds['le'])}"
        case "literal_error":
            return _one_of(re.findall(r"'([^']*)'", bounds["expected"]), error["input"])
    return _KINDS.get(error["type"], error["msg"].removeprefix("Input should be ").lower())


def short(value: object) -> str:
    """A value as Python writes it, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def plain(bound: float) -> str:
    """A bound as text, whole numbers without a decimal point: 1, not 1.0."""
    return str(int(bound)) if float(bound).is_integer() else str(bound)


def _one_of(choices: Sequence[str], value: object) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f"one of {', '.join(choices)}" + (f" ({near[0]}?)" if near else "")


SECTION = "a section: {} for its defaults, or settings by name"
"""The expected value of a section, in words that follow "must be"."""
_NUMBERS = {"int": "an integer", "float": "a number", "bool": "true or false", "string": "a string"}
_KINDS = {
    **{f"{kind}_{how}": words for kind, words in _NUMBERS.items() for how in ("type", "parsing")},
    "int_from_float": "an integer",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping from names to values",
    "missing": "a longer list",
    "dataclass_type": SECTION,
}

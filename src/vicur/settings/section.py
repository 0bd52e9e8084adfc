"""Sections of settings: frozen dataclasses whose fields state their bounds and their help.

    @section
    class SamplingConfig:
        '''How responses are sampled.'''

        temperature: NonNegative = 1.0
        '''Sampling temperature; 0 for greedy decoding.'''

The docstring under a field is its help text, and its type is its check: pydantic validates every
construction, from Python, from a file and from the command line alike. `__post_init__` holds only checks
that relate two fields. NaN and infinity are rejected everywhere. Texts are `Text` or `PathText`, numbers have
bounds, and a mapping to any values is `JsonTable`.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from dataclasses import Field as DataclassField
from dataclasses import field as dataclass_field
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from vicur.paths import expand
from vicur.settings.reading import DEEPEST

Section = TypeVar("Section")

_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs, which no encoding has."""
_SHOWN = 200
"""Maximum length of a value in a message, in characters."""


def unfit_text(text: str) -> str | None:
    """Why neither a file nor a request can hold a text; None if they can."""
    if "\0" in text:
        return "a null character"
    if _HALVES.search(text):
        return "characters that are not UTF-8"
    return None


def _usable(text: str) -> str:
    if (fault := unfit_text(text)) is not None:
        raise PydanticCustomError("text", "a text without {fault}", {"fault": fault})
    return text


def _json_table(table: dict[str, Any]) -> dict[str, Any]:
    if (fault := _unlike_json(table, "", 0)) is not None:
        raise PydanticCustomError("json", "a mapping of values that JSON has ({fault})", {"fault": fault})
    return table


def _unlike_json(value: object, name: str, depth: int) -> str | None:
    """The first part of a value that JSON cannot hold, with its name; None if JSON can hold all of it."""
    if depth > DEEPEST:
        return f"{name} is nested too deeply"
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str):
        return None if (fault := unfit_text(value)) is None else f"{name} has {fault}"
    if isinstance(value, dict):
        if (odd := next((key for key in value if not isinstance(key, str)), None)) is not None:
            return f"the name {short(odd)} is not a text"
        if any(unfit_text(key) is not None for key in value):
            return "a name cannot be written"
        parts = [(part, f"{name}.{key}" if name else key) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(part, f"{name}.{index}") for index, part in enumerate(value)]
    else:
        return f"{name} is a {type(value).__name__}"
    faults = (_unlike_json(part, inner[:_SHOWN], depth + 1) for part, inner in parts)
    return next((fault for fault in faults if fault is not None), None)


LARGEST = 1e30
"""Largest absolute value of a number. Float32, in which losses are computed, has numbers up to 3.4e38."""
Text = Annotated[str, AfterValidator(_usable)]
"""The type of a setting that holds a text: files and requests can hold it."""
PathText = Annotated[Text, AfterValidator(expand)]
"""The type of a setting that holds a path: `~` becomes the home folder."""
JsonTable = Annotated[dict[str, Any], AfterValidator(_json_table)]
"""A mapping to any values that JSON has."""
PRIVATE = "private"
"""Marks a setting, `Annotated[..., PRIVATE]`, in which a user may have written a key: messages name it, but
never show its value."""
Count = Annotated[int, Field(ge=1)]
"""A whole number, at least 1."""
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
"""A number of tokens that a tensor can have."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed: what all random number generators accept."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
"""Any number."""
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
"""A number above 0."""
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
"""A number, 0 or more."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""A number above 0 and at most 1."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""A number of at least 0 and below 1."""


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
            infos = cls.__pydantic_fields__
            kinds = {name: info.annotation for name, info in infos.items()}
            private = {name for name, info in infos.items() if PRIVATE in info.metadata}
            _, sentence = explain(error, kinds, private)
            raise SettingsError(sentence) from error

    cls.__init__ = __init__


def default_of(field: DataclassField[Any]) -> Any:
    """The default of a dataclass field; `MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def explain(
    error: ValidationError, kinds: Mapping[str, Any], private: Collection[str] = ()
) -> tuple[str, str]:
    """The setting that caused the first error, and a sentence that names it.

    Args:
        error: pydantic's error.
        kinds: the type of every setting by its dotted name.
        private: the settings, and the sections with settings, whose values are not shown.

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
    name = key
    if get_origin(kinds.get(key)) is dict and entry:
        name = f"each name in {key}" if entry[-1] == "[key]" else f"{key}.{entry[0]}"
    value = "" if key in private else f", not {short(same_setting[0]['input'])}"
    return key, f"{name} must be {' or '.join(expected)}{value}."


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
        case "text" | "json" | "name":
            return error["msg"]
    return _KINDS.get(error["type"], error["msg"].removeprefix("Input should be ").lower())


def short(value: object) -> str:
    """A value as Python writes it, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def plain(bound: float) -> str:
    """A bound as text, whole numbers without a decimal point: 1, not 1.0; large ones as 2^63 or 1e+30."""
    if abs(bound) >= 2**53:
        power = math.log2(abs(bound))
        return f"2^{power:g}" if power.is_integer() and bound > 0 else f"{bound:g}"
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
    "too_long": "a shorter list",
    "string_unicode": "a text without characters that are not UTF-8",
    "dataclass_type": SECTION,
}

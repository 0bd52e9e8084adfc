"""The options of a multiple-choice question, if the data hold them outside its text."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicur.bad_rows import RowProblem
from vicur.data.written import parse_if_written, parse_written

LETTERS = "{letter}. {text}"
"""The format that `data.options=letters` selects: one option per line, such as "A. 3 cm"."""

_LABEL_KEYS = ("label", "letter", "key", "id", "index", "option")
_TEXT_KEYS = ("text", "content", "value", "option", "choice", "answer", "name")
_LABELLED = re.compile(r"\s*[(\[]?([A-Za-z]|\d{1,2})[)\].:、\uff0e]\s*(?=\S)")
"""A label at the start of an option's text: "A. ", "(b) ", "1) "."""
_COLUMN = re.compile(r"(?:(option|choice|opt)s?[ _]?([a-z]|\d{1,2})|([A-Z]))", re.IGNORECASE)


@dataclass(frozen=True)
class Choices:
    """Options in the order of their letters.

    Attributes:
        texts: texts of the options, without labels.
        labels: labels in the data; A, B, ... if the data have none.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def letter_of(self, gold: str) -> str:
        """The letter of the option whose label is the gold answer, if labels are not letters ("2" with the
        labels "1", "2"); any other answer unchanged."""
        letters = tuple(letter(i) for i in range(len(self.labels)))
        if tuple(label.upper() for label in self.labels) == letters or gold not in self.labels:
            return gold
        return letters[self.labels.index(gold)]


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    name = ""
    index += 1
    while index:
        index, last = divmod(index - 1, 26)
        name = string.ascii_uppercase[last] + name
    return name


def choice_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Columns that hold one option each, in order: A, B, C, ... or option_a, option_b, ... or choice1, ...

    Returns:
        the columns; empty unless at least the first two letters or numbers have one.
    """
    families: dict[tuple[str, bool], dict[str, str]] = {}
    for name in names:
        match = _COLUMN.fullmatch(name)
        if match is None or (match[3] is not None and not name.isupper()):
            continue
        label = (match[2] or match[3]).upper()
        families.setdefault(((match[1] or "").lower(), label.isdigit()), {})[label] = name
    for family in families.values():
        for labels in (
            [letter(i) for i in range(26)],
            list(map(str, range(26))),
            list(map(str, range(1, 26))),
        ):
            following = [family[label] for label, _ in zip(labels, family, strict=False) if label in family]
            if len(following) >= 2 and labels[0] in family and labels[1] in family:
                return tuple(following)
    return ()


def read_choices(value: Any) -> Choices | None:
    """The options in a value; None if it has none.

    Args:
        value: a list of texts, such a list written as text, an object from letters to texts, an object of the
            lists `label` and `text`, a list of objects with a label and a text, or a text with an option per
            line.

    Raises:
        RowProblem: an option is not a text.
    """
    value = _lines(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        value = _of_mapping(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    pairs = [_pair(item) for item in value]
    while pairs and pairs[-1][1] is None:  # a column or an Arrow field that this row does not use
        pairs.pop()
    if not pairs:
        return None
    labels = [label for label, _ in pairs]
    texts = ["" if text is None else _text(text) for _, text in pairs]
    if any(label is None for label in labels):
        return _without_labels(texts)
    return _in_order([str(label).strip() for label in labels], texts)


def _of_mapping(value: Mapping[str, Any]) -> list[Any]:
    keys = {str(key).lower(): key for key in value}
    lists = {name: column for name, column in value.items() if isinstance(column, list | tuple)}
    if lists:  # an object of lists
        if len({len(column) for column in lists.values()}) > 1:
            raise RowProblem("malformed", "the options are lists of different lengths")
        return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    if any(name in keys for name in _TEXT_KEYS) and any(name in keys for name in _LABEL_KEYS):
        return [value]
    return [{"label": key, "text": text} for key, text in value.items() if text is not None]


def _pair(item: Any) -> tuple[Any, Any]:
    """Label and text of one option; None for a missing one."""
    if not isinstance(item, Mapping):
        return None, item
    text_key = next((key for key in _TEXT_KEYS if item.get(key) is not None), None)
    label_key = next((key for key in _LABEL_KEYS if key != text_key and item.get(key) is not None), None)
    if text_key is None and len(item) == 1:  # {"A": "3 cm"}
        ((label_key, text),) = item.items()
        return label_key, text
    if text_key is None:
        raise RowProblem(
            "malformed",
            f"an option has {', '.join(map(str, item)) or 'nothing'}; label and text were expected",
        )
    return (None if label_key is None else item[label_key]), item[text_key]


def _text(value: Any) -> str:
    if isinstance(value, bytes | list | tuple | dict) or not isinstance(value, str | int | float | bool):
        raise RowProblem("malformed", f"an option is a {type(value).__name__}; a text was expected")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _in_order(labels: list[str], texts: list[str]) -> Choices:
    """Sort options by label if the labels are letters, so that the n-th option has the n-th letter."""
    upper = [label.strip("()[].: ").upper() for label in labels]
    if sorted(upper) == [letter(i) for i in range(len(upper))]:
        order = sorted(range(len(upper)), key=upper.__getitem__)
        return Choices(tuple(texts[i] for i in order), tuple(upper[i] for i in order))
    return Choices(tuple(texts), tuple(labels))


def _without_labels(texts: list[str]) -> Choices:
    """Options from texts; labels inside the texts are removed if they are A, B, ... or 1, 2, ... in order."""
    letters, numbers = ([name(i) for i in range(len(texts))] for name in (letter, lambda i: str(i + 1)))
    matches = [_LABELLED.match(text) for text in texts]
    labels = [match[1].upper() for match in matches if match is not None]
    if len(texts) < 2 or labels not in (letters, numbers):
        return Choices(tuple(texts), tuple(letters))
    bare = [text[match.end() :] for text, match in zip(texts, matches, strict=True) if match is not None]
    return Choices(tuple(bare), tuple(labels))


def _lines(text: str) -> Any:
    """The options in one text: a JSON or Python list, one per line, or labelled A, B, ... in one line."""
    parsed = parse_written(text)
    if parsed is not None:
        return parsed
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    starts: list[int] = []
    for index in range(26):
        label = letter(index)
        marked = re.compile(rf"(?:^|(?<=[\s,;]))[(\[]?{label}[)\].:]\s*(?=\S)").search(
            text, starts[-1] + 1 if starts else 0
        )
        if marked is None:
            break
        starts.append(marked.start())
    if len(starts) < 2:
        return None
    return [
        text[start:end].strip(" \t,;") for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    ]


def check_format(template: str) -> None:
    """Check that options can be written in a format.

    Raises:
        ValueError: it has a field other than letter, number and text, or lacks text.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"data.options is not a format: {error}, in {template!r}.") from error
    if "text" not in fields or not fields <= {"letter", "number", "text"}:
        raise ValueError(
            "data.options must be letters, null, or a format for one option with {text} and optionally "
            f"{{letter}} or {{number}}, such as '({{letter}}) {{text}}', not {template!r}."
        )


def option_lines(texts: Sequence[str], template: str) -> str:
    """The options as lines of a prompt.

    Args:
        texts: texts of the options; an empty one gets no line.
        template: format of a line, with {letter}, {number} and {text}.
    """
    return "\n".join(
        template.format(letter=letter(i), number=i + 1, text=text)
        for i, text in enumerate(texts)
        if text.strip()
    )


def states_options(question: str, texts: Sequence[str]) -> bool:
    """Whether a question's text already lists the options.

    It does if they follow each other, each after its label ("(A) 3 cm (B) 4 cm"), if each has
    a line of its own, or if they are announced ("Options: red, blue").
    """
    options = [" ".join(text.split()) for text in texts if text.strip()]
    lines = {" ".join(line.split()).strip("-*\u2022 ") for line in question.splitlines()}
    if not options or options == [letter(i) for i in range(len(options))]:  # A to D are marked in the image
        return True
    if len(options) > 1 and lines.issuperset(options):
        return True
    text = " ".join(question.split())
    patterns = [re.escape(option) for option in options]
    labelled = [
        rf"\b(?:{letter(i)}|{i + 1})[)\].:、\uff0e]*\W*?{pattern}" for i, pattern in enumerate(patterns)
    ]
    announced = r"\b(?:options|choices|选项)\W*" + r"\W+".join(patterns)
    return any(
        re.search(pattern + r"(?!\w)", text, re.IGNORECASE) for pattern in (r"\W*?".join(labelled), announced)
    )


def stated_options(value: Any) -> str | None:
    """The text of options that cannot be split; None if the value is not a text."""
    value = parse_if_written(value)
    return value.strip() if isinstance(value, str) and value.strip() else None

"""Reads YAML and JSON that may come from anywhere: bounded in size, depth and repetition.

What cannot be read is an `Unreadable`, whose text follows the name of the file or the setting: neither a file
of a gigabyte, nor brackets within brackets, nor a text whose aliases multiply takes memory or time.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

LARGEST_YAML = 2**20
"""Maximum size of a YAML text in bytes. A recipe has a few thousand."""
LARGEST_JSON = 2**26
"""Maximum size of a JSON file in bytes. The index of the weights of a large model has a few million."""
DEEPEST = 50
"""Maximum depth of nested lists and mappings in YAML."""
_MOST_NODES = 50_000
"""Maximum number of values in YAML, where what an alias repeats counts each time."""
_LONGEST_NUMBER = 30
"""Maximum number of characters of a number that a message quotes."""


class Unreadable(ValueError):
    """A text that cannot be read; the message follows the name of the text."""


def read_text(file: Path, largest: int) -> str:
    """The text of a regular file.

    Args:
        file: the file, or a link to it.
        largest: its maximum size in bytes.

    Raises:
        Unreadable: it is a folder, a pipe or a device, is larger, or is not UTF-8.
        OSError: it does not exist, or there is no permission to read it.
    """
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, and a device may never end
        raise Unreadable("is not a regular file.")
    with file.open("rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise Unreadable(f"is larger than {largest / 2**20:g} MiB.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not a text in UTF-8: {error.reason} at byte {error.start}.") from error


def parse_yaml(text: str) -> Any:
    """A value from YAML.

    Raises:
        Unreadable: it is not YAML, sets a key twice, or is too large, too deep, or part of itself.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_YAML:
        raise Unreadable(f"is larger than {LARGEST_YAML / 2**20:g} MiB.")
    try:
        loader = _Loader(text)
        _bound(loader)
        root = loader.get_single_node()
        _Nodes().check(root)
        return None if root is None else loader.construct_document(root)
    except RecursionError:
        raise Unreadable("is nested too deeply.") from None
    except Unreadable:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date without such a day
        raise Unreadable(f"is not valid YAML: {' '.join(str(error).split())}") from error


def parse_json(text: str, *, finite: bool = True) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: the text.
        finite: whether numbers must be finite.

    Raises:
        Unreadable: it is not JSON, is nested too deeply, has a number that is not finite, or is no object.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite) if finite else json.loads(text)
    except RecursionError:
        raise Unreadable("is nested too deeply.") from None
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise Unreadable(f"must hold a JSON object, not {kind}.")
    return value


def read_json(file: Path, *, finite: bool = True) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        finite: as in `parse_json`.

    Raises:
        Unreadable: as `read_text` and `parse_json`.
        OSError: as `read_text`.
    """
    return parse_json(read_text(file, LARGEST_JSON), finite=finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    number = text if len(text) <= _LONGEST_NUMBER else f"{text[:_LONGEST_NUMBER]}..."
    raise Unreadable(f"has {number}, where a finite number is expected.")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also names the line of a value that does not fit its tag."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"the value does not fit its tag {node.tag}", node.start_mark
            ) from error


def _bound(loader: yaml.SafeLoader) -> None:
    """Make a loader stop as soon as a document is too deep or too large, before all of it is read."""
    compose: Callable[..., yaml.Node | None] = loader.compose_node
    depth = count = 0

    def bounded(parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > DEEPEST:
            raise Unreadable("is nested too deeply.")
        if count > _MOST_NODES:
            raise Unreadable(f"has more than {_MOST_NODES:,} values.")
        node = compose(parent, index)
        depth -= 1
        return node

    loader.compose_node = bounded  # type: ignore[method-assign]


class _Nodes:
    """Measures a YAML document, in which an alias is another reference to the same node."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def check(self, root: yaml.Node | None) -> None:
        """Check keys, depth and number of values.

        Raises:
            Unreadable: see `parse_yaml`.
        """
        if root is not None:
            self._measure(root)

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        """The number of values in a node with all that its aliases repeat, and its depth."""
        if not isinstance(node, yaml.CollectionNode):
            return 1, 0
        if id(node) in self._open:
            raise Unreadable("has a value that contains itself.")
        if id(node) not in self._sizes:
            self._open.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
            parts = [self._measure(part) for part in _parts(node)]
            self._open.discard(id(node))
            count, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
            if count > _MOST_NODES:
                raise Unreadable(f"has more than {_MOST_NODES:,} values.")
            if depth > DEEPEST:
                raise Unreadable("is nested too deeply.")
            self._sizes[id(node)] = count, depth
        return self._sizes[id(node)]


def _parts(node: yaml.CollectionNode) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _check_keys(node: yaml.MappingNode) -> None:
    """Check that no key is set twice: YAML would silently keep the last value."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise Unreadable(f"sets {key.value} twice, in line {lines[key.value]} and in line {line}.")
            lines[key.value] = line

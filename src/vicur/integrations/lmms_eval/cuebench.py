"""CueBench as a task of lmms-eval, for any of its chat models.

The harness reads the file itself, with `datasets`; answers are graded by `Grader`, as `vicur eval` does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.task import ConfigurableMessagesTask
from PIL import Image

from vicur.media.images import ImageReader
from vicur.paths import expand
from vicur.rewards.grader import Grader

FILE = "VICUR_CUEBENCH"
"""Environment variable with the path of the problems."""
PLACEHOLDER = "<image>"


class CueBench(ConfigurableMessagesTask):  # type: ignore[misc]
    """The task: problems of the file that the environment variable `VICUR_CUEBENCH` names.

    Args:
        config: settings of the task's YAML file.

    Raises:
        ValueError: the variable is not set, or there is no such file.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:
        """Open the file; nothing is downloaded."""
        super().download({**(dataset_kwargs or {}), "data_files": {"test": str(problems_file())}})


def problems_file() -> Path:
    """The file with the problems.

    Raises:
        ValueError: the variable is not set, or there is no such file.
    """
    name = os.environ.get(FILE, "")
    if not name:
        raise ValueError(
            f"Set {FILE} to a file with problems: vicur cuebench make --split test --n 600 --output "
            f"test.parquet; export {FILE}=test.parquet"
        )
    path = Path(expand(name)).absolute()
    if not path.is_file():
        raise ValueError(f"{FILE}={name}: there is no such file.")
    return path


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question without placeholders."""
    return str(doc["problem"]).replace(PLACEHOLDER, "")


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The images."""
    reader = ImageReader((problems_file().parent,))
    return [reader.read(entry) for entry in doc["images"]]


def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chat: each image where its placeholder is."""
    images = iter(doc_to_visual(doc))
    content: list[dict[str, Any]] = []
    for number, text in enumerate(str(doc["problem"]).split(PLACEHOLDER)):
        if number:
            content.append({"type": "image", "url": next(images)})
        if text:
            content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The accuracy of a response, 0 or 1; nothing if the problem has no answer to grade by."""
    grade = _grader().grade(results[0], doc["answer"])
    return {} if grade is None else {"accuracy": float(grade.correct)}


@functools.cache
def _grader() -> Grader:
    """One grader for all threads of the harness; they take turns."""
    return Grader()

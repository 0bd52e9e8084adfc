"""Prompt templates for cues: files with a name and a version, packaged or the user's own.

A prompt is a YAML file:

    name: general
    version: 1
    field: cue                    # key of the requested JSON object; `cue` by default
    system: ...
    user: ... {question} ...      # {question} is replaced by the problem's text and media
    answer: ... {answer} ...      # optional; only used if the gold answer is sent
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vicur.settings.reading import LARGEST_YAML, Unreadable, parse_yaml, read_text

QUESTION, ANSWER = "{question}", "{answer}"
_KEYS = ("name", "version", "field", "system", "user", "answer")
_WORD = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True)
class CuePrompt:
    """A prompt that asks a model for cues.

    Attributes:
        name: short name, for records.
        version: increased with every change of the text.
        system: the system message.
        user: the user's message, with `{question}` once.
        field: key of the JSON object that is requested as reply.
        answer: appended to the user's message, with `{answer}` once, if the gold answer is sent.

    Raises:
        ValueError: `{question}` or `{answer}` does not occur exactly once, or occurs where it is not allowed.
    """

    name: str
    version: int
    system: str
    user: str
    field: str = "cue"
    answer: str | None = None

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.name) or not _WORD.fullmatch(self.field):
            raise ValueError(
                f"Name and field of a cue prompt must be a word, not {self.name!r} and {self.field!r}."
            )
        if self.user.count(QUESTION) != 1 or QUESTION in self.system:
            raise ValueError(
                f"The user's message of the prompt {self.name} must have {QUESTION} exactly once."
            )
        if ANSWER in self.user or ANSWER in self.system:
            raise ValueError(
                f"The prompt {self.name} has {ANSWER} in its question; move it to a separate text under "
                "`answer`, which is only sent with include_answer=true."
            )
        if self.answer is not None and self.answer.count(ANSWER) != 1:
            raise ValueError(
                f"The text under `answer` of the prompt {self.name} must have {ANSWER} exactly once."
            )

    def answer_text(self, answer: str) -> str:
        """The text that gives the gold answer.

        Raises:
            ValueError: this prompt has none.
        """
        if self.answer is None:
            raise ValueError(
                f"The prompt {self.label} has no text under `answer` to send the gold answer with; leave "
                "include_answer out, or choose a prompt that has one, such as rationale."
            )
        before, after = self.answer.split(ANSWER)
        return f"{before}{answer}{after}"

    @property
    def label(self) -> str:
        """Name and version, e.g. "general@1"."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """A digest of every text that may be sent, so that a changed text is noticed even if the version is
        unchanged."""
        texts = (self.label, self.field, self.system, self.user, self.answer or "")
        return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def packaged_prompts() -> tuple[str, ...]:
    """Names of the prompts that come with the package."""
    folder = resources.files("vicur.cues") / "templates"
    return tuple(sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml")))


def load_prompt(name: str) -> CuePrompt:
    """Load a packaged prompt, or one from a file.

    Args:
        name: one of `packaged_prompts`, or the path of a YAML file.

    Raises:
        ValueError: there is no such prompt, or its keys or values are wrong.
    """
    if name in packaged_prompts():
        text = (resources.files("vicur.cues") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
        return _parse(text, name)
    path = Path(name)
    if not path.is_file():
        known = ", ".join(packaged_prompts())
        raise ValueError(f"There is no cue prompt {name}: it is neither one of {known} nor a file.")
    try:
        return _parse(read_text(path, LARGEST_YAML), str(path))
    except Unreadable as error:
        raise ValueError(f"The cue prompt {path} {error}") from error
    except OSError as error:
        raise ValueError(f"The cue prompt {path} cannot be read: {error}") from error


def _parse(text: str, where: str) -> CuePrompt:
    try:
        values = parse_yaml(text)
    except Unreadable as error:
        raise ValueError(f"The cue prompt {where} {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The cue prompt {where} must have the keys {', '.join(_KEYS)}.")
    unknown = [str(key) for key in values if key not in _KEYS]
    missing = [key for key in ("name", "version", "system", "user") if values.get(key) is None]
    if unknown or missing:
        fault = f"has the unknown key {unknown[0]}" if unknown else f"lacks {' and '.join(missing)}"
        raise ValueError(f"The cue prompt {where} {fault}; its keys are {', '.join(_KEYS)}.")
    version = values["version"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError(f"The cue prompt {where} has the version {version!r}; a whole number is expected.")
    texts = {key: values[key] for key in _KEYS if key != "version" and values.get(key) is not None}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(
                f"The cue prompt {where} has {key} as a {type(value).__name__}, not as a string."
            )
    return CuePrompt(version=version, **texts)

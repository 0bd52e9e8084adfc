"""Views with a text that only a teacher may see."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vicur.bad_rows import RowProblem
from vicur.data.sample import COLUMN, TEXT_KINDS, Message, Privilege, Sample, TextKind
from vicur.data.views.replaced import with_crops
from vicur.data.views.view import Attempt, Part, Shown


@dataclass(frozen=True)
class Hinted(Part):
    """The problem with a privileged text: `[Hint]: <text>` on a new line after the question.

    ViCuR section 4.2; the paper does not state where the hint goes, so this place is our choice.

    Attributes:
        kind: a kind of text, or `column:NAME` for the text in a column that is no field of a problem.

    Raises:
        ValueError: there is no such kind.
    """

    kind: str
    privileged = True
    rank = 0

    def __post_init__(self) -> None:
        if self.kind not in TEXT_KINDS and not self.kind.startswith(COLUMN):
            raise ValueError(f"A hint is {', '.join(TEXT_KINDS)} or {COLUMN}NAME, not {self.kind!r}.")

    @property
    def name(self) -> str:
        return self.kind

    def applies(self, sample: Sample) -> bool:
        return _hint(sample, self.kind) is not None

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        """What is shown so far, with the hint.

        Raises:
            ValueError: the sample has no such text.
        """
        hint = _hint(sample, self.kind)
        if hint is None:
            raise ValueError(f"Sample {sample.id} has no {self.kind} to hint the teacher with.")
        return replace(prompt, messages=_append_to_question(prompt.messages, f"\n[Hint]: {hint}"))


@dataclass(frozen=True)
class TeacherPrompt(Part):
    """The sample's ready-made prompt for a teacher, instead of the problem's messages."""

    name = "teacher_prompt"
    privileged = True
    rank = -2

    def applies(self, sample: Sample) -> bool:
        return sample.privilege.teacher_prompt is not None

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        """The teacher prompt with the problem's media, and with the images for the teacher at their places.

        Raises:
            ValueError: the sample has no teacher prompt.
        """
        if sample.privilege.teacher_prompt is None:
            raise ValueError(f"Sample {sample.id} has no teacher_prompt.")
        prompt = replace(prompt, messages=sample.privilege.teacher_prompt)
        return (
            with_crops(prompt, sample, sample.privilege.images) if sample.privilege.prompt_crops else prompt
        )


@dataclass(frozen=True)
class Verdict(Part):
    """The problem with the response that is scored, and whether its answer is right.

    A teacher that knows what became of a response can tell the tokens that led there (a graded form of the
    feedback of SDPO, arXiv 2601.20802, and VISD, 2605.06094). A response that could not be graded is shown
    without a verdict.
    """

    name = "verdict"
    privileged = True
    hindsight = True
    rank = 0

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        if attempt is None:
            return prompt
        text = f"\n[Attempt]: {attempt.response}"
        if attempt.correct is not None:
            text += f"\n[Verdict]: {'correct' if attempt.correct else 'incorrect'}"
        return replace(prompt, messages=_append_to_question(prompt.messages, text))


@dataclass(frozen=True)
class Solution(Part):
    """The problem with another response to it whose answer is right (SDPO, arXiv 2601.20802).

    If no other response is right, nothing is added.
    """

    name = "solution"
    privileged = True
    hindsight = True
    rank = 0

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        if attempt is None or attempt.solution is None:
            return prompt
        messages = _append_to_question(prompt.messages, f"\n[Solution]: {attempt.solution}")
        return replace(prompt, messages=messages)


def without_privilege(sample: Sample) -> Sample:
    """The sample reduced to the problem; what a student is shown must be the same as for the full sample."""
    return replace(sample, privilege=Privilege(), answer=None, meta={})


def privileged_texts(sample: Sample) -> dict[TextKind, str]:
    """The texts of a sample that no student may read, by kind. A ready-made teacher prompt is not among them,
    because it contains the problem too."""
    texts = {kind: getattr(sample.privilege, kind) for kind in TEXT_KINDS}
    return {kind: text for kind, text in texts.items() if text}


def _hint(sample: Sample, kind: str) -> str | None:
    """A privileged text of a sample; None where it has none.

    Raises:
        RowProblem: the column holds something other than a text.
    """
    if not kind.startswith(COLUMN):
        text: str | None = getattr(sample.privilege, kind)
        return text
    value = sample.meta.get(kind.removeprefix(COLUMN))
    if value is not None and not isinstance(value, str):
        raise RowProblem("malformed", f"{kind} takes a column of texts, not a {type(value).__name__}")
    return value if value is not None and value.strip() else None


def _append_to_question(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The messages with `text` at the end of the last user message."""
    index = max(i for i, message in enumerate(messages) if message["role"] == "user")
    content = [*messages[index]["content"], {"type": "text", "text": text}]
    changed = {**messages[index], "content": content}
    return (*messages[:index], changed, *messages[index + 1 :])

"""Teachers: who looks at the student's answers, and under which view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vicur.data.views import Hinted, Plain, View
from vicur.models.load import LoadedModel, load_model, stock_copy
from vicur.models.vocabulary import check_same_vocabulary
from vicur.scoring.scorer import Scorer, ScoringConfig


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches, and what the teacher sees beyond the student's prompt."""

    model: str = "self"
    """"self": the student's own starting weights without recovery (OPSD). Else a checkpoint (OPD)."""
    privilege: Literal["none", "answer", "rationale", "cue", "teacher_prompt"] = "cue"
    """Which training-time text the teacher is shown as a hint; teacher_prompt takes the place of the
    student's prompt."""
    missing_privilege: Literal["plain", "skip", "error"] = "plain"
    """A sample without that text: show the student's prompt, leave the sample out, or stop."""

    @property
    def view(self) -> View:
        """What the teacher is shown."""
        if self.privilege == "none":
            return Plain()
        missing: Literal["plain", "error"] = "plain" if self.missing_privilege == "plain" else "error"
        return Hinted(self.privilege, missing)


class Teacher:
    """A frozen model that scores rollouts, under its own view or another.

    Args:
        loaded: the model; its parameters are frozen here.
        config: what it sees.
        scoring: how it is run.
    """

    def __init__(
        self, loaded: LoadedModel, config: TeacherConfig, scoring: ScoringConfig | None = None
    ) -> None:
        loaded.model.requires_grad_(False)
        loaded.model.eval()
        self.loaded = loaded
        self.scorer = Scorer(loaded, scoring)
        self.view = config.view

    @classmethod
    def of(cls, config: TeacherConfig, student: LoadedModel, scoring: ScoringConfig | None = None) -> Teacher:
        """Load the teacher, or copy the student as it is now, without its recovery module.

        Raises:
            ValueError: the vocabularies differ.
        """
        if config.model == "self":
            return cls(stock_copy(student), config, scoring)
        loaded = load_model(config.model)
        check_same_vocabulary(student.processor.tokenizer, loaded.processor.tokenizer)
        if loaded.model.get_output_embeddings().weight.shape[0] < student.vocabulary.size:
            raise ValueError(
                f"The teacher's head has fewer rows than the student's vocabulary of "
                f"{student.vocabulary.size} tokens."
            )
        # Both are scored over the same words, whatever stop tokens the teacher's own files name.
        shared = LoadedModel(loaded.model, loaded.processor, student.vocabulary)
        return cls(shared, config, scoring)

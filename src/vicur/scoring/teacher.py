"""Teachers: who looks at the student's answers, and under which view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vicur.data.views import Hinted, Plain, View
from vicur.models.load import LoadedModel, load_model, stock_copy
from vicur.models.vocabulary import check_same_vocabulary
from vicur.rollouts.rollout import Rollouts
from vicur.scoring.scorer import Scorer


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches, and what the teacher sees beyond the student's prompt."""

    model: str = "self"
    """"self": the student's own starting weights without recovery (OPSD). Else a checkpoint (OPD)."""
    privilege: Literal["none", "answer", "rationale", "cue"] = "cue"
    """Which training-time text the teacher is shown as a hint."""
    missing_privilege: Literal["plain", "skip", "error"] = "plain"
    """A sample without that text: show the student's prompt, leave the sample out, or stop."""
    samples_per_batch: int = 64
    """Samples scored in one forward pass."""

    def __post_init__(self) -> None:
        if self.samples_per_batch < 1:
            raise ValueError(f"teacher.samples_per_batch must be at least 1, not {self.samples_per_batch}.")

    @property
    def view(self) -> View:
        """What the teacher is shown."""
        if self.privilege == "none":
            return Plain()
        missing: Literal["plain", "error"] = "plain" if self.missing_privilege == "plain" else "error"
        return Hinted(self.privilege, missing)


class Teacher:
    """A frozen model that scores rollouts under its own view.

    Args:
        loaded: the model; its parameters are frozen here.
        config: what it sees.
    """

    def __init__(self, loaded: LoadedModel, config: TeacherConfig) -> None:
        loaded.model.requires_grad_(False)
        loaded.model.eval()
        self.scorer = Scorer(loaded)
        self.view = config.view
        self.config = config

    @classmethod
    def of(cls, config: TeacherConfig, student: LoadedModel) -> Teacher:
        """Load the teacher, or copy the student as it is now, without its recovery module.

        Raises:
            ValueError: the vocabularies differ.
        """
        if config.model == "self":
            return cls(stock_copy(student), config)
        loaded = load_model(config.model)
        check_same_vocabulary(student.processor.tokenizer, loaded.processor.tokenizer)
        if loaded.model.get_output_embeddings().weight.shape[0] < student.vocabulary.size:
            raise ValueError(
                f"The teacher's head has fewer rows than the student's vocabulary of "
                f"{student.vocabulary.size} tokens."
            )
        # Both are scored over the same words, whatever stop tokens the teacher's own files name.
        return cls(LoadedModel(loaded.model, loaded.processor, student.vocabulary), config)

    def log_probs(self, rollouts: Rollouts) -> Float[Tensor, " N"]:
        """log q(y_t) of every response token under the teacher's view, in the flat order."""
        return self.scorer.log_probs(
            rollouts.samples,
            rollouts.response_ids,
            self.view,
            samples_per_batch=self.config.samples_per_batch,
        )

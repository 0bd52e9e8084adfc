"""Parity: whether an engine with weights of its own computes what the trainer computes.

An engine may silently see another image, or have other weights, than the trainer. So a few of the responses
that it has just sampled are scored by the trainer, and the log-probs of their tokens are compared:

    difference_t = |log p_engine(y_t | y_<t, x) - log p_trainer(y_t | y_<t, x)|

both at temperature 1, over the tokens that can be sampled, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vicur import distributed
from vicur.data.views import View
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.rollouts.rollout import Rollouts
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.vllm.backend import EngineError


class Bounds(NamedTuple):
    """Largest differences that pass, in nats.

    Attributes:
        mean: bound of the mean over tokens.
        largest: bound of every single token.
    """

    mean: float
    largest: float


BOUNDS = {torch.float32: Bounds(1e-4, 1e-3), torch.bfloat16: Bounds(0.05, 2.0)}
"""By compute dtype. In float32 an exact engine differs by 1e-5 and another image by 1e-2 (docs/engines.md).
bfloat16 has 8 bits: rounding alone moves the log-prob of a rare token far, so that only the mean tells."""


@dataclass(frozen=True)
class Parity:
    """The differences between engine and trainer.

    Attributes:
        mean: mean over the tokens, in nats.
        largest: largest of all, in nats.
        problem: id of the problem whose response has it.
    """

    mean: float
    largest: float
    problem: str

    def metrics(self) -> dict[str, float]:
        """The differences as metrics of a step."""
        return {"engine_difference": self.mean, "engine_difference_max": self.largest}


class ParityCheck:
    """Compares an engine with the trainer, on responses that the engine has just sampled.

    Args:
        loaded: the trainer's model, which the engine has a copy of.
        engine: name of the engine, for messages.
        scoring: layout and batching of the trainer's forward passes.
        responses: number of responses on each rank that are compared.
        bound: bound of the mean difference in nats, instead of the one for the dtype.
        limits: pixel limits of images and frames; by default the checkpoint's own.
        view: what the student is shown.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        engine: str,
        scoring: ScoringConfig,
        responses: int,
        bound: float | None = None,
        limits: PixelLimits | None = None,
        view: View | None = None,
    ) -> None:
        self.engine, self.responses = engine, responses
        default = BOUNDS[loaded.dtype]
        self.bounds = default if bound is None else Bounds(bound, max(default.largest, 10 * bound))
        self.scorer = Scorer(loaded, replace(scoring, vocabulary="sampleable"), limits, view)

    def check(self, rollouts: Rollouts, step: int) -> Parity:
        """Check that engine and trainer agree; all ranks must call this.

        Args:
            rollouts: responses that the engine has sampled to the student's prompts.
            step: rollout step, for the message; 0 before the first.

        Raises:
            EngineError: they do not.
        """
        self.scorer.begin_step(step)
        parity = self.measure(rollouts)
        if self.passes(parity):
            return parity
        raise EngineError(f"At step {step} the engine {self.engine} {self.fault(parity)}")

    def measure(self, rollouts: Rollouts) -> Parity:
        """The differences on the first response to each of a few problems; all ranks must call this."""
        part = rollouts.part(slice(self.responses))
        first = Rollouts(part.samples, tuple(group[:1] for group in part.responses), part.texts)
        difference = (self.log_probs(first) - engine_log_probs(first)).abs()
        index = int(difference.argmax())
        problem = first.samples[int(first.response_index[index])].id
        totals, counts, maxima, problems = zip(
            *distributed.gather((float(difference.sum()), len(difference), float(difference.max()), problem)),
            strict=True,
        )
        largest, problem = max(zip(maxima, problems, strict=True))
        return Parity(sum(totals) / sum(counts), largest, problem)

    def passes(self, parity: Parity) -> bool:
        """Whether the differences are within their bounds; NaN is not."""
        return parity.mean <= self.bounds.mean and parity.largest <= self.bounds.largest

    def fault(self, parity: Parity) -> str:
        """What is wrong, as the end of a sentence about the engine, and what to do."""
        return (
            "does not compute what the trainer computes: their log-probs differ by "
            f"{parity.mean:.1e} nats on average (bound {self.bounds.mean:g}) and by up to "
            f"{parity.largest:.1e} (bound {self.bounds.largest:g}), most on problem {parity.problem}. Its "
            "weights, dtype, images or settings are not the trainer's. Raise rollout.vllm.max_difference to "
            "accept larger differences, or set rollout.engine=torch to sample with the trainer itself."
        )

    def ratios(self, rollouts: Rollouts, cap: float) -> Float[Tensor, " N"]:
        """The truncated importance ratio of each token, min(p_trainer / p_engine, cap).

        Args:
            rollouts: responses that the engine has sampled to the student's prompts.
            cap: largest ratio.
        """
        return (self.log_probs(rollouts) - engine_log_probs(rollouts)).exp().clamp(max=cap)

    def log_probs(self, rollouts: Rollouts) -> Float[Tensor, " N"]:
        """The trainer's log-probs of the tokens, in nats, over the tokens that can be sampled."""
        values = self.scorer.log_probs(rollouts.samples, rollouts.response_ids, self.scorer.view)
        self.scorer.clear_cache()
        return values.float().cpu()


def engine_log_probs(rollouts: Rollouts) -> Float[Tensor, " N"]:
    """The engine's log-probs of the tokens, in nats.

    Raises:
        ValueError: they were not sampled by an engine with weights of its own.
    """
    values = [response.engine_log_probs for response in rollouts.flat_responses]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise ValueError("These responses come from no engine with weights of its own.")
    return torch.cat(known).float()

"""One update of the student: gradients of weighted terms in micro-batches, and the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vicur import distributed
from vicur.data.views import View
from vicur.diagnostics.geometry import angle_of
from vicur.encoding.layout import Sequences
from vicur.models.out_of_memory import BatchSize
from vicur.models.recovery import RecoveryObserver
from vicur.objectives.objective import TEACHER, UNPRIVILEGED, Needs, Summary, Weighed
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import STUDENT, Term
from vicur.scoring.terms import entropy
from vicur.training.metrics import CAPABILITY_GAP, GAP, GAPS, PRIVILEGE_GAP, TOKEN_LOSS, Update
from vicur.training.optimizer import Optimizer
from vicur.training.scoring import ScoredBatch

STUDENT_LOG_PROB, TEACHER_LOG_PROB = "student_log_prob", "teacher_log_prob"


@dataclass(frozen=True)
class StageNorms:
    """Norms of the gradient, over all ranks.

    Attributes:
        alone: norm of the gradient of one stage.
        total: norm of the sum over this stage and all earlier ones.
    """

    alone: float
    total: float


class Updater:
    """Minimises the weighted terms of an objective, one update at a time.

    Args:
        student: scores the student with gradient.
        optimizer: takes the step.
        prompts_per_micro_batch: number of problems whose graphs are in memory together.
    """

    def __init__(self, student: Scorer, optimizer: Optimizer, prompts_per_micro_batch: int) -> None:
        self.student, self.optimizer = student, optimizer
        self.micro_batch = BatchSize(prompts_per_micro_batch, "optimizer.prompts_per_micro_batch")

    def update(self, batch: ScoredBatch, weighed: Weighed, needs: Needs, index: int) -> Update:
        """Compute the gradient of the whole update batch and take one optimizer step.

        If the loss or the gradient is not finite, no step is taken and the weights stay as they were. If
        memory runs out, the micro-batches are halved, also for later updates.

        Args:
            batch: this rank's responses and what was scored on them.
            weighed: the objective's terms with their weights, on the same tokens.
            needs: what the objective needs.
            index: number of earlier updates, for the learning-rate schedule.

        Returns:
            numbers of the whole batch, over all ranks.

        Raises:
            OutOfMemory: memory is exhausted even with micro-batches of one problem.
        """
        update, observer = self.micro_batch.run(
            lambda size: self._observed_gradient(batch, weighed, needs),
            self.student.policy.abandon_pass,
            most=len(batch.rollouts.samples),
        )
        norm = self.optimizer.grad_norm()
        numbers = {**update.numbers, "grad_norm": float(norm)} | _recovery_changes(observer)
        if not math.isfinite(float(norm)) or not all(map(math.isfinite, update.losses.values())):
            self.optimizer.clear()
            return replace(update, numbers=numbers, was_taken=False)
        self.optimizer.step(index, norm)
        return replace(update, numbers=numbers | self.optimizer.learning_rates())

    def _observed_gradient(
        self, batch: ScoredBatch, weighed: Weighed, needs: Needs
    ) -> tuple[Update, RecoveryObserver]:
        with RecoveryObserver(self.student.policy.recovery) as observer:
            return self.gradient(batch, weighed, needs), observer

    def gradient(self, batch: ScoredBatch, weighed: Weighed, needs: Needs) -> Update:
        """Accumulate the gradient of all terms in the parameters, stage by stage.

        If the scale is measured, each stage's gradient is first computed by itself and then added to that of
        the earlier stages, so that two gradients are in memory. The norms and the angle of VGS eq. 23 are
        recorded: gradient_standard, gradient_steering (with alpha), gradient_angle (degrees), and the scale
        s of eq. 15, gradient_scale.
        """
        terms = [*weighed.terms, *_always_observed(batch)]
        losses: dict[str, float] = {}
        tokens: dict[str, Tensor] = {}
        norms: dict[int, StageNorms] = {}
        self.student.policy.train()
        for stage in sorted({term.stage for term in terms}):
            staged = [term for term in terms if term.stage == stage]
            earlier = self.optimizer.take_gradient() if needs.measures_scale else []
            size = self.micro_batch.size
            stage_losses, values = accumulate_gradient(self.student, batch, needs, staged, size)
            losses |= stage_losses
            tokens |= values
            if needs.measures_scale:
                alone = float(self.optimizer.grad_norm())
                self.optimizer.add_gradient(earlier)
                norms[stage] = StageNorms(alone, float(self.optimizer.grad_norm()))
            del earlier  # the sum holds it now
        numbers, scale = dict(weighed.metrics), 1.0
        if needs.measures_scale:
            numbers |= _steering_numbers(norms)
            scale = numbers["gradient_scale"]
            self.optimizer.scale_gradient(scale)
            losses = {name: scale * loss for name, loss in losses.items()}
        tokens |= weighed.tokens
        weighted = [term.weights * tokens[term.name] for term in terms if term.weights is not None]
        tokens[TOKEN_LOSS] = scale * torch.stack(weighted).sum(0)
        tokens = {n: distributed.gather_tensor(v) for n, v in _with_gap(tokens, batch).items()}
        losses = {name: distributed.total(loss) for name, loss in losses.items()}
        gaps: dict[str, Summary] = dict.fromkeys(GAPS, "parts")
        return Update(losses, tokens, {**weighed.summaries, **gaps, TOKEN_LOSS: "none"}, numbers)


def accumulate_gradient(
    student: Scorer,
    batch: ScoredBatch,
    needs: Needs,
    terms: Sequence[Term],
    prompts_per_micro_batch: int,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Accumulate the gradient of some terms in the student's parameters, in micro-batches.

    The terms are computed in the student's pass under its own view. If a term also has a gradient
    through the student under another view, that pass returns the gradient of the other view's hidden
    states, and the other view is run and backpropagated afterwards. The graphs of two views are
    therefore never in memory together.

    Args:
        student: scores the student with gradient.
        batch: this rank's responses, with the distributions that the terms read.
        needs: the views of these distributions.
        terms: weighted and observed terms.
        prompts_per_micro_batch: number of problems whose graphs are in memory together.

    Returns:
        the losses of the weighted terms, and the values of all terms at every token.
    """

    def micro_batches(view: View) -> Iterator[tuple[Sequences, slice]]:
        prompts = student.encode(batch.rollouts.samples, view)
        return student.batches(prompts, batch.rollouts.response_ids, prompts_per_micro_batch)

    values: list[Tensor] = []
    left: dict[str, list[Tensor]] = {}
    for sequences, tokens in micro_batches(student.view):
        others = {name: scores.part(tokens) for name, scores in batch.distributions.items()}
        parts = [term.part(tokens) for term in terms]
        weighted = student.weighted_terms(sequences, parts, others, add_head_gradient=True)
        weighted.loss.backward()  # type: ignore[no-untyped-call]
        values.append(weighted.values_JN)
        for name, gradient_ND in weighted.hidden_gradients.items():
            left.setdefault(name, []).append(gradient_ND)
    for name, gradients in left.items():
        view = needs.distributions[name].resolved({STUDENT: student.view})
        for (sequences, _), gradient_ND in zip(micro_batches(view), gradients, strict=True):
            product = partial(_product, gradient_ND=gradient_ND)
            student.run(sequences, product).backward()
    joined = dict(zip([term.name for term in terms], torch.cat(values, -1), strict=True))
    losses = {
        term.name: float((term.weights * joined[term.name]).sum())
        for term in terms
        if term.weights is not None
    }
    return losses, joined


def _product(hidden_ND: Tensor, head_WD: Tensor, gradient_ND: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the hidden states is `gradient_ND`."""
    return (hidden_ND * gradient_ND.to(hidden_ND.dtype)).sum()


def _always_observed(batch: ScoredBatch) -> list[Term]:
    """Unweighted terms that every run records as metrics."""
    terms = [
        Term(STUDENT_LOG_PROB, lambda block: block.log_prob_C),
        Term("entropy", lambda block: entropy(block.log_p_CV)),
    ]
    if TEACHER in batch.distributions:
        terms.append(Term(TEACHER_LOG_PROB, lambda block: block.log_prob(TEACHER), reads=(TEACHER,)))
    return terms


def _with_gap(tokens: Mapping[str, Tensor], batch: ScoredBatch) -> dict[str, Tensor]:
    """Add the teacher-student log-prob gap, if the teacher was scored, and its parts, if the teacher was also
    scored on the student's prompt."""
    numbers = dict(tokens)
    if TEACHER_LOG_PROB not in numbers and TEACHER in batch.log_probs:
        numbers[TEACHER_LOG_PROB] = batch.log_probs[TEACHER]
    if TEACHER_LOG_PROB in numbers:
        numbers[GAP] = numbers[TEACHER_LOG_PROB] - numbers[STUDENT_LOG_PROB]
        if UNPRIVILEGED in batch.log_probs:
            unprivileged = batch.log_probs[UNPRIVILEGED]
            numbers[PRIVILEGE_GAP] = numbers[TEACHER_LOG_PROB] - unprivileged
            numbers[CAPABILITY_GAP] = unprivileged - numbers[STUDENT_LOG_PROB]
    return numbers


def _steering_numbers(norms: Mapping[int, StageNorms]) -> dict[str, float]:
    """The two norms, their angle and the scale s (VGS eq. 15 and 23); s is 1 if nothing is steered.

    The angle is left out where a norm is zero: it is undefined, not 90 degrees.
    """
    standard = norms[0].total
    if 1 not in norms:
        return {"gradient_standard": standard, "gradient_steering": 0.0, "gradient_scale": 1.0}
    steering, total = norms[1].alone, norms[1].total
    numbers = {
        "gradient_standard": standard,
        "gradient_steering": steering,
        "gradient_scale": standard / total if total > 0 else 1.0,
    }
    # From the norms, which are over all ranks: |S + V|^2 = |S|^2 + |V|^2 + 2 |S| |V| cos.
    angle = angle_of((total**2 - standard**2 - steering**2) / 2, standard, steering)
    return numbers if angle is None else {**numbers, "gradient_angle": angle}


def _recovery_changes(observer: RecoveryObserver) -> dict[str, float]:
    """The mean of |change| / |h_sink| of each layer that saw a sample on any rank, by metric name."""
    parts = distributed.gather(observer.change_ratios())
    means = {}
    for layer in parts[0]:
        ratios = [ratio for part in parts for ratio in part[layer]]
        if ratios:
            means[f"recovery_change_{layer}"] = sum(ratios) / len(ratios)
    return means

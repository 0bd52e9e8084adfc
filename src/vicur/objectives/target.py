"""Distillation towards a target that is made of several distributions: looks of the student and of teachers.

    product     softmax(sum_i a_i log d_i) on {d_ref >= beta max d_ref}     VGS, VCSD, OPD-Aha
    mixture     sum_i w_i d_i                                               M-OPSD
    projection  softmax(log p + <c, u> u / |u|^2)                           VAD
    each        several targets, each with its own weight and segment       ViGOS, several teachers
    likelier    at each token the one that gives it more probability        DOPD
    margin      towards one distribution, away from another                 CV-OPD

Differences from the textbook methods:

1. Targets are constants: no gradient flows through a look, also not through one of the student.
2. Weights and targets are separate: any of them can be combined with a gate.
3. Of VAD, OPD-Aha, ViGOS and DOPD we know the abstracts, of CV-OPD the README: these are our readings.
4. M-OPSD weights each view by whether it answers correctly; here `graded` weights it by how likely it makes
   the student's correct responses, which needs no further sampling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vicur.data.views import View, student_view, teacher_view
from vicur.objectives.divergence import REVERSE_KL, REVERSE_KL_SUMMARY, student_reverse_kl
from vicur.objectives.gates import Gate
from vicur.objectives.objective import TEACHER, Look, Needs, ScoredTokens, Weighed
from vicur.objectives.reduction import Aggregation, group_means, mean_weights
from vicur.rollouts.segments import REST
from vicur.scoring.term import STUDENT, Block, Term
from vicur.scoring.terms import (
    forward_kl_to,
    generalized_jsd,
    linear_target,
    margin_kl,
    mixture_target,
    projected_target,
    reverse_kl_to,
    softened,
)
from vicur.settings.section import NonNegative, Number, Positive, Share, Text, section

Combination = Literal["product", "mixture", "projection", "each", "likelier", "margin"]
TargetKind = Literal["reverse_kl", "forward_kl", "jsd"]
KINDS: dict[TargetKind, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": reverse_kl_to,
    "forward_kl": forward_kl_to,
    "jsd": partial(generalized_jsd, beta=0.5),
}


@section
class TargetLook:
    """One distribution of a target: a model under a view."""

    of: Text = TEACHER
    """Model: student, teacher, or the name of one of `teachers`."""
    view: Text | None = None
    """What it is shown (docs/views.md); null for its own view in the recipe. A teacher is shown the plain
    problem where a sample lacks what the view shows."""
    times: Number = 1.0
    """Coefficient: a_i of a product or a direction, the weight in a mixture, or the weight of its own
    divergence."""
    segment: Text | None = None
    """Segment whose tokens learn from it, with combine=each; null for all tokens."""

    def look(self) -> Look:
        """The look."""
        return Look(self.of, self._view())

    def _view(self) -> View | None:
        if self.view is None:
            return None
        return student_view(self.view) if self.of == STUDENT else teacher_view(self.view)

    @property
    def key(self) -> str:
        """Name of its distribution. The student under its own view is the one that learns."""
        if self.view is None:
            return self.of
        return f"{self.of}: {self.view}"


@section
class TargetOPD:
    """Divergence from a target that is made of several distributions."""

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    looks: dict[Text, TargetLook] = field(default_factory=dict)
    """The distributions by name, e.g. {seeing: {times: 2}, blank: {view: blank, times: -1}}."""
    combine: Combination = "product"
    """product: softmax of the sum of log-probs, each times its coefficient. mixture: weighted mean of the
    probabilities. projection: the student's prediction, moved towards `reference` along the direction that is
    the sum of log-probs, each times its coefficient. each: a divergence from each look, times its
    coefficient. likelier: at each token a divergence from the look that gives that token more probability.
    margin: towards the look with a positive coefficient, away from that with a negative one."""
    reference: Text | None = None
    """Look that a projection moves towards, or that decides with beta which words a product keeps. In a
    product with a reference, tokens that end a response count with their probability under it in every look,
    so that a contrast does not shorten responses (VCSD)."""
    beta: Share = 0.0
    """Words with less than this share of the most likely word's probability under `reference` are left out of
    a product; 0 keeps all words."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Distillation temperature T: the student and all looks are softened to softmax(log d / T) before the
    target is made and the divergence is taken, and the loss is multiplied by T^2. likelier and graded
    compare the looks at temperature 1."""
    kind: TargetKind = "reverse_kl"
    """Divergence of student p and target t. reverse_kl: KL(p || t), where t leaves out words the KL over the
    others plus -log of their probability under p. forward_kl: KL(t || p). jsd: the Jensen-Shannon
    divergence, for a target that keeps all words."""
    graded: bool = False
    """Whether the weights of a mixture are also proportional to p_i^(1 / graded_temperature), with
    p_i the probability per token that look i gives the student's correct responses to the problem."""
    graded_temperature: Positive = 1.0
    """Temperature of the graded weights; high temperatures make them equal."""
    margin: NonNegative = 1.0
    """Difference of the two divergences in nats up to which combine=margin pushes away."""
    segments: dict[Text, Text] = field(default_factory=dict)
    """Segments of responses: regular expressions by name, e.g. {description: "<describe>.*?</describe>"}.
    Tokens outside of all of them are in the segment `rest`."""
    gate: Gate = field(default_factory=Gate)
    """Factors on the weights of responses and tokens."""
    aggregation: Aggregation = "sequence"
    """Reduction: "sequence", the mean over responses of their token means, or "token", the mean over all
    tokens."""

    def __post_init__(self) -> None:
        if not self.looks:
            raise ValueError("target.looks must name at least one look, e.g. {teacher: {}}.")
        segments = (*self.segments, REST) if self.segments else ()
        for name, look in self.looks.items():
            where = f"target.looks.{name}"
            if look.view is not None and look.of == STUDENT:
                student_view(look.view, f"{where}.view")
            elif look.view is not None:
                teacher_view(look.view, setting=f"{where}.view")
            if look.segment is not None and (self.combine != "each" or look.segment not in segments):
                raise ValueError(
                    f"{where}.segment={look.segment} must be {REST} or in target.segments, with "
                    "target.combine=each."
                )
        self._check_combination()
        for name, pattern in self.segments.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"target.segments.{name} is not a regular expression: {error}.") from error

    def _check_combination(self) -> None:
        coefficients = [look.times for look in self.looks.values()]
        if self.reference is not None and self.reference not in self.looks:
            raise ValueError(f"target.reference={self.reference} is not one of {', '.join(self.looks)}.")
        if self.reference is not None and self.combine not in ("product", "projection"):
            raise ValueError("target.reference is for target.combine=product or projection.")
        if self.reference is None and (self.beta > 0 or self.combine == "projection"):
            raise ValueError("target.reference must name a look: the projection and beta refer to it.")
        if self.beta > 0 and (self.combine != "product" or self.kind == "jsd"):
            raise ValueError("target.beta leaves words out of a product, with kind reverse_kl or forward_kl.")
        if self.segments and not any(look.segment for look in self.looks.values()):
            raise ValueError("target.segments needs target.combine=each, with looks that name a segment.")
        if REST in self.segments:
            raise ValueError(f"target.segments must not name {REST}: it is the rest of a response.")
        if self._keys == [STUDENT]:
            raise ValueError("A target that is the student itself has nothing to teach.")
        if self.graded and self.combine != "mixture":
            raise ValueError("target.graded weights the looks of target.combine=mixture.")
        if self.graded_temperature != 1 and not self.graded:
            raise ValueError("target.graded_temperature is for target.graded=true.")
        if self.margin != 1 and self.combine != "margin":
            raise ValueError("target.margin is for target.combine=margin.")
        if self.combine in ("mixture", "each", "likelier") and min(coefficients) <= 0:
            raise ValueError(f"target.combine={self.combine} takes looks with times above 0.")
        if self.combine == "margin" and (sorted(coefficients) != [-1, 1] or self.kind != "reverse_kl"):
            raise ValueError(
                "target.combine=margin takes two looks, with times of 1 and -1, and kind reverse_kl."
            )

    @property
    def _keys(self) -> list[str]:
        return [look.key for look in self.looks.values()]

    @property
    def _times(self) -> list[float]:
        return [look.times for look in self.looks.values()]

    def needs(self, step: int) -> Needs:
        """The distributions of all looks; for likelier and graded also their log-probs of the tokens."""
        looks = {look.key: look.look() for look in self.looks.values()}
        others = {key: look for key, look in looks.items() if key != STUDENT}
        sampled = looks if self.combine == "likelier" or self.graded else {}
        return Needs(
            log_probs={**sampled, **self.gate.needs()},
            distributions=others,
            segments=self.segments,
            rewards=self.graded,
            only_imitates=list(self.looks.values()) == [TargetLook()],
            group_size=self.gate.group_size,
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh the divergence from the target, or those from several; observe KL(p || q) if the teacher
        under its own view is among the looks."""
        mean = mean_weights(scored.response_index, self.aggregation)
        if self.combine in ("each", "likelier"):
            terms = self._separate_terms(mean, scored)
        else:
            terms = [Term("target_kl", self._divergence, mean, self._shares(scored), self._reads)]
        if TEACHER in self._keys:
            terms.append(Term(REVERSE_KL, student_reverse_kl, reads=(TEACHER,)))
        return self.gate.apply(Weighed(terms, summaries=REVERSE_KL_SUMMARY), scored)

    @property
    def _reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for key in self._keys if key != STUDENT))

    def _separate_terms(self, mean: Float[Tensor, " N"], scored: ScoredTokens) -> list[Term]:
        """A term for each look, on its segment or where it is the likeliest."""
        masks: Mapping[str, Tensor] = {}
        if self.combine == "likelier":
            stacked = torch.stack([scored.log_probs[key] for key in self._keys])
            best = stacked.argmax(0)
            masks = {name: best == number for number, name in enumerate(self.looks)}
        terms = []
        for name, look in self.looks.items():
            weights = look.times * mean
            mask = masks.get(name) if look.segment is None else scored.segments[look.segment]
            weights = weights if mask is None else torch.where(mask, weights, 0.0)
            reads = () if look.key == STUDENT else (look.key,)
            terms.append(
                Term(f"kl_{name}", partial(self._divergence_from, key=look.key), weights, reads=reads)
            )
        return terms

    def _divergence_from(self, block: Block, key: str) -> Tensor:
        return self._scale * KINDS[self.kind](self._student(block), self._look(block, key))

    def _divergence(self, block: Block, **shares: Tensor) -> Tensor:
        log_p, log_d = self._student(block), [self._look(block, key) for key in self._keys]
        if self.combine == "margin":
            positive = 0 if self._times[0] > 0 else 1
            return self._scale * margin_kl(log_p, log_d[positive], log_d[1 - positive], self.margin)
        target = self._target(log_p.detach(), log_d, shares, block.ends_V)
        return self._scale * KINDS[self.kind](log_p, target)

    @property
    def _scale(self) -> float:
        return self.temperature**2

    def _student(self, block: Block) -> Tensor:
        return softened(block.log_p_CV, self.temperature)

    def _look(self, block: Block, key: str) -> Tensor:
        """Softened log-probs of a look, without gradient."""
        return softened(block.distribution(key).detach(), self.temperature)

    def _target(
        self,
        log_p: Tensor,
        log_d: list[Tensor],
        shares: Mapping[str, Tensor],
        ends_V: Bool[Tensor, " V"] | None,
    ) -> Tensor:
        """Log-probs (C, V) of the target, of those of the student and of the looks."""
        if self.combine == "mixture":
            return mixture_target(log_d, [shares[f"share_{number}"] for number in range(len(log_d))])
        reference = None if self.reference is None else log_d[list(self.looks).index(self.reference)]
        if self.combine == "projection":
            assert reference is not None
            direction = sum(
                (factor * log_probs for factor, log_probs in zip(self._times, log_d, strict=True)),
                torch.zeros_like(log_d[0]),
            )
            return projected_target(log_p, reference, direction)
        exempt = None if reference is None else ends_V
        return linear_target(log_d, self._times, reference=reference, beta=self.beta, exempt=exempt)

    def _shares(self, scored: ScoredTokens) -> dict[str, Tensor]:
        """The weight of each look of a mixture at every token; empty for other targets."""
        if self.combine != "mixture":
            return {}
        log_shares = scored.response_index.new_tensor(self._times, dtype=torch.float64).log()
        log_shares_LP = log_shares[:, None].expand(-1, int(scored.prompt_index.max()) + 1)
        if self.graded:
            log_shares_LP = log_shares_LP + self._correctness(scored) / self.graded_temperature
        prompts = scored.prompt_index[scored.response_index]
        shares = log_shares_LP.softmax(0)[:, prompts]
        return {f"share_{number}": share for number, share in enumerate(shares)}

    def _correctness(self, scored: ScoredTokens) -> Float[Tensor, "L P"]:
        """log p of each look on the correct responses to each problem, per token; 0 for problems without."""
        assert scored.rewards is not None
        count = int(scored.prompt_index.max()) + 1
        correct_R = scored.rewards > 0
        rows = []
        for key in self._keys:
            mean_R = group_means(scored.log_probs[key].double(), scored.response_index)
            likely_R = torch.where(correct_R, mean_R.exp(), 0.0)
            total = mean_R.new_zeros(count).index_add_(0, scored.prompt_index, likely_R)
            number = mean_R.new_zeros(count).index_add_(0, scored.prompt_index, correct_R.to(mean_R))
            rows.append(torch.where(number > 0, (total / number.clamp(min=1)).clamp(min=TINY).log(), 0.0))
        return torch.stack(rows)


TINY = math.exp(-700)
"""Least probability whose logarithm is taken."""

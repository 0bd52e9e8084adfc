"""VGS: steering the update towards visual grounding (arXiv 2606.00564).

    L = s * mean(l_std + alpha * l_vis + beta * l_LP)

    l_std  = KL(p || q)                                             eq. 3
    l_lang = KL(p0 || q0)                                           eq. 6
    l_vis  = KL(p || q*),  log q* = log p0 + log q - log q0 - log Z eq. 9 to 11
    VDS    = KL(q || q0)                                            eq. 12
    l_LP   = 1[VDS > Q_0.7] * l_lang                                eq. 16

p0 and q0 are the blind student and teacher. The blind view has no hint: a cue is visual evidence too, and
belongs to the difference between q and q0.

Differences from the textbook methods:

1. No reward, no KL to a reference and no entropy bonus, as in Standard OPD; a mixture adds GRPO (eq. 22).
2. No second graph in memory: p0 is a constant inside q* by default, so the plain and the blind student are
   backpropagated one after the other.
3. No gradient surgery: steering adds a term, and `scale` only restores the length of the gradient. Under
   AdamW with gradient clipping that length hardly matters (docs/objectives.md).
4. No running quantiles: VDS is compared with the quantiles of the update's own tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vicur.data.views import Blind
from vicur.objectives.divergence import student_reverse_kl
from vicur.objectives.objective import (
    TEACHER,
    Look,
    Needs,
    ScoredTokens,
    Summary,
    Weighed,
)
from vicur.objectives.reduction import Aggregation, above_quantile, mean_weights
from vicur.scoring.term import STUDENT, Block, Term
from vicur.scoring.terms import reverse_kl, visual_target_kl
from vicur.settings.section import NonNegative, Positive, Share, section

TEACHER_BLIND = "teacher_blind"
"""Name of the teacher's look without media: q0."""
STUDENT_BLIND = "student_blind"
"""Name of the student's look without media, at the start of an update: p0."""
VDS = "vds"
STANDARD_KL = "standard_kl"
ANGLE = 42.0
"""Angle in degrees between the standard and the visual gradient on the most visual tokens (VGS figure 3)."""
SUMMARIES: dict[str, Summary] = {STANDARD_KL: "parts", VDS: "quantiles"}


@section
class VisualSteeringOPD:
    """Visual Gradient Steering (VGS) with language preservation, its adaptive form, and its control."""

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    standard: NonNegative = 1.0
    """Coefficient of the standard distillation term l_std; set it to 0 if another objective of the mixture
    already distils."""
    alpha: NonNegative = 2.0
    """Coefficient of the steering term."""
    beta: NonNegative = 0.01
    """Coefficient of the preservation term; 0 disables it."""
    steering: Literal["visual", "language"] = "visual"
    """"visual" steers towards l_vis and preserves l_lang; "language", the control, does the reverse (VGS
    eq. 19 to 21)."""
    detach_prior: bool = True
    """Whether the blind student p0 is a constant inside the visual target q*; the paper does not say. With
    false, the gradient of l_vis also flows through p0: the update has a different direction, and every update
    runs the blind student once more with gradient. The two graphs are never in memory together."""
    adaptive: bool = False
    """Whether to choose the steering coefficient of each token by its VDS: 0 up to the lower quantile,
    alpha / 2 up to the upper quantile, alpha above it (VGS eq. 24 and 25)."""
    upper_quantile: Share = 0.7
    """Quantile of VDS over the tokens of an update. The preservation term and, in the adaptive form, the full
    steering coefficient apply to tokens above it. A token that equals the quantile up to rounding
    (1e-6 + 1e-4 relative) is not above it."""
    lower_quantile: Share = 0.4
    """Quantile of VDS up to which the adaptive form does not steer; ties are treated as for
    upper_quantile."""
    scale: Positive | Literal["derived", "measured"] = "derived"
    """Scale s of the gradient (VGS eq. 15): a number; "derived" from alpha, norm_ratio and the published
    angle (eq. 23); or "measured" at every update, which runs the student three times, once per part, keeps a
    second gradient in memory, and records both norms and their angle. In a mixture it must be a number; 1 is
    no scaling, as in the paper's mixture with GRPO."""
    norm_ratio: NonNegative = 0.80
    """Ratio of norms |visual gradient| / |standard gradient| for scale=derived. 0.80 gives the published
    scale 0.41 (2B, alpha 2), 0.98 the published 0.36 (4B)."""
    aggregation: Aggregation = "sequence"
    """Reduction: "sequence", the mean over responses of their token means (the paper), or "token", the mean
    over all tokens."""

    def __post_init__(self) -> None:
        if max(self.standard, self.alpha, self.beta) == 0:
            raise ValueError("visual_steering needs one of standard, alpha and beta above 0.")
        if self.steering == "language" and self.scale == "derived":
            raise ValueError(
                "visual_steering.scale=derived holds for visual steering only: with steering=language "
                "set a number, or measured."
            )
        if self.lower_quantile > self.upper_quantile:
            raise ValueError(
                f"visual_steering.lower_quantile ({self.lower_quantile}) must be at most upper_quantile "
                f"({self.upper_quantile})."
            )
        if isinstance(self.scale, str) and self.standard == 0:
            raise ValueError(
                f"visual_steering.scale={self.scale} compares with the standard gradient: with standard=0 "
                "set a number."
            )

    @property
    def fixed_scale(self) -> float:
        """Factor on the weights; 1 if the gradient is scaled later."""
        if self.scale == "derived":
            return derived_scale(self.alpha, self.norm_ratio)
        return 1.0 if self.scale == "measured" else self.scale

    @property
    def _uses_vds(self) -> bool:
        return self.beta != 0 or self.adaptive

    def needs(self, step: int) -> Needs:
        """The teacher's distributions with and without media; for steering or preservation also the blind
        student's."""
        looks = {TEACHER: Look("teacher"), TEACHER_BLIND: Look("teacher", Blind())}
        if self.alpha != 0 or self.beta != 0:
            looks[STUDENT_BLIND] = Look("student", Blind())
        return Needs(
            distributions=looks,
            divergences={VDS: (TEACHER, TEACHER_BLIND)} if self._uses_vds else {},
            whole_gradient=isinstance(self.scale, str),
            measures_scale=self.scale == "measured",
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh l_std, the steered and the preserved term; record VDS, the fixed scale, and the share of
        tokens that are preserved."""
        mean = self.fixed_scale * mean_weights(scored.response_index, self.aggregation)
        staged = self.scale == "measured"
        steered: Callable[..., Term] = partial(visual_term, detach_prior=self.detach_prior)
        preserved: Callable[..., Term] = language_term
        if self.steering == "language":
            steered, preserved = preserved, steered
        terms = [standard_term(None if self.standard == 0 else self.standard * mean)]
        tokens = {VDS: scored.divergences[VDS]} if self._uses_vds else {}
        metrics = {} if staged else {"gradient_scale": self.fixed_scale}
        if self.alpha != 0:
            terms.append(steered(mean * self._alphas(scored), stage=1 if staged else 0))
        if self.beta != 0:
            # 1[VDS > Q_upper], over the tokens of the update.
            is_visual = above_quantile(scored.divergences[VDS], self.upper_quantile).double()
            terms.append(preserved(mean * self.beta * is_visual, stage=2 if staged else 0))
            metrics["preserved_share"] = float(is_visual.mean())
        if not self._uses_vds:  # recorded in any case
            terms.append(Term(VDS, _vds, reads=(TEACHER, TEACHER_BLIND)))
        return Weighed(terms, tokens, metrics, SUMMARIES)

    def _alphas(self, scored: ScoredTokens) -> Tensor | float:
        """alpha_t (VGS eq. 25), or alpha for all tokens."""
        if not self.adaptive:
            return self.alpha
        vds = scored.divergences[VDS]
        steps = [above_quantile(vds, q) for q in (self.lower_quantile, self.upper_quantile)]
        return self.alpha * 0.5 * torch.stack(steps).double().sum(0)


def derived_scale(alpha: float, norm_ratio: float, angle: float = ANGLE) -> float:
    """s = (1 + alpha^2 r^2 + 2 alpha r cos(angle))^-1/2 (VGS eq. 23).

    Args:
        alpha: steering coefficient.
        norm_ratio: r, |visual gradient| / |standard gradient|.
        angle: angle between the two gradients, in degrees.
    """
    reach = alpha * norm_ratio
    return (1 + reach**2 + 2 * reach * math.cos(math.radians(angle))) ** -0.5


def standard_term(weights: Tensor | None) -> Term:
    """l_std (VGS eq. 3): the gradient flows through the seeing student."""
    return Term(STANDARD_KL, student_reverse_kl, weights, reads=(TEACHER,))


def visual_term(weights: Tensor, stage: int = 0, *, detach_prior: bool = True) -> Term:
    """l_vis (VGS eq. 11): the gradient flows through the seeing student, and through an undetached prior."""
    function = partial(_visual_kl, detach_prior=detach_prior)
    reads = (STUDENT_BLIND, TEACHER, TEACHER_BLIND)
    live = (STUDENT,) if detach_prior else (STUDENT, STUDENT_BLIND)
    return Term("visual_kl", function, weights, reads=reads, live=live, stage=stage)


def language_term(weights: Tensor, stage: int = 0) -> Term:
    """l_lang (VGS eq. 6): the gradient flows through the blind student."""
    reads = (STUDENT_BLIND, TEACHER_BLIND)
    return Term("language_kl", _language_kl, weights, reads=reads, live=(STUDENT_BLIND,), stage=stage)


def _visual_kl(block: Block, *, detach_prior: bool) -> Tensor:
    blind, seeing, teacher_blind = map(block.distribution, (STUDENT_BLIND, TEACHER, TEACHER_BLIND))
    return visual_target_kl(block.log_p_CV, blind, seeing, teacher_blind, detach_prior=detach_prior)


def _language_kl(block: Block) -> Tensor:
    return reverse_kl(block.distribution(STUDENT_BLIND), block.distribution(TEACHER_BLIND))


def _vds(block: Block) -> Tensor:
    return reverse_kl(block.distribution(TEACHER), block.distribution(TEACHER_BLIND))

"""Measures of response tokens that any model can be asked for: by how much a token depends on the image, and
where the teacher-student gap comes from.

They are those of VA-OPD (eq. 2), VGS (eqs. 7, 11 and 12) and the split of ViCuR's log-prob gap, measured
without gradient on any responses, so that runs with different objectives can be compared by the same numbers.

Shape suffixes: N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Blind, Degraded, Plain, View
from vicur.diagnostics.dependence import quantiles, top_mass
from vicur.objectives.reduction import above_quantile
from vicur.scoring.chunks import observed_terms
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import STUDENT, Block, Scores, Term
from vicur.scoring.terms import reverse_kl, visual_advantage, visual_target_kl

Measure = Literal["visual_advantage", "vds", "language_kl", "visual_kl", "gap_split"]
"""Names of the measures:

visual_advantage: a_t = max(log q(y_t | v) - log q(y_t | degraded v), 0) (VA-OPD eq. 2).
vds: KL(q || q0), the visual dependency score (VGS eq. 12).
language_kl: KL(p0 || q0), the language loss (VGS eq. 7); with vds.
visual_kl: KL(p || q*), the loss to the visual target (VGS eq. 11).
gap_split: gap = log q^z(y_t) - log p(y_t), teacher minus student, as the sum of privilege_gap
    = log q^z - log q (the text that only the teacher sees) and capability_gap = log q - log p.
"""
UPPER_QUANTILE = 0.7
"""Tokens with a VDS above this quantile are the visual ones (VGS eq. 16)."""

_SEEING, _HINTED, _DEGRADED, _BLIND, _STUDENT_BLIND = "q", "q^z", "q~", "q0", "p0"


@dataclass(frozen=True)
class Observer:
    """The models and views of the measures.

    Attributes:
        student: the model whose responses are measured; p.
        teacher: the model that judges them; q.
        teacher_view: the teacher's view in training, with a hint if it has a privilege; q^z.
        ratio: ratio of side lengths of the degraded image.
    """

    student: Scorer
    teacher: Scorer
    teacher_view: View = field(default_factory=Plain)
    ratio: float = 0.1

    def measure(
        self,
        samples: Sequence[Sample],
        responses: Sequence[Sequence[Tensor]],
        of: Iterable[Measure],
    ) -> dict[str, Float[Tensor, " N"]]:
        """Measure every token of some responses, in nats. All ranks call this, also those without problems.

        Args:
            samples: the problems.
            responses: the token ids of the responses to each.
            of: the measures.

        Returns:
            by name: the measures, and for gap_split `gap`, `privilege_gap` and `capability_gap`.
        """
        terms = _terms(set(of))
        reads = {name for term in terms for name in term.reads}
        looks = {
            _SEEING: (self.teacher, Plain()),
            _HINTED: (self.teacher, self.teacher_view),
            _DEGRADED: (self.teacher, Degraded(self.ratio)),
            _BLIND: (self.teacher, Blind()),
            _STUDENT_BLIND: (self.student, Blind()),
        }
        scores: dict[tuple[int, View], Scores] = {}

        def look(scorer: Scorer, view: View) -> Scores:
            key = (id(scorer), view)
            if key not in scores:
                scores[key] = scorer.scores(samples, responses, view)
            return scores[key]

        others = {name: look(*looks[name]) for name in looks if name in reads}
        ids = [ids for group in responses for ids in group]
        reading = self.student.reading(torch.cat(ids) if ids else torch.zeros(0, dtype=torch.long))
        values = observed_terms(look(self.student, Plain()), reading, terms, others)
        return {term.name: row for term, row in zip(terms, values, strict=True)}


def _terms(of: set[Measure]) -> list[Term]:
    """The terms whose values are the measures."""
    terms = []
    if "visual_advantage" in of:
        terms.append(_term("visual_advantage", _visual_advantage, _SEEING, _DEGRADED))
    if of & {"vds", "language_kl"}:
        terms.append(_term("vds", _divergence(_SEEING, _BLIND), _SEEING, _BLIND))
    if "language_kl" in of:
        terms.append(_term("language_kl", _divergence(_STUDENT_BLIND, _BLIND), _STUDENT_BLIND, _BLIND))
    if "visual_kl" in of:
        terms.append(_term("visual_kl", _visual_kl, _STUDENT_BLIND, _SEEING, _BLIND))
    if "gap_split" in of:
        terms += [
            _term("gap", _difference(_HINTED, STUDENT), _HINTED),
            _term("privilege_gap", _difference(_HINTED, _SEEING), _HINTED, _SEEING),
            _term("capability_gap", _difference(_SEEING, STUDENT), _SEEING),
        ]
    return terms


def _term(name: str, function: Callable[[Block], Tensor], *reads: str) -> Term:
    return Term(name, function, reads=reads)


def _divergence(first: str, second: str) -> Callable[[Block], Tensor]:
    return lambda block: reverse_kl(block.distribution(first), block.distribution(second))


def _difference(first: str, second: str) -> Callable[[Block], Tensor]:
    return lambda block: block.log_prob(first) - block.log_prob(second)


def _visual_advantage(block: Block) -> Tensor:
    return visual_advantage(block.log_prob(_SEEING), block.log_prob(_DEGRADED))


def _visual_kl(block: Block) -> Tensor:
    blind, seeing, teacher_blind = map(block.distribution, (_STUDENT_BLIND, _SEEING, _BLIND))
    return visual_target_kl(block.log_p_CV, blind, seeing, teacher_blind)


def summarise_measures(tokens: Mapping[str, Float[Tensor, " N"]]) -> dict[str, float]:
    """Means of the measures over all tokens, and the numbers that the papers draw.

    Besides a mean for each measure: `visual_advantage_top10_mass`, quantiles of `vds`,
    `language_kl_visual` (the mean over tokens with a VDS above the 0.7 quantile, VGS figure 4), and
    `gap_absolute`.
    """
    means = {name: float(values.double().mean()) for name, values in tokens.items()}
    if "visual_advantage" in tokens:
        means["visual_advantage_top10_mass"] = top_mass(tokens["visual_advantage"])
    if "vds" in tokens:
        means |= quantiles(tokens["vds"], "vds")
    if "language_kl" in tokens:
        visual = above_quantile(tokens["vds"], UPPER_QUANTILE)
        if visual.any():
            means["language_kl_visual"] = float(tokens["language_kl"][visual].double().mean())
    if "gap" in tokens:
        means["gap_absolute"] = float(tokens["gap"].double().abs().mean())
    return means

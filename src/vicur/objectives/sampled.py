"""Sampled-token on-policy distillation: ViCuR's objective (section 3.3).

A policy gradient whose advantage is the teacher's log-prob minus the student's.

Differences from textbook PPO:

1. No reward and no value function: the teacher's log-ratio at the token is the whole advantage. Nothing is
   summed over later tokens, so a token is not credited for what it leads to.
2. No KL to a reference: the mean advantage is already -KL(student || teacher).
3. No entropy bonus: it would pull away from the teacher, whose entropy is the target.
4. One update per rollout batch in the published recipes: the ratio to the old policy starts at 1, so PPO's
   clip has no effect. Clip and dual clip act only with training.prompts_per_update below prompts_per_step.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from torch import Tensor

from vicur.objectives.clipping import Clipping
from vicur.objectives.gates import Gate
from vicur.objectives.objective import OLD, TEACHER, Look, Needs, ScoredTokens, Weighed
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import k1, log_prob_advantage
from vicur.settings.section import Positive, section


@section
class SampledTokenOPD:
    """PPO-clipped policy gradient on A_t = clamp(log q(y_t) - log p(y_t)) (ViCuR eq. 6 and 7)."""

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    advantage_limit: Positive = 10.0
    """Bound on the absolute advantage of a token, in nats."""
    advantage_at: Literal["current", "start"] = "current"
    """Student log-prob in the advantage: that of the current policy, as in the authors' code, or that of the
    policy at the start of the rollout step. With one update per rollout step they are the same."""
    clip: Clipping = field(default_factory=lambda: Clipping(dual=3.0))
    """PPO's clip, with a dual clip of 3."""
    gate: Gate = field(default_factory=Gate)
    """Factors on the weights of responses and tokens."""
    aggregation: Aggregation = "token"
    """Reduction: "token", the mean over the tokens of the global batch (the authors' code), or "sequence",
    the mean over responses of their token means (the paper's formula)."""

    def needs(self, step: int) -> Needs:
        """The teacher's and the old student's log-probs of the tokens that the student sampled, and what the
        gates compare."""
        return Needs(
            log_probs={OLD: Look("student"), TEACHER: Look("teacher"), **self.gate.needs()},
            group_size=self.gate.group_size,
            sources=frozenset({"student"}),
            only_imitates=True,
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh the mean surrogate; observe advantage, clipping and the k1 estimate of KL(p || q).

        The advantage is computed inside the terms, because by default it is that of the current policy.
        """
        weights = mean_weights(scored.response_index, self.aggregation)
        inputs = {"old": scored.log_probs[OLD], "teacher": scored.log_probs[TEACHER]}
        terms = [
            Term("policy", self._policy, weights, inputs),
            Term("advantage", self._advantage, inputs=inputs),
            Term("clip_fraction", self._clipped, inputs=inputs),
            Term("reverse_kl_k1", _k1, inputs={"teacher": inputs["teacher"]}),
        ]
        return self.gate.apply(Weighed(terms), scored)

    def _advantage(self, block: Block, old: Tensor, teacher: Tensor) -> Tensor:
        student = block.log_prob_C if self.advantage_at == "current" else old
        return log_prob_advantage(teacher, student, self.advantage_limit)

    def _policy(self, block: Block, old: Tensor, teacher: Tensor) -> Tensor:
        return self.clip.surrogate(block.log_prob_C, old, self._advantage(block, old, teacher))

    def _clipped(self, block: Block, old: Tensor, teacher: Tensor) -> Tensor:
        return self.clip.is_clipped(block.log_prob_C, old, self._advantage(block, old, teacher))


def _k1(block: Block, teacher: Tensor) -> Tensor:
    return k1(block.log_prob_C, teacher)

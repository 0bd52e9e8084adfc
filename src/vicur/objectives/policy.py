"""Reinforcement learning from graded answers: GRPO, and PAPO on top of it.

Differences from the textbook methods:

1. No value function: the group of responses to a prompt is the baseline (the idea of GRPO).
2. No KL to a reference by default, as in VGS's mixture with GRPO. `kl_weight` adds it.
3. No entropy bonus in GRPO; PAPO *penalises* entropy, because its perception term could also grow by making
   the policy uncertain everywhere.
4. With one update per rollout batch the ratio is 1 and the clip has no effect; GRPO recipes make several
   (training.prompts_per_update).
5. No resampling of groups whose rewards are all equal: they get advantage 0 and still count in 1/N.
6. PAPO's masked log-probs carry no gradient, as in its code: its entropy on the masked image is therefore
   recorded, not penalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vicur.data.views import Masked
from vicur.objectives.clipping import Clipping
from vicur.objectives.objective import (
    OLD,
    REFERENCE,
    TEACHER,
    Look,
    Needs,
    ScoredTokens,
    Weighed,
)
from vicur.objectives.reduction import Aggregation, mean_weights, standardised
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import cross_entropy, k2, k3, reward_direction
from vicur.settings.section import Count, NonNegative, Positive, Share, section

STUDENT_MASKED = "student_masked"
"""Name of the student's look at masked media, at the start of an update."""
clamped_k3 = partial(k3, max_log_ratio=20.0, max_value=10.0)
"""k3 as in PAPO's code, for both the reference penalty and the perception term. A token at
either bound has no gradient."""
Estimator = Literal["k2", "k3"]
ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2, "k3": clamped_k3}


@section
class RewardDirection:
    """Weights of tokens within a response: the reward decides the direction of the update, the privileged
    teacher how much each token takes part (RLSD, arXiv 2604.03128; the defaults are our choice)."""

    share: Share = 0.5
    """Part of a token's weight that the teacher decides (lambda); 0 is GRPO."""
    clip: Share = 0.2
    """How far the teacher may move a token's weight from 1 (epsilon)."""

    def weights(self, advantage_N: Float[Tensor, " N"], scored: ScoredTokens) -> Float[Tensor, " N"]:
        """The weight of every token."""
        teacher, student = scored.log_probs[TEACHER], scored.log_probs[OLD]
        return reward_direction(advantage_N, teacher, student, self.share, self.clip)


@section
class GRPO:
    """PPO-clipped policy gradient on rewards normalised within each group of responses to a problem.

    A_k = (r_k - mean) / (sample standard deviation + epsilon), 0 in a group without variance
    (arXiv 2402.03300).
    """

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    epsilon: NonNegative = 1e-4
    """Constant added to the standard deviation of a group's rewards."""
    clip: Clipping = field(default_factory=Clipping)
    """PPO's clip, without a dual clip."""
    direction: RewardDirection | None = None
    """Weight of every token by what the privileged teacher thinks of it (RLSD); null for equal weights."""
    kl_weight: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference policy, which is the recipe's teacher on the student's
    own prompt; with teacher.model=self and teacher.update=frozen it is the student's initial weights."""
    kl_estimator: Estimator = "k3"
    """Estimator of the KL penalty from the sampled tokens. The expected gradient of k2 is that of the KL.
    k3's is an approximation, with the log-ratio clamped to ±20 and the value to at most 10. k1 is not
    offered, because its expected gradient is 0."""
    aggregation: Aggregation = "token"
    """Reduction: "token", the mean over the tokens of the global batch, or "sequence", the mean over
    responses of their token means (the original GRPO)."""

    def needs(self, step: int) -> Needs:
        """Rewards, several responses to a problem, and the old student's log-probs; with a KL penalty also
        the reference's log-probs."""
        looks = {OLD: Look("student")}
        if self.kl_weight != 0:
            looks[REFERENCE] = Look("teacher", "student")
        if self.direction is not None:
            looks[TEACHER] = Look("teacher")
        return Needs(
            log_probs=looks,
            rewards=True,
            group_size=2,
            sources=frozenset({"student"}),
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh the surrogate and the penalty; record clipping, advantage, mean reward, and the share of
        responses with a nonzero advantage."""
        assert scored.rewards is not None
        mean = mean_weights(scored.response_index, self.aggregation)
        advantage_R = standardised(scored.rewards, scored.prompt_index, ddof=1, epsilon=self.epsilon)
        advantage_N = advantage_R[scored.response_index]
        if self.direction is not None:
            advantage_N = advantage_N * self.direction.weights(advantage_N, scored)
        inputs = {"old": scored.log_probs[OLD], "advantage": advantage_N}
        terms = [
            Term("policy", self._policy, mean, inputs),
            Term("clip_fraction", self._clipped, inputs=inputs),
        ]
        if self.kl_weight != 0:
            reference = {"reference": scored.log_probs[REFERENCE]}
            penalty = partial(_penalty, estimator=self.kl_estimator)
            terms.append(Term("reference_kl", penalty, self.kl_weight * mean, reference))
        metrics = {
            "reward": float(scored.rewards.mean()),
            "informative_share": float((advantage_R != 0).float().mean()),
        }
        return Weighed(terms, {"advantage": advantage_N}, metrics)

    def _policy(self, block: Block, old: Tensor, advantage: Tensor) -> Tensor:
        return self.clip.surrogate(block.log_prob_C, old, advantage)

    def _clipped(self, block: Block, old: Tensor, advantage: Tensor) -> Tensor:
        return self.clip.is_clipped(block.log_prob_C, old, advantage)


@section
class PAPO:
    """Perception-aware policy optimization: GRPO - gamma * k3 + eta * H (arXiv 2507.06448).

    k3 estimates KL(pi || pi on a masked image), which is maximised; the entropy H is penalised.
    """

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    grpo: GRPO = field(default_factory=GRPO)
    """The policy gradient underneath; its weight counts within PAPO."""
    gamma: NonNegative = 0.01
    """Coefficient of the KL between the student's predictions on the image and on the masked image, which is
    maximised."""
    entropy_weight: NonNegative = 0.03
    """Coefficient of the entropy penalty H = -mean log p(y_t)."""
    masked_probability: Share = 0.6
    """Probability with which each patch of the raw image is blacked out."""
    masked_patch: Count = 14
    """Side length of a masked patch in pixels."""

    def needs(self, step: int) -> Needs:
        """GRPO's needs, and the student's log-probs under a new random mask at each step."""
        base = self.grpo.needs(step)
        masked = Masked(self.masked_probability, self.masked_patch, draw=step)
        return replace(base, log_probs={**base.log_probs, STUDENT_MASKED: Look("student", masked)})

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh GRPO's terms, the perception term and the entropy penalty; record GRPO's numbers and the
        surprisal on the masked image, whose mean is H_mask."""
        base = self.grpo.weigh(scored)
        mean = mean_weights(scored.response_index, self.grpo.aggregation)
        masked = scored.log_probs[STUDENT_MASKED]
        terms = [
            *(term.scaled(self.grpo.weight) for term in base.terms),
            Term("perception_kl", _perception, -self.gamma * mean, {"reference": masked}),
            Term("entropy_penalty", _surprise, self.entropy_weight * mean),
        ]
        return replace(base, terms=terms, tokens={**base.tokens, "masked_surprise": -masked})


def _penalty(block: Block, reference: Tensor, estimator: Estimator) -> Tensor:
    return ESTIMATORS[estimator](block.log_prob_C, reference)


def _perception(block: Block, reference: Tensor) -> Tensor:
    return clamped_k3(block.log_prob_C, reference)


def _surprise(block: Block) -> Tensor:
    return cross_entropy(block.log_prob_C)

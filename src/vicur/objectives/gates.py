"""Gates: factors on the weights of responses and tokens, from how a teacher scores them under two views.

A gate multiplies the weights of a distilling objective. It is computed once per rollout batch, detached, so
the loss stays a weighted sum of terms.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.views import teacher_view
from vicur.objectives.objective import OLD, TEACHER, Look, ScoredTokens, Weighed
from vicur.objectives.reduction import group_means, standardised
from vicur.scoring.terms import endorsement, evidence_gain
from vicur.settings.section import NonNegative, Positive, Text, section


@section
class EvidenceGate:
    """Weights the responses to a problem by how much more likely the evidence makes them (V-Zero,
    arXiv 2606.25319).

    d_t = log q(y_t | evidence) - log q(y_t | no evidence); s = the response's mean of
    relu(d_t) - gamma relu(-d_t); w = clip(1 + alpha z, low, high), with z the standardised s among the
    responses to the problem.
    """

    of: Text = TEACHER
    """Model that judges: teacher, or the name of another teacher."""
    evidence: Text = "crop"
    """View that shows the evidence."""
    no_evidence: Text = "erased"
    """View that does not show it. V-Zero takes images(negative)."""
    alpha: NonNegative = 0.5
    """Strength; 0 is no gate."""
    gamma: NonNegative = 1.0
    """Weight of tokens that the evidence makes less likely."""
    low: NonNegative = 0.0
    """Lower bound on the weight of a response."""
    high: Positive = 2.0
    """Upper bound on the weight of a response."""
    epsilon: NonNegative = 1e-6
    """Constant added to the standard deviation of the responses' scores."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"gate.evidence.low ({self.low:g}) is above high ({self.high:g}).")
        for name in ("evidence", "no_evidence"):
            teacher_view(getattr(self, name), setting=f"gate.evidence.{name}")

    @property
    def keys(self) -> tuple[str, str]:
        """Names of the looks with and without the evidence."""
        return f"{self.of}: {self.evidence}", f"{self.of}: {self.no_evidence}"

    @property
    def looks(self) -> dict[str, Look]:
        """The two looks."""
        views = (self.evidence, self.no_evidence)
        return {key: Look(self.of, teacher_view(view)) for key, view in zip(self.keys, views, strict=True)}

    def weights(self, scored: ScoredTokens) -> tuple[Float[Tensor, " N"], Float[Tensor, " R"]]:
        """The gain of every token, and the weight of every response: 1 for a problem without the evidence."""
        evidence, other = self.keys
        gain_N = evidence_gain(scored.log_probs[evidence], scored.log_probs[other], self.gamma)
        score_R = group_means(gain_N.double(), scored.response_index)
        weights_R = evidence_weights(
            score_R, scored.prompt_index, self.alpha, self.low, self.high, self.epsilon
        )
        for key in self.keys:
            # Both looks showed the plain problem there, so that their difference is rounding.
            if key in scored.lacking:
                weights_R = torch.where(scored.lacking[key], 1.0, weights_R)
        return gain_N, weights_R


@section
class EndorsementGate:
    """Weights every token by sigmoid(beta (log q^z - log p)): by whether the privileged teacher endorses it
    (SDAR; the value of beta is our choice)."""

    beta: Positive = 1.0
    """Steepness, per nat."""

    def weights(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """The weight of every token."""
        return endorsement(scored.log_probs[TEACHER], scored.log_probs[OLD], self.beta)


@section
class Gate:
    """Factors on the weights of this objective's tokens."""

    evidence: EvidenceGate | None = None
    """Weights of responses by what the evidence adds (V-Zero)."""
    endorsement: EndorsementGate | None = None
    """Weights of tokens by whether the privileged teacher endorses them (SDAR)."""

    def needs(self) -> dict[str, Look]:
        """The looks whose log-probs the gates compare."""
        looks = {} if self.evidence is None else self.evidence.looks
        if self.endorsement is not None:
            looks |= {TEACHER: Look(TEACHER), OLD: Look("student")}
        return looks

    @property
    def group_size(self) -> int:
        """Minimum number of responses to a problem."""
        return 1 if self.evidence is None else 2

    def apply(self, weighed: Weighed, scored: ScoredTokens) -> Weighed:
        """The terms with their weights multiplied; the factors are recorded."""
        if self.evidence is not None:
            gain_N, weights_R = self.evidence.weights(scored)
            weighed = weighed.times(weights_R[scored.response_index], "evidence_weight")
            metrics = {
                "evidence_weight_min": float(weights_R.min()),
                "evidence_weight_max": float(weights_R.max()),
            }
            tokens = {**weighed.tokens, "evidence_gain": gain_N}
            weighed = replace(weighed, tokens=tokens, metrics={**weighed.metrics, **metrics})
        if self.endorsement is not None:
            weighed = weighed.times(self.endorsement.weights(scored), "endorsement")
        return weighed


def evidence_weights(
    score_R: Float[Tensor, " R"],
    prompt_index: Int[Tensor, " R"],
    alpha: float,
    low: float,
    high: float,
    epsilon: float,
) -> Float[Tensor, " R"]:
    """clip(1 + alpha z, low, high), with z the score standardised among the responses to a problem.

    The standard deviation is the population's; equal responses and a single one have z = 0.
    """
    z_R = standardised(score_R, prompt_index, ddof=0, epsilon=epsilon)
    return (1 + alpha * z_R).clamp(low, high)

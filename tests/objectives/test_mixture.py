"""Mixtures: valid combinations, and the errors for invalid ones."""

from __future__ import annotations

import pytest
import torch

from vicur.data.views import Degraded, Masked
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.mixture import Mixture, ObjectiveConfig
from vicur.objectives.objective import TEACHER_PLAIN, ScoredTokens
from vicur.objectives.policy import GRPO, PAPO, STUDENT_MASKED
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.visual_advantage import TEACHER_DEGRADED, VisualAdvantageOPD
from vicur.objectives.visual_steering import VDS, VisualSteeringOPD


def test_the_default_is_vicurs_objective():
    assert ObjectiveConfig().build() == SampledTokenOPD()
    assert ObjectiveConfig(grpo=GRPO()).build() == GRPO()


def test_a_weight_counts_also_for_one_objective_alone():
    assert isinstance(ObjectiveConfig(grpo=GRPO(weight=0.5)).build(), Mixture)


def test_needs_add_up():
    config = ObjectiveConfig(
        papo=PAPO(masked_patch=8), visual_advantage=VisualAdvantageOPD(degraded_ratio=0.2, drop="random")
    )
    needs = config.build().needs(3)
    assert needs.rewards and needs.draws and needs.models == {"student", "teacher"} and needs.group_size == 2
    assert needs.sources == {"student"}
    assert needs.log_probs[STUDENT_MASKED].view == Masked(0.6, 8, draw=3)
    assert needs.log_probs[TEACHER_DEGRADED].view == Degraded(0.2)


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            (GRPO(), SupervisedFineTuning()),
            "cannot share a source of responses: a needs responses of student; b needs",
        ),
        ((DivergenceOPD(), VisualSteeringOPD(scale="measured")), "scale of b refers to the whole gradient"),
        ((GRPO(), VisualSteeringOPD()), "set objective.b.scale to a number, 1 for no scaling"),
    ],
)
def test_objectives_that_cannot_be_combined(parts, message):
    with pytest.raises(ValueError, match=message):
        Mixture(dict(zip("ab", parts, strict=True)))


def test_grpo_is_not_counted_twice():
    with pytest.raises(ValueError, match="papo already contains grpo"):
        ObjectiveConfig(grpo=GRPO(), papo=PAPO())


def test_one_objective_with_a_weight_keeps_its_scale_and_its_names():
    objective = ObjectiveConfig(visual_steering=VisualSteeringOPD(weight=0.5, scale="measured")).build()
    assert objective.needs(0).measures_scale
    index = torch.arange(3)
    terms = objective.weigh(ScoredTokens(index, index, divergences={VDS: torch.rand(3).double()})).terms
    assert {term.name: term.weights[0].item() * 6 for term in terms if term.name == "standard_kl"} == {
        "standard_kl": pytest.approx(1.0)
    }


def test_one_name_cannot_mean_two_views():
    parts = {"a": VisualAdvantageOPD(), "b": VisualAdvantageOPD(degraded_ratio=0.3)}
    with pytest.raises(ValueError, match="Two objectives define teacher_degraded differently"):
        Mixture(parts).needs(0)


def test_a_mixture_names_what_is_recorded_after_its_parts():
    """Terms, token numbers, metrics and summaries alike: "b/vds" gets quantiles as "vds" does."""
    index = torch.arange(3)
    looks = {TEACHER_PLAIN: torch.rand(3).double(), TEACHER_DEGRADED: torch.rand(3).double()}
    scored = ScoredTokens(index, index, looks, {VDS: torch.rand(3).double()})
    weighed = Mixture({"a": VisualAdvantageOPD(), "b": VisualSteeringOPD(scale=1.0)}).weigh(scored)
    assert list(weighed.tokens) == ["a/visual_advantage", "b/vds"]
    assert weighed.summaries["a/visual_advantage"] == "top_mass" and weighed.summaries["b/vds"] == "quantiles"
    assert {"a/rollout_weight_max", "b/preserved_share"} < set(weighed.metrics)
    assert [term.name for term in weighed.terms][:2] == ["a/reverse_kl", "b/standard_kl"]


def test_a_sum_imitates_only_if_each_part_does():
    parts = {"a": SampledTokenOPD(), "b": DivergenceOPD()}
    assert Mixture(parts).needs(0).only_imitates
    assert not Mixture({**parts, "c": GRPO()}).needs(0).only_imitates

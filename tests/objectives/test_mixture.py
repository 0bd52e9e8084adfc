"""Mixtures: what goes together, and the sentence for what does not."""

from __future__ import annotations

import pytest

from vicur.data.views import Degraded, Masked
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.mixture import Mixture, ObjectiveConfig
from vicur.objectives.objective import STUDENT_MASKED, TEACHER_DEGRADED
from vicur.objectives.policy import GRPO, PAPO
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.visual_advantage import VisualAdvantageOPD
from vicur.objectives.visual_steering import VisualSteeringOPD


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
    assert needs.rewards and needs.draws and needs.teacher and needs.siblings == 2
    assert needs.sources == {"student"}
    assert needs.log_probs[STUDENT_MASKED].view == Masked(0.6, 8, draw=3)
    assert needs.log_probs[TEACHER_DEGRADED].view == Degraded(0.2)


@pytest.mark.parametrize(
    "parts, message",
    [
        ((GRPO(), SupervisedFineTuning()), "want different responses: a takes those of student; b takes"),
        (
            (DivergenceOPD(), VisualSteeringOPD(scale="measured")),
            "b.scale=measured scales the whole gradient",
        ),
    ],
)
def test_objectives_that_do_not_go_together(parts, message):
    with pytest.raises(ValueError, match=message):
        Mixture(dict(zip("ab", parts, strict=True)))


def test_one_name_cannot_mean_two_views():
    parts = {"a": VisualAdvantageOPD(), "b": VisualAdvantageOPD(degraded_ratio=0.3)}
    with pytest.raises(ValueError, match="Two objectives need teacher_degraded, but not the same"):
        Mixture(parts).needs(0)

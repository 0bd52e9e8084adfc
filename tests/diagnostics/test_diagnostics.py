from __future__ import annotations

import pytest
import torch

from vicur.diagnostics.dependence import quantiles, top_mass
from vicur.diagnostics.gap import means_by_part
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.scoring.scorer import Scorer


def test_leakage_counts_whole_words_in_any_case():
    texts = ["The hint says 7. Hint: [HINT]", "hints and Hinted are other words", "", "a hint"]
    assert hint_leakage(texts) == HintLeakage(samples=2, occurrences=4)
    assert HintLeakage(1, 2) + HintLeakage(3, 4) == HintLeakage(4, 6)


def test_gap_by_halves_and_quarters():
    """One response of four tokens with gaps 1, 2, 3, 4, and one of one token with gap 10."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    found = means_by_part(values, torch.tensor([0, 0, 0, 0, 1]), "gap")
    assert found["gap_whole"] == 4.0
    assert found["gap_half_1"] == pytest.approx(13 / 3) and found["gap_half_2"] == 3.5
    quarters = [found[f"gap_quarter_{i}"] for i in (1, 2, 3, 4)]
    assert quarters == [5.5, 2.0, 3.0, 4.0]


def test_top_mass_is_the_share_of_the_highest():
    values = torch.tensor([0.0, 9.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert top_mass(values) == pytest.approx(0.9) and top_mass(values, 0.2) == pytest.approx(0.95)
    assert top_mass(torch.zeros(5)) == 0.0 and top_mass(torch.tensor([2.0])) == 1.0


def test_quantiles():
    found = quantiles(torch.arange(11.0), "vds")
    assert found == {"vds_q10": 1.0, "vds_q40": 4.0, "vds_q50": 5.0, "vds_q70": 7.0, "vds_q90": 9.0}


def test_visual_advantage_of_a_model(shared_student, samples, responses):
    """Never negative, some positive; without degradation exactly zero."""
    scorer, ids = Scorer(shared_student), [[r] for r in responses]
    found = measure_visual_advantage(scorer, samples, ids)
    assert found.shape == (sum(map(len, responses)),) and found.min() == 0 and found.max() > 1e-3
    same = measure_visual_advantage(scorer, samples, ids, ratio=1.0)
    assert not same.any()

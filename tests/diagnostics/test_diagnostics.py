from __future__ import annotations

import pytest
import torch

from vicur.diagnostics.dependence import (
    equal_frequency_bins,
    mass_curve,
    quantiles,
    top_mass,
    top_mass_within,
)
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


def test_top_mass_within_responses():
    """Shares 0.9 and 0.5 of the highest of ten and of two tokens; a response without mass is left out."""
    values = torch.tensor([0.0, 9.0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 1.0, 1.0, 0.0, 0.0])
    index = torch.tensor([0] * 10 + [1, 1] + [2, 2])
    assert top_mass_within(values, index, 0.1) == pytest.approx((0.9 + 0.5) / 2)
    assert top_mass_within(values, index, 1.0) == 1.0
    assert top_mass_within(torch.zeros(3), torch.tensor([0, 0, 1])) is None


def test_mass_curve_of_known_shares():
    """Of 1,000 tokens 900 are 0, 90 hold a quarter of the mass, and the top 10 the rest."""
    values = torch.cat([torch.zeros(900), torch.full((90,), 25 / 90), torch.full((10,), 7.5)])
    curve = mass_curve(values[torch.randperm(1000, generator=torch.Generator().manual_seed(0))])
    assert len(curve["percentile"]) == 200 == len(curve["value"]) == len(curve["share_above"])
    assert curve["percentile"][0] == 0 and curve["percentile"][-1] == 100
    share = dict(zip(curve["percentile"], curve["share_above"], strict=True))
    value = dict(zip(curve["percentile"], curve["value"], strict=True))
    assert share[0] == pytest.approx(1) and share[90] == pytest.approx(1) and share[100] == 0
    near = min(share, key=lambda percentile: abs(percentile - 99))
    assert share[near] == pytest.approx(0.75, abs=0.01)
    assert value[0] == 0 and value[90] == pytest.approx(25 / 90) and value[100] == 7.5
    assert share[90] == pytest.approx(top_mass(values, 0.1))
    assert set(mass_curve(torch.zeros(3))["share_above"]) == {0.0}


def test_bins_have_equal_numbers_of_tokens():
    values = torch.tensor([5.0, 1.0, 3.0, 0.0, 2.0, 4.0, 6.0])
    assert equal_frequency_bins(values, 3).tolist() == [2, 0, 1, 0, 0, 1, 2]
    for count, bins in ((7, 3), (10, 10), (23, 10)):
        sizes = torch.bincount(equal_frequency_bins(torch.rand(count), bins), minlength=bins)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    assert torch.bincount(equal_frequency_bins(torch.zeros(20), 10)).tolist() == [2] * 10  # ties are divided
    with pytest.raises(ValueError, match="3 tokens cannot be divided into 4 bins"):
        equal_frequency_bins(torch.rand(3), 4)

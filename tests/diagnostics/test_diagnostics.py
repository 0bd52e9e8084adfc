from __future__ import annotations

import pytest
import torch

from vicur.diagnostics.attention import mass_in_boxes, sink_attention
from vicur.diagnostics.gap import log_prob_gap
from vicur.diagnostics.leakage import HintLeakage, hint_leakage


def test_leakage_counts_whole_words_in_any_case():
    texts = ["The hint says 7. Hint: [HINT]", "hints and Hinted are other words", "", "a hint"]
    assert hint_leakage(texts) == HintLeakage(samples=2, occurrences=4)
    assert HintLeakage(1, 2) + HintLeakage(3, 4) == HintLeakage(4, 6)


def test_gap_by_halves_and_quarters():
    """One response of four tokens with gaps 1, 2, 3, 4, and one of one token with gap 10."""
    teacher = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    found = log_prob_gap(teacher, torch.zeros(5), torch.tensor([0, 0, 0, 0, 1]))
    assert found["gap_whole"] == 4.0
    assert found["gap_half_1"] == pytest.approx(13 / 3) and found["gap_half_2"] == 3.5
    quarters = [found[f"gap_quarter_{i}"] for i in (1, 2, 3, 4)]
    assert quarters == [5.5, 2.0, 3.0, 4.0]


def test_sink_attention_is_a_distribution_over_the_grid(shared_student, samples):
    for maps in sink_attention(shared_student, samples[:2]):
        assert list(maps) == [0, 2]
        for attention in maps.values():
            assert attention.shape == (4, 4)
            assert attention.sum().item() == pytest.approx(1.0, abs=1e-5)
            everywhere = mass_in_boxes(attention, [(0.0, 0.0, 64.0, 64.0)], (64, 64))
            assert everywhere == pytest.approx(1.0, abs=1e-5)
            corner = mass_in_boxes(attention, [(0.0, 0.0, 20.0, 20.0)], (64, 64))
            assert corner == pytest.approx(attention[0, 0].item(), abs=1e-6)


def test_models_without_a_module_have_no_sink_attention(base, samples):
    with pytest.raises(ValueError, match="no cue recovery module"):
        sink_attention(base, samples[:1])

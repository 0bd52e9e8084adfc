"""The parameters that cue recovery adds to models of the published sizes; no weights are created."""

from __future__ import annotations

import json

import pytest
from transformers import Qwen3VLConfig

from vicur.models.augment import addition_to, describe
from vicur.models.load import RecoveryConfig


def published(hidden, layers, heads, kv_heads, feed_forward, depth, vision, vision_feed_forward, taps, tied):
    """A configuration of the Qwen3-VL family."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": feed_forward,
            "head_dim": 128,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": depth,
            "hidden_size": vision,
            "intermediate_size": vision_feed_forward,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": taps,
        },
        tie_word_embeddings=tied,
    )


SIZES = {
    "2B": published(2048, 28, 16, 8, 6144, 24, 1024, 4096, [5, 11, 17], True),
    "8B": published(4096, 36, 32, 8, 12288, 27, 1152, 4304, [8, 16, 24], False),
}


@pytest.mark.parametrize(
    "size, layers, matrices, norms, share",
    [("2B", 6, 100_663_296, 4_096, 4.52), ("8B", 8, 536_870_912, 8_192, 5.77)],
)
def test_the_published_parameter_counts(size, layers, matrices, norms, share):
    result = addition_to(SIZES[size], RecoveryConfig())
    assert list(result.layers) == list(range(0, 5 * layers, 5))
    assert sum(result.layers.values()) == matrices and result.norms == norms
    assert result.added == matrices + norms and result.total == result.base + result.added
    assert round(100 * result.share, 2) == share
    assert result.as_dict()["added"] == result.added


def test_only_the_configuration_is_read(tmp_path):
    SIZES["2B"].save_pretrained(tmp_path)
    from_folder = describe(str(tmp_path), RecoveryConfig(layers=[3, 1]))
    assert from_folder == describe(str(tmp_path / "config.json"), RecoveryConfig(layers=[1, 3]))
    assert list(from_folder.layers) == [1, 3]
    json.dumps(from_folder.as_dict())


def test_a_student_is_not_augmented_twice(base_folder, shared_student):
    with pytest.raises(ValueError, match=r"already has cue recovery, after layers \[0, 2\]"):
        addition_to(shared_student.model.config, RecoveryConfig())

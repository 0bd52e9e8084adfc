"""The tokens that an engine leaves out of its logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vicur.models.vocabulary import ScoringVocabulary, Vocabulary

SETTING = "vicur_vocabulary"
"""Key in vLLM's `additional_config`: a `ScoringVocabulary`, "sampleable" if it is not set."""


def excluded_ids(vllm_config: Any) -> Int[Tensor, " E"]:
    """The ids whose logits are minus infinity, by the engine's setting and the files of the checkpoint.

    Those are the rows of the head beyond the tokenizer's tokens, and, unless special tokens keep their share
    of the probability for scoring, the special tokens that a response cannot contain.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    model = vllm_config.model_config
    which: ScoringVocabulary = (vllm_config.additional_config or {}).get(SETTING, "sampleable")
    generation = model.try_get_generation_config()
    vocabulary = Vocabulary.from_settings(
        model.hf_config, generation.get("eos_token_id"), cached_tokenizer_from_config(model)
    )
    rows = model.hf_config.text_config.vocab_size
    kept = torch.zeros(rows, dtype=torch.bool)
    kept[vocabulary.scored_ids(which)] = True
    return (~kept).nonzero()[:, 0]

"""Settings of vLLM as an engine. Reading them does not import vLLM."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vicur.settings.section import Count, Positive, section
from vicur.vllm.installed import check_installed

EngineName = Literal["torch", "vllm"]
"""Where responses are generated: "torch" in this process by the model itself, "vllm" by vLLM."""


@section
class VLLMConfig:
    """vLLM, for rollout.engine=vllm. The names are those of vLLM's own arguments."""

    max_model_len: Count | None = None
    """Maximum number of tokens of a prompt and its response; null for the longest prompt of the data plus
    max_new_tokens."""
    max_num_seqs: Count = 256
    """Maximum number of responses that are decoded together."""
    max_num_batched_tokens: Count | None = None
    """Maximum number of tokens in a forward pass; null for 8,192, or max_model_len if that is larger. With
    cue recovery every prompt is prefilled in one pass."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the GPU's memory for weights and key-value cache of the engine."""
    kv_cache_gib: Count = 1
    """GiB of the key-value cache on a CPU."""
    sleep: bool = True
    """Whether the engine frees its GPU memory while the student is trained: its weights wait in CPU memory,
    the key-value cache is dropped."""
    enforce_eager: bool = False
    """Whether decoding runs without CUDA graphs."""
    parity_responses: Count = 4
    """Number of responses on each rank that the trainer scores, too, after every step's sampling, to compare
    its log-probs with those of vLLM. A difference above the bound ends the run."""
    max_difference: Positive | None = None
    """Bound of the mean difference of these log-probs in nats; null for 1e-4 in float32 and 0.05 in
    bfloat16."""

    def check_installed(self) -> None:
        """Check that vLLM can be used.

        Raises:
            ValueError: it is missing, or of another version.
        """
        check_installed()

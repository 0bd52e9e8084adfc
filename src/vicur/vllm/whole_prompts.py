"""Settings of an engine that runs cue recovery: every prompt is prefilled in one step.

One token gathers from all visual tokens of its prompt, so all of them must be in the same forward pass.
A prompt that is split has no recovery, and nothing else would tell.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

SCHEDULER = "vicur.vllm.scheduler.make_scheduler"
"""Qualified name of the scheduler, which vLLM imports in the engine's process."""


class WholePrompts(VerifyAndUpdateConfig):
    """Called by vLLM when an engine with one of the recovery architectures is configured."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Turn chunked prefill off, and give the encoder room for the images of a whole step.

        Raises:
            ValueError: a prompt of the maximum length does not fit into one step.
        """
        scheduler, longest = vllm_config.scheduler_config, vllm_config.model_config.max_model_len
        budget = scheduler.max_num_batched_tokens
        if budget < longest:
            raise ValueError(
                "With cue recovery a prompt is prefilled in one step, so max_num_batched_tokens "
                f"({budget}) must be at least max_model_len ({longest}). Lower --max-model-len, or raise "
                "--max-num-batched-tokens, which needs more memory."
            )
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("Cue recovery does not run with pipeline parallelism. Use tensor parallelism.")
        if vllm_config.speculative_config is not None:
            raise ValueError("Cue recovery was never tried with speculative decoding: remove it.")
        _choose_attention(vllm_config)
        scheduler.enable_chunked_prefill = False
        if vllm_config.model_config.hf_config.recovery_sink == "question":
            # Another response to the prompt would find its beginning in the cache, and compute its end, where
            # the sink is, without the visual tokens.
            vllm_config.cache_config.enable_prefix_caching = False
        scheduler.scheduler_cls = SCHEDULER
        # A step's visual tokens are at most its tokens. Twice as many fit, because those of the step before
        # may not be freed yet.
        scheduler.max_num_encoder_input_tokens = budget
        scheduler.encoder_cache_size = 2 * budget
        compilation = vllm_config.compilation_config
        # Prefill runs Python; decoding, where recovery does nothing, may be captured.
        compilation.mode = CompilationMode.NONE
        if compilation.cudagraph_mode != CUDAGraphMode.NONE:
            compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


def _choose_attention(vllm_config: Any) -> None:
    """On a GPU, choose an attention backend that says where each request begins in a step.

    FlashInfer, the default of some GPUs, does not.

    Raises:
        ValueError: another one was set.
    """
    if not current_platform.is_cuda():
        return
    attention, dtype = vllm_config.attention_config, vllm_config.model_config.dtype
    known = AttentionBackendEnum.FLASH_ATTN, AttentionBackendEnum.TRITON_ATTN
    if attention.backend is None:
        attention.backend = known[1 if dtype == torch.float32 else 0]
    if attention.backend not in known:
        raise ValueError(
            f"Cue recovery runs with the attention backends {known[0].name} and {known[1].name}, not with "
            f"{attention.backend.name}."
        )

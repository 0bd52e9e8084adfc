"""vLLM's plugin: makes checkpoints with cue recovery known to every process of vLLM.

vLLM calls `register` through the entry point group `vllm.general_plugins`. With it, `vllm serve CHECKPOINT`
serves a student with its recovery module. vLLM's own classes are not changed.
"""

from __future__ import annotations

PLAIN = ("ViCuRPlainQwen3VLForConditionalGeneration", "ViCuRPlainQwen3VLMoeForConditionalGeneration")
"""Architectures without recovery, dense and mixture of experts, which sample only words."""
RECOVERY = ("ViCuRQwen3VLForConditionalGeneration", "ViCuRQwen3VLMoeForConditionalGeneration")
"""The same with recovery: the names of the classes in `models.student`, which checkpoints hold."""


def register() -> None:
    """Register the architectures, and the settings that recovery needs. May be called repeatedly."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vicur.vllm.whole_prompts import WholePrompts

    known = ModelRegistry.get_supported_archs()
    for name in (*RECOVERY, *PLAIN):
        if name not in known:
            ModelRegistry.register_model(name, f"vicur.vllm.model:{name}")
    for name in RECOVERY:
        MODELS_CONFIG_MAP[name] = WholePrompts

"""Qwen3-VL with cue recovery in vLLM, and vLLM as an engine for responses and teachers.

Nothing here is imported unless the engine is used: vLLM is the extra `vicur[vllm]`.
"""

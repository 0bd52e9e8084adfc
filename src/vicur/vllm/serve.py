"""Serves a checkpoint with vLLM, cue recovery included."""

from __future__ import annotations

import json
import sys
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from vicur.models.checkpoints import (
    has_recovery,
    kind_of,
    read_config,
    resolve_checkpoint,
    saved_dtype,
)
from vicur.models.stored import folder_of
from vicur.settings.section import Count, PathText, PositiveShare, Text, section
from vicur.vllm.plugin import PLAIN
from vicur.vllm.settings import BATCHED_TOKENS, DEFAULT_LENGTH, WeightTransfer
from vicur.vllm.words import SETTING


@section
class ServeSettings:
    """The settings of `vicur serve`. Most names are those of vLLM's own arguments."""

    model: PathText = ""
    """Checkpoint folder, hub id, or "vicur:NAME" for one that ships with the package."""
    host: Text = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. There is no authentication unless vLLM is given an --api-key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    served_model_name: Text | None = None
    """Name of the model in requests; null for the checkpoint's name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; "auto" for the one that the checkpoint was saved in."""
    max_model_len: Count | None = None
    """Maximum number of tokens of a prompt and its response; null for 8,192, or fewer if the model has fewer
    positions."""
    max_num_seqs: Count = 256
    """Maximum number of responses that are decoded together."""
    max_num_batched_tokens: Count | None = None
    """Maximum number of tokens in a forward pass; null for 8,192, or max_model_len if that is larger."""
    gpu_memory_utilization: PositiveShare = 0.9
    """Share of the GPU's memory for weights and key-value cache."""
    kv_cache_gib: Count = 1
    """GiB of the key-value cache on a CPU."""
    tensor_parallel_size: Count = 1
    """Number of GPUs that share the model."""
    trainable: bool = False
    """Whether the server takes new weights from a trainer, without any authentication. Use it on a trusted
    network only."""
    vocabulary: Literal["sampleable", "shared"] = "sampleable"
    """Tokens that keep their probability: "sampleable" for responses; "shared" for a teacher of a run with
    scoring.vocabulary=shared."""
    weight_transfer: WeightTransfer = "file"
    """How a trainer's weights arrive: "file" or "nccl"."""
    arguments: list[Text] = field(default_factory=list)
    """Further arguments of vLLM, such as --api-key=KEY."""


def server_command(settings: ServeSettings) -> tuple[list[str], dict[str, str]]:
    """The command of a server, and the environment variables that it needs.

    Args:
        settings: settings of the server.

    Raises:
        ValueError: there is no such checkpoint, or it is not one of Qwen3-VL.
    """
    config = read_config(settings.model)
    folder = folder_of(resolve_checkpoint(settings.model), whole=True)
    positions = int(config.text_config.max_position_embeddings)
    length = settings.max_model_len or min(DEFAULT_LENGTH, positions)
    batched = max(settings.max_num_batched_tokens or BATCHED_TOKENS, length)
    options: dict[str, Any] = {
        "model": folder,
        "served-model-name": settings.served_model_name or settings.model,
        "host": settings.host,
        "port": settings.port,
        # vLLM's own "auto" runs float32 checkpoints in bfloat16.
        "dtype": saved_dtype(config) if settings.dtype == "auto" else settings.dtype,
        "max-model-len": length,
        "max-num-seqs": settings.max_num_seqs,
        "max-num-batched-tokens": batched,
        "gpu-memory-utilization": settings.gpu_memory_utilization,
        "tensor-parallel-size": settings.tensor_parallel_size,
        "limit-mm-per-prompt": json.dumps({"image": 999, "video": 999}),
        "additional-config": json.dumps({SETTING: settings.vocabulary}),
    }
    if not has_recovery(config):
        name = PLAIN[0 if kind_of(config) == "qwen3_vl" else 1]
        options["hf-overrides"] = json.dumps({"architectures": [name]})
    # A trainer sends normalised pixels, and `vicur eval` normalises before the model, too.
    flags = ["--no-mm-device-do-normalize", "--enable-scale-out"]
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if settings.trainable:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if settings.weight_transfer == "nccl":
        options["weight-transfer-config"] = json.dumps({"backend": "nccl"})
    if not torch.cuda.is_available():
        # On a CPU vLLM cannot rewind a seed, as it does after a part of a prompt.
        flags += ["--enforce-eager", "--skip-mm-profiling", "--no-enable-chunked-prefill"]
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*command, *flags, *settings.arguments], environment

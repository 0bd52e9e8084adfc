"""Settings of vLLM as an engine. Reading them does not import vLLM."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from vicur.settings.section import Count, PathText, Positive, PositiveShare, Text, section

EngineName = Literal["torch", "vllm"]
"""What runs a model that responds: "torch" PyTorch in this process, "vllm" vLLM."""
WeightTransfer = Literal["file", "nccl"]
"""How weights reach a server."""
DEFAULT_LENGTH = 8192
"""Maximum number of tokens of a prompt and its response, if nothing is known about the prompts."""
BATCHED_TOKENS = 8192
"""Default number of tokens in a forward pass."""


@section
class VLLMConfig:
    """vLLM as an engine: in this process, or on servers. Most names are those of vLLM's own arguments."""

    max_model_len: Count | None = None
    """Maximum number of tokens of a prompt and its response; null for what the data needs if that is known,
    else 8,192."""
    max_num_seqs: Count = 256
    """Maximum number of responses that are decoded together."""
    max_num_batched_tokens: Count | None = None
    """Maximum number of tokens in a forward pass; null for 8,192, or max_model_len if that is larger. With
    cue recovery every prompt is prefilled in one pass."""
    gpu_memory_utilization: PositiveShare = 0.4
    """Share of the GPU's memory for weights and key-value cache of the engine."""
    kv_cache_gib: Count = 1
    """GiB of the key-value cache on a CPU."""
    sleep: bool = True
    """Whether the engine frees its GPU memory between its uses, as while the student is trained: its weights
    wait in CPU memory, the key-value cache is dropped."""
    enforce_eager: bool = False
    """Whether decoding runs without CUDA graphs."""
    servers: list[Text] = field(default_factory=list)
    """URLs of servers that run the model instead of this process, such as http://node7:8000. Each was started
    with `vicur serve CHECKPOINT trainable=true`. Processes and requests are spread over them."""
    weight_transfer: WeightTransfer = "file"
    """How a server gets the student's weights after an update: "file" through weights_folder, or "nccl"
    through NCCL, from GPU to GPU."""
    weights_folder: PathText | None = None
    """Folder that this process and the servers share, for weight_transfer=file; null for the system's folder
    for temporary files, if the servers are on this machine."""
    timeout_seconds: Positive = 1800.0
    """Maximum time in seconds until a server answers a request."""
    parity_responses: Count = 4
    """In training: number of responses on each rank that the trainer scores, too, after every step's
    sampling, to compare its log-probs with those of vLLM. A difference above the bound ends the run."""
    max_difference: Positive | None = None
    """In training: bound of the mean difference of these log-probs in nats; null for 1e-4 in float32 and 0.05
    in bfloat16. The bound of a single token is 1e-3 and 2, or ten times this if that is more."""

    def __post_init__(self) -> None:
        for url in self.servers:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"A server of vLLM is a URL such as http://localhost:8000, not {url!r}.")

    def batched_tokens(self, max_model_len: int) -> int:
        """Maximum number of tokens in a forward pass."""
        return max(self.max_num_batched_tokens or BATCHED_TOKENS, max_model_len)

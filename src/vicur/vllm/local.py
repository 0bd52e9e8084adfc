"""vLLM in this process, on the device of this rank.

Every rank has an engine of its own, which holds a whole copy of the model. Its weights are those of a model
of PyTorch, copied after every update.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vicur import distributed
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.checkpoints import has_recovery, kind_of
from vicur.models.load import LoadedModel
from vicur.vllm.backend import Completion, EngineError, failures_reported
from vicur.vllm.inputs import engine_input
from vicur.vllm.plugin import PLAIN, RECOVERY
from vicur.vllm.settings import VLLMConfig

MOST_IDLE_STEPS = 1000
"""Steps of the engine in a row without any new token, after which it is taken for stuck."""


class LocalEngine:
    """An engine with the weights of a model.

    Args:
        loaded: the model.
        config: settings of the engine.
        max_model_len: maximum number of tokens of a prompt and its response.

    Raises:
        EngineError: the engine does not start.
    """

    def __init__(self, loaded: LoadedModel, config: VLLMConfig, max_model_len: int) -> None:
        self.loaded, self.config = loaded, config
        self.version = 0
        self._may_sleep = config.sleep and loaded.device.type == "cuda"
        self._asleep: set[str] = set()
        self._merge = loaded.model.config.vision_config.spatial_merge_size
        self._requests = 0
        self._folder = tempfile.TemporaryDirectory(prefix="vicur-engine-")
        folder = Path(self._folder.name)
        write_settings(loaded, folder)
        distributed.ensure_group(loaded.device.type)  # vLLM would make one, which ends with the engine
        with _kept_random_states(), failures_reported("vLLM does not start"):
            _check_device(loaded.device)
            self._engine = _start(folder, loaded, config, max_model_len)

    def load(self) -> None:
        """As described in `Backend.load`."""
        with failures_reported("vLLM cannot load the student's weights"):
            weights = self.loaded.current_weights()
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.version += 1
        self.forget()

    def forget(self) -> None:
        """Drop the cached prefixes and the encoded images."""
        self._engine.reset_prefix_cache()
        self._engine.reset_encoder_cache()

    @property
    def scheduler(self) -> Any:
        """vLLM's scheduler."""
        return self._engine.engine_core.engine_core.scheduler

    def generate(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]], sampling: Mapping[str, Any]
    ) -> list[list[Completion]]:
        """As described in `Backend.generate`."""
        from vllm import SamplingParams

        requests: list[tuple[Any, Any]] = []
        for prompt, prompt_seeds in zip(prompts, seeds, strict=True):
            encoded = engine_input(prompt, self._merge, self.version)
            requests += [
                (encoded, SamplingParams(seed=seed, logprobs=0, flat_logprobs=True, **sampling))
                for seed in prompt_seeds
            ]
        outputs = iter(self._run(requests))
        return [[_completion(next(outputs)) for _ in group] for group in seeds]

    def sleep(self) -> None:
        """As described in `Backend.sleep`; nothing on a CPU."""
        if self._may_sleep and not self._asleep:
            with failures_reported("vLLM cannot free its memory"):
                self._engine.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def wake(self, part: str) -> None:
        """As described in `Backend.wake`."""
        if part in self._asleep:
            with failures_reported("vLLM cannot take its memory back"):
                self._engine.wake_up(tags=[part])
            self._asleep.remove(part)

    def close(self) -> None:
        """As described in `Backend.close`."""
        with _kept_process_group():
            self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        self._folder.cleanup()

    def _run(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """The outputs of requests, in their order."""
        names = [str(number) for number in range(self._requests, self._requests + len(requests))]
        self._requests += len(requests)
        outputs: dict[str, Any] = {}
        try:
            with failures_reported("vLLM failed while it generated"):
                for name, (encoded, params) in zip(names, requests, strict=True):
                    self._engine.add_request(name, encoded, params)
                self._step_until_done(names, outputs)
        except BaseException:
            with contextlib.suppress(Exception):
                self._engine.abort_request([name for name in names if name not in outputs])
            raise
        return [outputs[name] for name in names]

    def _step_until_done(self, names: Sequence[str], outputs: dict[str, Any]) -> None:
        idle = 0
        while self._engine.has_unfinished_requests():
            stepped = self._engine.step()
            idle = 0 if stepped else idle + 1
            if idle > MOST_IDLE_STEPS:
                raise EngineError(
                    f"vLLM makes no progress with {len(names) - len(outputs)} requests: a prompt may need "
                    "more than the whole key-value cache. In the settings of vllm, raise "
                    "gpu_memory_utilization (on a CPU kv_cache_gib), or lower max_model_len."
                )
            for output in stepped:
                if output.finished:
                    outputs[output.request_id] = output


def write_settings(loaded: LoadedModel, folder: Path) -> None:
    """Write what an engine reads of a checkpoint beside its weights: settings, tokenizer and processor."""
    loaded.processor.save_pretrained(folder)
    loaded.model.generation_config.save_pretrained(folder)
    config = loaded.model.config
    is_dense = kind_of(config) == "qwen3_vl"
    names = RECOVERY if has_recovery(config) else PLAIN
    config = type(config).from_dict(config.to_dict() | {"architectures": [names[0 if is_dense else 1]]})
    config.save_pretrained(folder)


def _start(folder: Path, loaded: LoadedModel, config: VLLMConfig, max_model_len: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    is_cpu = loaded.device.type == "cpu"
    if is_cpu:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=str(folder),
        load_format="dummy",
        dtype=str(loaded.dtype).removeprefix("torch."),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.batched_tokens(max_model_len),
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_sleep_mode=config.sleep and not is_cpu,
        enforce_eager=config.enforce_eager or is_cpu,
        # On a CPU vLLM cannot rewind a seed, as it does after a part of a prompt.
        enable_chunked_prefill=False if is_cpu else None,
        distributed_executor_backend="external_launcher" if distributed.size() > 1 else None,
        limit_mm_per_prompt={"image": 999, "video": 0},
        mm_processor_cache_gb=0,
        mm_device_do_normalize=False,  # the prompts come with normalised pixels
        skip_mm_profiling=is_cpu,
        logprobs_mode="raw_logprobs",
        disable_log_stats=True,
        seed=0,
    )
    return LLMEngine.from_engine_args(arguments)


def _completion(output: Any) -> Completion:
    (response,) = output.outputs
    return Completion(
        list(response.token_ids), list(response.logprobs.logprobs), response.finish_reason == "stop"
    )


def _check_device(device: torch.device) -> None:
    """Check that the engine runs on this rank's GPU: vLLM takes that of the launcher's local rank.

    Raises:
        EngineError: it would run on another.
    """
    if device.type == "cuda" and device.index not in (None, distributed.local_rank()):
        raise EngineError(
            f"vLLM runs on the first visible GPU, not on {device}. Remove training.device, and set "
            f"CUDA_VISIBLE_DEVICES={device.index}."
        )


@contextmanager
def _kept_process_group() -> Iterator[None]:
    """Keep the default process group, which vLLM destroys with an engine: the trainer still needs it."""
    destroy = torch.distributed.destroy_process_group

    def destroy_others(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    torch.distributed.destroy_process_group = destroy_others
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


@contextmanager
def _kept_random_states() -> Iterator[None]:
    """Keep what an engine changes in this process when it starts: the states of the random generators."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), contextlib.ExitStack() as stack:
        stack.callback(random.setstate, states[0])
        stack.callback(np.random.set_state, states[1])
        yield

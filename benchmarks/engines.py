"""Tokens per second of the engines that sample responses, side by side on one checkpoint.

    python benchmarks/engines.py                   # the tiny student; also on a CPU
    python benchmarks/engines.py --size 2B         # the shape of Qwen3-VL-2B with random weights, on a GPU

Three arms answer the same problems: PyTorch with cue recovery, vLLM with cue recovery, and vLLM without it,
on the same weights. They take turns, and the table has the median of each arm, its ratio to the first, and
the mean and the largest difference of its log-probs from the trainer's. Needs the extra `vicur[vllm]`.
Results: a table, and a JSON file in the current folder (`engines-DEVICE.json`).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from random_models import MERGE, PATCH, SHAPES, TOKENS, random_model, wide_processor, write_without_weights
from vicur.cuebench.generate import scenes, to_sample
from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.models.checkpoints import read_config
from vicur.models.devices import choose_device
from vicur.models.load import (
    LoadedModel,
    RecoveryConfig,
    StudentConfig,
    as_base,
    augmented_config,
    copy_of,
    load_student,
)
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.parity import ParityCheck
from vicur.scoring.scorer import ScoringConfig
from vicur.vllm.installed import installed_version
from vicur.vllm.settings import VLLMConfig

RECOVERY = RecoveryConfig(enabled=True, output_init="normal")


@dataclass(frozen=True)
class Work:
    """What every arm does.

    Attributes:
        samples: the problems.
        group_size: number of responses to each.
        new_tokens: maximum length of a response.
        dtype: compute dtype.
    """

    samples: list[Sample]
    group_size: int
    new_tokens: int
    dtype: str


def tiny(problems: int) -> tuple[LoadedModel, Work]:
    """The tiny student with random recovery, and CueBench."""
    torch.manual_seed(0)
    stream = scenes("segments", "test", seed=0)
    work = Work([to_sample(next(stream)) for _ in range(problems)], 4, 48, "float32")
    return load_student(StudentConfig("vicur:tiny-student", RECOVERY)), work


def real(size: str, problems: int, new_tokens: int, folder: Path) -> tuple[LoadedModel, Work]:
    """A model of a real shape with random weights in bfloat16, and images of 1,800 visual tokens."""
    processor = wide_processor(TOKENS)
    write_without_weights(SHAPES[size], processor, folder)
    config = augmented_config(read_config(str(folder)), RECOVERY)
    model = random_model(config, torch.bfloat16, choose_device())
    side = PATCH * MERGE
    random = np.random.default_rng(0)
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]},)
    samples = []
    for number in range(problems):
        pixels = random.integers(0, 255, (36 * side, 50 * side, 3), dtype=np.uint8)
        samples.append(Sample(str(number), messages, (Image.fromarray(pixels),)))
    return LoadedModel.of(model, processor), Work(samples, 8, new_tokens, "bfloat16")


def arms(student: LoadedModel, memory: float) -> dict[str, Engine]:
    """The engines, by name."""
    config = VLLMConfig(gpu_memory_utilization=memory, kv_cache_gib=1)
    without = copy_of(student, with_recovery=False)
    return {
        "torch, recovery": make_engine(student),
        "vllm, recovery": make_engine(student, "vllm", config),
        "vllm, no recovery": make_engine(without, "vllm", config),
    }


def measure(student: LoadedModel, work: Work, rounds: int, memory: float) -> list[dict[str, Any]]:
    """Tokens per second of each arm in each round, after one round that is not counted."""
    sampling = SamplingConfig(max_new_tokens=work.new_tokens)
    engines = arms(student, memory)
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    parities: dict[str, tuple[float, float] | None] = dict.fromkeys(engines)
    for number in range(rounds + 1):
        for name, engine in engines.items():
            generator = ModelGenerator(engine, sampling)
            with engine.awake():
                started = time.perf_counter()
                rollouts = generator.generate(work.samples, Plain(), group_size=work.group_size, step=number)
                seconds = time.perf_counter() - started
            tokens = sum(len(response.ids) for response in rollouts.flat_responses)
            if number:
                speeds[name].append(tokens / seconds)
            elif name.startswith("vllm"):
                trainer = student if name == "vllm, recovery" else as_base(student)
                parity = ParityCheck(trainer, name, ScoringConfig(), responses=8).measure(rollouts)
                parities[name] = (parity.mean, parity.largest)
    for engine in engines.values():
        engine.close()
    first = statistics.median(next(iter(speeds.values())))
    return [
        {
            "engine": name,
            "tokens_per_second": statistics.median(found),
            "rounds": found,
            "ratio": statistics.median(found) / first,
            "difference": parities[name],
        }
        for name, found in speeds.items()
    ]


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'engine':20} {'tokens/s':>10} {'ratio':>7}  mean and largest difference, nats"]
    for row in rows:
        difference = row["difference"]
        text = "" if difference is None else f"{difference[0]:.1e} {difference[1]:.1e}"
        lines.append(f"{row['engine']:20} {row['tokens_per_second']:10.0f} {row['ratio']:7.2f}  {text}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["tiny", *SHAPES], default="tiny", help="shape of the model")
    parser.add_argument("--problems", type=int, default=64, help="number of problems")
    parser.add_argument("--new-tokens", type=int, default=512, help="maximum length of a response; tiny: 48")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--memory", type=float, default=0.3, help="share of the GPU for each engine of vLLM")
    parser.add_argument("--output", type=Path, help="JSON file; default: ./engines-DEVICE.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.size == "tiny":
            student, work = tiny(options.problems)
        else:
            student, work = real(options.size, options.problems, options.new_tokens, Path(folder))
        rows = measure(student, work, options.rounds, options.memory)
    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    result = {
        "device": name,
        "date": datetime.now(UTC).date().isoformat(),
        "size": options.size,
        "dtype": work.dtype,
        "responses": len(work.samples) * work.group_size,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "vllm": installed_version(),
        },
        "arms": rows,
    }
    path = options.output or Path(f"engines-{'cuda' if device.type == 'cuda' else 'cpu'}.json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}, {work.dtype}, {result['responses']} responses, median of {options.rounds} rounds")
    print(table_of(rows))
    print(f"Written to {path}")


if __name__ == "__main__":
    main()

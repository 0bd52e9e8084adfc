"""Compares the memory estimate with measured peaks, on whole training steps of random models.

    python benchmarks/memory.py                # all cases, one after another; up to 12 GiB
    python benchmarks/memory.py --only small   # one of them

Each case writes a randomly initialised checkpoint in Qwen3-VL's layout, then runs two training steps of a
recipe in a separate process. The peak is that of the process's resident set. Responses hardly ever stop early
(the stop token is as unlikely as any other), so a step is as large as the estimate assumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """Sizes of a model, and the settings of its run."""

    hidden: int
    layers: int
    feed_forward: int
    vocabulary: int
    settings: tuple[str, ...] = ()
    vision: tuple[int, int] = (256, 6)
    dtype: str = "float32"
    side: int = 512


CASES = {
    "small": Case(512, 8, 1536, 32_768),
    "vocabulary": Case(512, 8, 1536, 151_936),
    "vocabulary_bf16": Case(512, 8, 1536, 151_936, dtype="bfloat16"),
    "large": Case(1024, 16, 3072, 60_000, vision=(512, 12)),
    "large_live": Case(1024, 20, 3072, 151_936, settings=("teacher.update=live",), vision=(512, 12)),
    "long": Case(256, 12, 768, 8_192, side=768),
    "checkpointing": Case(256, 12, 768, 8_192, settings=("scoring.gradient_checkpointing=true",), side=768),
    "two_views": Case(
        512, 8, 1536, 32_768, settings=("objective.visual_steering={scale: 1.0}", "rollout.group_size=2")
    ),
    "decoding": Case(
        256, 12, 768, 151_936, settings=("rollout.group_size=32", "optimizer.prompts_per_micro_batch=1")
    ),
    "average_bf16": Case(512, 8, 1536, 32_768, settings=("teacher.update=ema",), dtype="bfloat16"),
    "eight_bit": Case(512, 8, 1536, 32_768, settings=("optimizer.states=8bit",)),
    "eight_bit_bf16": Case(512, 8, 1536, 32_768, settings=("optimizer.states=8bit",), dtype="bfloat16"),
    "lora_bf16": Case(1024, 8, 3072, 60_000, settings=("student.lora={rank: 16}",), dtype="bfloat16"),
    "qlora_bf16": Case(
        1024, 8, 3072, 60_000, settings=("student.lora={rank: 16, quantize: nf4}",), dtype="bfloat16"
    ),
}


def write_checkpoint(case: Case, folder: Path) -> None:
    """Write a random model of these sizes, with Qwen3-VL's 16-pixel patches."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    from random_models import wide_processor
    from vicur.cuebench.tiny import TinySize, build_config

    processor = wide_processor(case.vocabulary)
    tokenizer = processor.tokenizer
    heads = case.hidden // 64
    width, depth = case.vision
    config = build_config(TinySize(case.hidden, case.layers, heads, width, depth), processor)
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.intermediate_size = case.vocabulary, case.feed_forward
    vision.patch_size, vision.intermediate_size, vision.num_heads = 16, 4 * width, width // 64
    vision.num_position_embeddings = 2304
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).to(getattr(torch, case.dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def run(case: Case, checkpoint: Path, data: Path) -> dict[str, Any]:
    """Run two steps; return the estimate made before them and the peak of each phase, in bytes."""
    from rich.console import Console

    from vicur.progress import Progress
    from vicur.run.build import build
    from vicur.run.recipe import load_recipe, to_yaml
    from vicur.training.records import Records

    pixels = case.side**2
    overrides = [
        f"student.model={checkpoint}",
        f"student.dtype={case.dtype}",
        f"data.train={data}",
        f"data.min_pixels={pixels}",
        f"data.max_pixels={pixels}",
        "training.prompts_per_step=2",
        "training.steps=2",
        "training.save_model=false",
        "training.old_log_probs=scored",
        "rollout.sampling.max_new_tokens=12",
        *case.settings,
    ]
    recipe = load_recipe("cuebench/opsd_cue", overrides)
    phases = {"imports": resident()}
    forget_peak()
    assembled = build(recipe)
    phases["loading"] = peak()
    phases["loaded"] = resident()
    memory = assembled.plan().memory
    estimate = dict(memory.parts)
    resident_parts = sum(memory.resident.values())
    expected = {name: resident_parts + sum(parts.values()) for name, parts in memory.phases.items()}
    trainer = assembled.trainer
    for name, owner, method in (
        ("sampling", trainer.source, "rollouts"),
        ("scoring", trainer.scoring, "score_rollouts"),
        ("reading", trainer.scoring, "score_references"),
        ("update", trainer.updater, "gradient"),
        ("optimizer", trainer.updater.optimizer, "step"),
    ):
        watch(phases, name, owner, method)
    with Records(checkpoint.parent / "run", to_yaml(recipe)) as records:
        trainer.train(records, Progress("", Console(quiet=True)))
    count = sum(p.numel() for p in assembled.student.model.parameters())
    return {"parameters": count, "estimate": estimate, "expected": expected, "phases": phases}


def watch(phases: dict[str, int], name: str, owner: Any, method: str) -> None:
    """Record the peak during every call of a method."""
    inner = getattr(owner, method)

    def measured(*args: Any, **kwargs: Any) -> Any:
        forget_peak()
        result = inner(*args, **kwargs)
        phases[name] = max(phases.get(name, 0), peak())
        return result

    object.__setattr__(owner, method, measured)


def peak() -> int:
    return _status("VmHWM")


def resident() -> int:
    return _status("VmRSS")


def forget_peak() -> None:
    """Reset the high-water mark to what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def measure(name: str) -> dict[str, Any]:
    """Measure one case; its checkpoint and its steps are each made in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        for action in ("write", "run"):
            command = [sys.executable, __file__, "--action", action, "--only", name, "--folder", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--action", choices=("all", "write", "run"), default="all", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.action == "write":
        from vicur.cuebench.generate import write_parquet

        write_checkpoint(CASES[options.only[0]], options.folder / "model")
        write_parquet("segments", "train", 16, options.folder / "train.parquet")
    elif options.action == "run":
        result = run(CASES[options.only[0]], options.folder / "model", options.folder / "train.parquet")
        print(json.dumps(result))
    else:
        for name in options.only:
            result = measure(name)
            total = sum(result["estimate"].values())
            top = max(result["phases"].values())
            off = 100 * (total / top - 1)
            size = f"{result['parameters'] / 1e6:.0f} M"
            print(f"{name:20} {size:>6}  {total / GIB:.2f}  {top / GIB:.2f} GiB  {off:+.1f} %", flush=True)
            print("    phases  ", {k: round(v / GIB, 2) for k, v in result["phases"].items()}, flush=True)
            print("    expected", {k: round(v / GIB, 2) for k, v in result["expected"].items()}, flush=True)
            print("    estimate", {k: round(v / GIB, 2) for k, v in result["estimate"].items()}, flush=True)


if __name__ == "__main__":
    main()

"""Measures training on one GPU: memory, time by phase, and model FLOPs utilisation.

    python benchmarks/gpu.py                       # at most nine minutes; needs a GPU of 80 GB
    python benchmarks/gpu.py --small               # the same code on a CPU, in less than a minute
    python benchmarks/gpu.py scoring.gradient_checkpointing=false optimizer.prompts_per_micro_batch=2

A run of the packaged recipe `vicur/2b/opd_vicur` (sampled-token OPD, cue recovery, a larger teacher that is
shown a cue; bfloat16, gradient checkpointing), with models of the real shapes and random weights: Qwen3-VL-2B
learns from the 8B, whose weights are kept in CPU memory. Nothing is downloaded. Each step has 16 problems
with 2,048 prompt tokens, 1,800 of them visual, and responses of 1,024 tokens. The components are those of
`vicur train`; only the weights are made instead of read. Further arguments are settings of the recipe.

Responses are sampled in the first steps only (`--sampled-steps`). Later steps use the last ones again, which
changes no size: random weights hardly ever produce a stop token. With `--sampled-steps 0` responses are
random tokens, and only scoring and update are measured. Before a step that would exceed `--minutes` the run
ends; the result says how many steps there were. `--profile FILE` records what the second step's update does.

The package must be installed, or `PYTHONPATH=src` be set. Times are medians over the steps after the first,
each phase up to the moment at which the GPU has finished. Results: a table, and a JSON file in the current
folder (`gpu-DEVICE.json`). Published results are in `benchmarks/results`; name that folder with `--output`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity

from flops import Reading, forward_flops, peak_of, update_flops
from random_models import (
    MERGE,
    PATCH,
    SHAPES,
    TOKENS,
    RandomCheckpoints,
    Shape,
    wide_processor,
    write_without_weights,
)
from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.lengths import prompt_length
from vicur.encoding.prompts import PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.devices import choose_device, peak_memory, reset_peak_memory
from vicur.progress import Progress
from vicur.rollouts.rollout import Response, Rollouts, texts_of
from vicur.rollouts.source import RolloutSource
from vicur.run.build import build
from vicur.run.execute import Plan, Run
from vicur.run.recipe import Recipe, load_recipe, to_yaml
from vicur.scoring.scorer import Scorer
from vicur.training.records import Records, environment
from vicur.training.state import RunState

STARTED = time.monotonic()
MARGIN = 30
"""Seconds that are kept for what is not counted: the imports and the end of the run."""
GIB = 2**30
SIDE = PATCH * MERGE
"""Pixels of a visual token's side."""
PHASES = ("sampling", "scoring", "update")
PROFILED = 2
"""The step whose update `--profile` records; it is left out of the medians."""


@dataclass(frozen=True)
class Size:
    """Sizes of the models and of a step.

    Attributes:
        student, teacher: the models.
        tokens: tokens of the tokenizer.
        grid: visual tokens of the image, rows and columns.
        prompt: tokens of the student's prompt.
        response: tokens of a response.
        prompts: problems of a step.
    """

    student: Shape
    teacher: Shape
    tokens: int
    grid: tuple[int, int]
    prompt: int
    response: int
    prompts: int

    @property
    def visual(self) -> int:
        """Visual tokens of a prompt."""
        return self.grid[0] * self.grid[1]


REAL = Size(SHAPES["2B"], SHAPES["8B"], TOKENS, (45, 40), prompt=2048, response=1024, prompts=16)
SMALL = Size(
    Shape(128, 4, 4, 2, 384, 64, 2, 128, 4, (0,), True, head_dim=32, vocabulary=2304),
    Shape(192, 4, 6, 2, 576, 64, 2, 128, 4, (0,), False, head_dim=32, vocabulary=2304),
    tokens=2048,
    grid=(5, 4),
    prompt=96,
    response=16,
    prompts=2,
)


def write_problems(size: Size, processor: Any, system: str, folder: Path) -> Path:
    """Write problems whose prompts have exactly the wanted length: an image, and a question of digits."""
    random = np.random.default_rng(0)
    pixels = size.visual * SIDE**2
    encoder = PromptEncoder.for_lengths(processor, PixelLimits(pixels, pixels))
    rows, columns = size.grid
    lines = []
    for number in range(size.prompts):
        # A colour for each visual token; a compressed file of noise would be large.
        colours = random.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((SIDE * columns, SIDE * rows), Image.Resampling.NEAREST)
        image.save(folder / f"{number}.png")

        def asking(question: str, image: Image.Image = image) -> Sample:
            parts = ({"type": "image"}, {"type": "text", "text": question})
            instruction = ({"type": "text", "text": system},)
            messages = ({"role": "system", "content": instruction}, {"role": "user", "content": parts})
            return Sample("", messages, (image,))

        question = "What is shown?"
        missing = size.prompt - prompt_length(encoder, Plain().show(asking(question)))
        assert missing >= 0, f"a prompt has {-missing} tokens too many"
        question += "".join(f" {digit}" for digit in random.integers(0, 10, missing))
        assert prompt_length(encoder, Plain().show(asking(question))) == size.prompt
        cue = " ".join(f"Cell {cell} is {tuple(colours[0, cell].tolist())}." for cell in range(columns // 4))
        lines.append({"file_name": f"{number}.png", "question": question, "cue": cue})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_inputs(size: Size, folder: Path, settings: Sequence[str]) -> Recipe:
    """Write the problems and the checkpoints' configurations; return the recipe that uses them."""
    processor = wide_processor(size.tokens)
    for name in ("student", "teacher", "problems"):
        (folder / name).mkdir()
    write_without_weights(size.student, processor, folder / "student")
    write_without_weights(size.teacher, processor, folder / "teacher")
    system = load_recipe("vicur/2b/opd_vicur").data.system_prompt
    assert system is not None
    problems = write_problems(size, processor, system, folder / "problems")
    pixels = size.visual * SIDE**2
    return load_recipe(
        "vicur/2b/opd_vicur",
        [
            f"student.model={folder / 'student'}",
            f"teacher.model={folder / 'teacher'}",
            f"data.train={problems}",
            f"data.min_pixels={pixels}",
            f"data.max_pixels={pixels}",
            f"data.max_prompt_tokens={size.prompt}",
            f"rollout.sampling.max_new_tokens={size.response}",
            f"training.prompts_per_step={size.prompts}",
            f"scoring.prompts_per_batch={size.prompts}",  # the teacher's weights are copied once per batch
            f"training.output={folder / 'run'}",
            "training.save_model=false",
            "teacher.offload=true",
            *settings,
        ],
    )


class FirstRollouts:
    """Responses that are sampled in the first steps only; later steps get the last ones again.

    Args:
        source: samples the responses.
        student: encodes the prompts, which sampling otherwise does.
        may_sample: whether responses are sampled at a step.
        length: number of tokens of a random response, for problems that have none yet.
    """

    def __init__(
        self, source: RolloutSource, student: Scorer, may_sample: Callable[[int], bool], length: int
    ) -> None:
        self.source, self.student, self.may_sample, self.length = source, student, may_sample, length
        self.sampled: list[int] = []
        self._responses: dict[str, Any] = {}

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """Responses to the samples, new or old."""
        if self.may_sample(step):
            rollouts = self.source.rollouts(samples, step)
            self._responses = {s.id: r for s, r in zip(samples, rollouts.responses, strict=True)}
            self.sampled.append(step)
            return rollouts
        self.student.encode(samples, Plain())
        tokenizer = self.student.loaded.processor.tokenizer
        for sample in samples:
            if sample.id not in self._responses:
                self._responses[sample.id] = (self._random(tokenizer, len(self._responses)),)
        responses = tuple(self._responses[sample.id] for sample in samples)
        return Rollouts(tuple(samples), responses, texts_of(responses, tokenizer, [""] * len(samples)))

    def _random(self, tokenizer: Any, seed: int) -> Response:
        """A response of random letters, which every tokenizer has as tokens."""
        letters = tokenizer("a b c d e f g h", add_special_tokens=False)["input_ids"]
        drawn = np.random.default_rng(seed).choice(letters, self.length)
        return Response(torch.as_tensor(drawn), None, "length")

    def sync(self) -> None:
        """Same as the source's."""
        self.source.sync()


class Meter:
    """Seconds and peak memory of each phase of each step. A phase may be part of another.

    Args:
        device: device of the run, which has loaded its models.

    Attributes:
        steps: seconds by phase, for each step.
        allocated, reserved: peak bytes by phase; reserved ones on a GPU only.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self._current: dict[str, float] = {}
        self._open = ["loading"]
        self._note_memory()
        self._open = []

    def watch(self, owner: Any, method: str, phase: str) -> None:
        """Measure every call of a method as a part of a phase."""
        inner = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            self._note_memory()
            self._open.append(phase)
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._note_memory()
                seconds = time.perf_counter() - started
                self._current[phase] = self._current.get(phase, 0.0) + seconds
                self._open.pop()

        setattr(owner, method, measured)

    def _note_memory(self) -> None:
        """Wait for the GPU, and record the peak of the phases that are open since the last record."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            for phase in self._open:
                self.reserved[phase] = max(self.reserved.get(phase, 0), reserved)
        for phase in self._open:
            self.allocated[phase] = max(self.allocated.get(phase, 0), peak_memory(self.device) or 0)
        reset_peak_memory(self.device)

    def end_step(self) -> dict[str, float]:
        """The seconds of the step that ends, by phase."""
        self.steps.append(self._current)
        self._current = {}
        return self.steps[-1]


class Limit:
    """Decides how long the run continues.

    Args:
        minutes: maximum duration of the process.
        sampled_steps: steps in which responses are sampled, if time allows.
        meter: what the steps have taken.
    """

    def __init__(self, minutes: float, sampled_steps: int, meter: Meter) -> None:
        self.seconds, self.sampled_steps, self.meter = 60 * minutes - MARGIN, sampled_steps, meter
        self._step_started = time.monotonic()

    def may_sample(self, step: int) -> bool:
        """Whether a step samples: the first if any does, others only in the first half of the time."""
        last = self.meter.steps[-1].get("sampling", 0.0) if self.meter.steps else 0.0
        in_time = time.monotonic() - STARTED + last < self.seconds / 2
        return step <= self.sampled_steps and (step == 1 or in_time)

    def continues(self, state: RunState) -> bool:
        """Whether there is time for another step like the last; called after each step."""
        now = time.monotonic()
        took, self._step_started = now - self._step_started, now
        step, number = self.meter.end_step(), len(self.meter.steps)
        if number <= self.sampled_steps and not self.may_sample(number + 1):
            took -= step.get("sampling", 0.0)
        return now - STARTED + took < self.seconds


@dataclass(frozen=True)
class Outcome:
    """What a run measured.

    Attributes:
        run: the run.
        plan: the estimate that was made before the first step.
        meter: seconds and memory.
        sampled: steps in which responses were sampled.
        readings: lengths of the last step's prompts and responses, as the student reads them.
        built: seconds until the first step.
    """

    run: Run
    plan: Plan
    meter: Meter
    sampled: list[int]
    readings: list[Reading]
    built: float


def measure(recipe: Recipe, size: Size, options: argparse.Namespace) -> Outcome:
    """Build the run and train until the steps or the minutes are over."""
    device = choose_device(recipe.training.device)
    with patch("vicur.models.load.read_model", RandomCheckpoints(device)):
        run = build(recipe)
    scoring, updater = run.trainer.scoring, run.trainer.updater
    plan = run.plan()
    meter = Meter(device)
    limit = Limit(options.minutes, options.sampled_steps, meter)
    length = recipe.rollout.sampling.max_new_tokens
    source = FirstRollouts(run.trainer.source, scoring.student, limit.may_sample, length)
    lengths: list[Reading] = []

    def read_lengths(rollouts: Rollouts) -> None:
        prompts = scoring.student.encode(rollouts.samples, Plain())
        lengths[:] = [
            Reading(len(prompt), size.visual, len(response.ids))
            for prompt, group in zip(prompts, rollouts.responses, strict=True)
            for response in group
        ]

    meter.watch(source, "rollouts", "sampling")
    meter.watch(scoring, "score_rollouts", "scoring")
    meter.watch(scoring, "score_references", "scoring")
    meter.watch(updater, "update", "update")
    meter.watch(updater, "gradient", "gradient")
    meter.watch(updater.optimizer, "step", "optimizer step")
    if options.profile:
        profile_update(updater, options.profile)
    trainer = replace(run.trainer, source=source)
    inner = scoring.score_rollouts

    def score_rollouts(rollouts: Rollouts, *args: Any) -> Any:
        read_lengths(rollouts)
        return inner(rollouts, *args)

    scoring.score_rollouts = score_rollouts  # type: ignore[method-assign, assignment]
    built = time.monotonic() - STARTED
    folder = Path(str(recipe.training.output))
    with Records(folder, to_yaml(recipe), device) as records:
        trainer.train(records, Progress("step"), after_step=limit.continues)
    return Outcome(run, plan, meter, source.sampled, lengths, built)


def profile_update(updater: Any, path: Path) -> None:
    """Record the update of step `PROFILED`: its operations by their time on the device and on the CPU."""
    inner, calls = updater.update, count(1)
    path.parent.mkdir(parents=True, exist_ok=True)

    def profiled(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != PROFILED:
            return inner(*args, **kwargs)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with torch.profiler.profile(activities=kinds, record_shapes=True) as profile:
            result = inner(*args, **kwargs)
        averages = profile.key_averages(group_by_input_shape=True)
        tables = [
            averages.table(sort_by=key, row_limit=40, max_name_column_width=60, max_shapes_column_width=60)
            for key in ("self_device_time_total", "self_cpu_time_total")
        ]
        path.write_text("\n\n".join(tables) + "\n")
        return result

    updater.update = profiled


def median_of(steps: Sequence[dict[str, float]], phase: str) -> dict[str, float] | None:
    """The median seconds of a phase, and over how many steps; the first step only if there is no other."""
    values = [step[phase] for step in steps]
    if not values:
        return None
    values = values[1:] or values
    return {"median": statistics.median(values), "steps": len(values)}


def result_of(outcome: Outcome, size: Size, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, for the JSON file."""
    meter, device = outcome.meter, outcome.meter.device
    steps = [
        step | {"sampled": number in outcome.sampled} for number, step in enumerate(meter.steps, start=1)
    ]
    timed = [
        step for number, step in enumerate(steps, start=1) if not (options.profile and number == PROFILED)
    ]
    taken = [step for step in timed if "optimizer step" in step]  # other updates were not finite
    sampling = median_of([step for step in timed if step["sampled"]], "sampling")
    seconds = {
        "sampling": sampling,
        "scoring": median_of(timed, "scoring"),
        **{name: median_of(taken, name) for name in ("update", "gradient", "optimizer step")},
    }
    config = outcome.run.student.model.config
    flops = update_flops(config, outcome.readings)
    responses = sum(reading.response for reading in outcome.readings)
    hardware = environment(device)
    peak = peak_of(hardware["device"]) if device.type == "cuda" else None
    return {
        "benchmark": "gpu",
        "small": options.small,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {
            "device": hardware["device"],
            "memory_bytes": _memory_bytes(device),
            "peak_bf16_flops_per_second": peak,
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": hardware["threads"],
        },
        "versions": {"python": hardware["python"], "cuda": torch.version.cuda} | hardware["packages"],
        "command": hardware["command"],
        "settings": _settings_of(outcome, size, recipe),
        "tokens": {
            "prompt": max(reading.prompt for reading in outcome.readings),
            "visual": size.visual,
            "teacher_prompt": outcome.plan.work.sizes("teacher").most_tokens,
            "responses": responses,
            "longest_response": max(reading.response for reading in outcome.readings),
        },
        "steps": {
            "planned": options.steps,
            "run": len(steps),
            "sampled": outcome.sampled,
            "updates": sum("optimizer step" in step for step in steps),
        },
        "seconds": seconds | {"until_first_step": outcome.built, "whole": time.monotonic() - STARTED},
        "seconds_of_steps": steps,
        "sampled_tokens_per_second": sampling and responses / sampling["median"],
        "memory": _memory_of(outcome),
        "update_flops": flops,
        "forward_flops_of_a_sequence": forward_flops(config, outcome.readings[0]),
        "utilisation": {
            name: flops / timing["median"] / peak if peak is not None and timing is not None else None
            for name in ("update", "gradient")
            for timing in (seconds[name],)
        },
    }


def _memory_bytes(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _settings_of(outcome: Outcome, size: Size, recipe: Recipe) -> dict[str, Any]:
    trainer = outcome.run.trainer
    return {
        "student": vars(size.student),
        "teacher": vars(size.teacher),
        "student_parameters": sum(p.numel() for p in outcome.run.student.model.parameters()),
        "prompts_per_step": recipe.training.prompts_per_step,
        # Halved by the run if memory was exhausted.
        "prompts_per_micro_batch": trainer.updater.micro_batch.size,
        "prompts_per_scoring_batch": trainer.scoring.student.batch_size.size,
        "gradient_checkpointing": recipe.scoring.gradient_checkpointing,
        "dtype": recipe.student.dtype,
        "teacher_offload": recipe.teacher.offload,
    }


def _memory_of(outcome: Outcome) -> dict[str, Any]:
    meter, estimate = outcome.meter, outcome.plan.memory
    allocated = max(bytes_ for phase, bytes_ in meter.allocated.items() if phase != "loading")
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": max(meter.reserved.values()) if meter.reserved else None,
        "allocated_by_phase": meter.allocated,
        "reserved_by_phase": meter.reserved,
        "estimate_bytes": estimate.total,
        "estimate_parts": estimate.parts,
        "estimate_error_percent": 100 * (estimate.total / allocated - 1),
    }


def table_of(result: dict[str, Any]) -> str:
    """The result as a table for reading."""
    seconds, memory, tokens = result["seconds"], result["memory"], result["tokens"]
    rate = result["sampled_tokens_per_second"]
    phases = [phase for phase in (*PHASES, "gradient", "optimizer step") if seconds[phase]]
    step = sum(seconds[phase]["median"] for phase in PHASES if seconds[phase])
    rows = [
        ("device", result["hardware"]["device"]),
        ("steps", f"{result['steps']['run']} of {result['steps']['planned']}"),
        ("problems per step", f"{result['settings']['prompts_per_step']}"),
        ("tokens of a prompt", f"{tokens['prompt']:,}, {tokens['visual']:,} of them visual"),
        ("tokens of the longest response", f"{tokens['longest_response']:,}"),
        *(
            (f"{phase}, median of {seconds[phase]['steps']} steps", f"{seconds[phase]['median']:.3f} s")
            for phase in phases
        ),
        (f"step with{'' if seconds['sampling'] else 'out'} sampling, sum of medians", f"{step:.3f} s"),
        *([("sampled tokens per second", f"{rate:,.0f}")] if rate else []),
        ("peak memory, allocated", _gib(memory["allocated_bytes"])),
        ("peak memory, reserved", _gib(memory["reserved_bytes"])),
        ("estimated peak", _gib(memory["estimate_bytes"])),
        ("error of the estimate", f"{memory['estimate_error_percent']:+.1f} %"),
        ("model FLOPs of an update", f"{result['update_flops'] / 1e12:,.3f} T"),
        *(
            (f"model FLOPs utilisation, {name}", "unknown" if share is None else f"{100 * share:.1f} %")
            for name, share in result["utilisation"].items()
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.2f} GiB"


def result_file(result: dict[str, Any]) -> Path:
    """The file of a result in the current folder, named after its device."""
    device = re.sub(r"[^a-z0-9]+", "-", result["hardware"]["device"].lower()).strip("-")
    return Path(f"gpu-{'small-' if result['small'] else ''}{device}.json")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="further settings of the recipe, key=value")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU: tests the code only")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--sampled-steps", type=int, default=3, help="steps that sample new responses; 0 for random ones"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="the whole run ends within this time")
    parser.add_argument("--profile", type=Path, help="text file for a profile of the second step's update")
    parser.add_argument("--output", type=Path, help="JSON file; default: ./gpu-DEVICE.json")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        parser.error("there is no GPU; --small runs the same code on the CPU")
    if options.small:
        torch.set_num_threads(1)  # more threads than idle cores multiply the time of small products
    size = SMALL if options.small else REAL
    settings = [f"training.steps={options.steps}", *(["training.device=cpu"] if options.small else [])]
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_inputs(size, Path(folder), [*settings, *options.settings])
        outcome = measure(recipe, size, options)
        result = result_of(outcome, size, recipe, options)
    path = options.output or result_file(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(table_of(result))
    if options.profile and len(outcome.meter.steps) < PROFILED:
        print(f"No profile: the run ended before step {PROFILED}.")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()

"""Pretraining of the tiny models: first to see, then to answer.

Stage 1, grounding: each merged visual token must name the colour and the digit of its cell through
the language model's own token embeddings. Without it, the model learns the text but not to see.
Stage 2, answering: plain, hinted, listing and blind problems by cross-entropy. Half of the hinted
problems come without their image: models learn to read hints later than
images, but sooner if there is nothing else to read.

The student's images are written in fresh ink. The problems that it is later trained and tested on are
faded, so it starts with about half of the answers right and has something to learn. The larger
teacher has seen faded ink too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vicur.cuebench.generate import Split, scenes, to_sample
from vicur.cuebench.scenes import COLOURS, IN_DOMAIN, SegmentsScene
from vicur.cuebench.tiny import SIZES, build_model, build_processor
from vicur.data.sample import Sample
from vicur.data.views import Blind, Hinted, Plain, View
from vicur.models.load import LoadedModel
from vicur.objectives.reduction import mean_weights
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.grading import grade
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import Term
from vicur.scoring.terms import cross_entropy
from vicur.settings.section import PathText, section

Report = Callable[[str], None]


@section
class PretrainSettings:
    """The settings of `vicur cuebench pretrain`."""

    size: Literal["student", "teacher"]
    """Size of the model: that of the tiny student or of the tiny teacher."""
    output: PathText
    """Folder for the checkpoint."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed for weights and data; null for the seed of the shipped model."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings for making a tiny model."""

    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    grounding_steps: int = 120
    """Number of steps in stage 1, grounding."""
    steps: int = 300
    """Number of steps in stage 2, answering."""
    batch_size: int = 64
    """Number of problems in a step."""
    learning_rate: float = 2e-3
    """Peak of a cosine schedule with warm-up, one for each stage."""
    check_every: int = 25
    """Steps between two measurements of accuracy on the validation split."""
    listing: float = 0.2
    """Share of problems that ask for every segment."""
    blind: float = 0.1
    """Share of problems shown without their image."""
    cue: float = 0.4
    """Share of the remaining problems that are hinted with the cue."""
    answer: float = 0.2
    """Share of the remaining problems that are hinted with the answer; all others are plain."""
    imageless: float = 0.5
    """Share of hinted problems shown without their image."""
    faded: float = 0.0
    """Share of stage 2's images that are in the faded ink of training and test."""
    quoting: float = 0.15
    """Share of hinted targets that quote the hint."""


SHIPPED = {"student": PretrainConfig(seed=0), "teacher": PretrainConfig(seed=1, steps=400, faded=0.3)}
"""The settings of the packaged checkpoints. The teacher has seen faded ink, the student has not."""


def pretrain_checkpoint(
    size: Literal["student", "teacher"], out: Path, seed: int | None, report: Report
) -> None:
    """Make a tiny model and write it with its processor and a model card, weights in float16.

    Args:
        size: which of the two model sizes.
        out: folder; must not exist yet or be empty.
        seed: seed of weights and data; None for that of the shipped model.
        report: called with a progress message now and then.

    Raises:
        ValueError: the folder is not empty.
        ValueError: the model only learnt to read hints.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Choose another folder.")
    config = SHIPPED[size] if seed is None else replace(SHIPPED[size], seed=seed)
    torch.manual_seed(config.seed)
    processor = build_processor()
    loaded = LoadedModel.of(build_model(SIZES[size], processor), processor)
    training = Pretraining(loaded, config, report)
    training.run()
    loaded.model.to(torch.float16).to(torch.float32)  # what is measured is what is saved
    splits: tuple[Split, ...] = ("pretrain", "validation", "test_ood")
    accuracies: dict[str, dict[str, float]] = {s: training.accuracies(s, 600) for s in splits}
    loaded.model.to(torch.float16)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded.save(out, _card(size, config, parameters, accuracies))


def _card(size: str, config: PretrainConfig, parameters: int, accuracies: dict[str, dict[str, float]]) -> str:
    lines = [
        f"# vicur:tiny-{size}",
        "",
        f"A Qwen3-VL of {parameters:,} parameters for CueBench's segments. Only good for that.",
        "",
        f"Made by `vicur cuebench pretrain --size {size} --output FOLDER`, seed {config.seed}, with",
        f"torch {torch.__version__} on a CPU; weights stored in float16.",
        "",
        "Greedy accuracy in percent on 600 problems of each split:",
        "",
        "| split | plain | shown the cue | shown the answer |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {split} | " + " | ".join(f"{value:.1f}" for value in scores.values()) + " |"
        for split, scores in accuracies.items()
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Problem:
    """A sample, the view under which it is shown, and the target response."""

    sample: Sample
    view: View
    target: str


def answering_problems(config: PretrainConfig, random: np.random.Generator) -> Iterator[Problem]:
    """An endless stream of stage 2's problems."""
    for scene in _scenes(config.seed):
        if config.faded and random.random() < config.faded:
            scene = replace(scene, style=IN_DOMAIN)
        sample = to_sample(scene)
        kind, hint = random.random(), random.random()
        if kind < config.listing:
            question = [{"type": "image"}, {"type": "text", "text": "List all segments."}]
            listing = replace(sample, messages=({"role": "user", "content": question},))
            yield Problem(listing, Plain(), scene.listing)
        elif kind < config.listing + config.blind:
            yield Problem(sample, Blind(), scene.solution)
        elif hint < config.cue + config.answer:
            if random.random() < config.imageless:
                sample = replace(sample, messages=Blind().show(sample).messages, images=())
            yield _hinted(sample, scene, "cue" if hint < config.cue else "answer", config, random)
        else:
            yield Problem(sample, Plain(), scene.solution)


def _scenes(seed: int) -> Iterator[SegmentsScene]:
    return cast(Iterator[SegmentsScene], scenes("segments", "pretrain", seed))


def _hinted(
    sample: Sample,
    scene: SegmentsScene,
    kind: Literal["cue", "answer"],
    config: PretrainConfig,
    random: np.random.Generator,
) -> Problem:
    """A hinted problem. Some targets quote the hint, equally often for both kinds, so that leakage can occur
    later."""
    hint = scene.cue if kind == "cue" else scene.answer
    quote = f"The hint says: {hint} " if random.random() < config.quoting else ""
    return Problem(sample, Hinted(kind), quote + scene.solution)


class Pretraining:
    """Trains one tiny model.

    Args:
        loaded: the untrained model.
        config: settings of the pretraining.
        report: called with a progress message now and then.
    """

    def __init__(self, loaded: LoadedModel, config: PretrainConfig, report: Report = print) -> None:
        self.loaded, self.config, self.report = loaded, config, report
        self.scorer = Scorer(loaded)
        self.grader = Grader()
        self.random = np.random.default_rng(config.seed)

    def run(self) -> dict[str, float]:
        """Run both stages.

        Returns:
            accuracies on the validation split in percent, and the steps taken.

        Raises:
            ValueError: plain accuracy is still below 20 % half-way: the model only reads hints, which
                distillation cannot fix.
        """
        self._ground()
        return self._answer()

    def _ground(self) -> None:
        model, config = self.loaded.model, self.config
        optimizer, schedule = _optimizer(model, config.learning_rate, config.grounding_steps)
        words = self.loaded.processor.tokenizer.convert_tokens_to_ids
        colour_ids = torch.tensor([words(f"Ġ{colour}") for colour in COLOURS])
        digit_ids = torch.tensor([words(f"Ġ{digit}") for digit in range(10)])
        stream = _scenes(config.seed + 1)
        started = time.perf_counter()
        for step in range(config.grounding_steps):
            batch = [next(stream) for _ in range(config.batch_size)]
            prompts = self.scorer.encode([to_sample(scene) for scene in batch], Plain())
            pixels = torch.cat([prompt.media["pixel_values"] for prompt in prompts])
            grids = torch.cat([prompt.media["image_grid_thw"] for prompt in prompts])
            embeds = torch.cat(model.model.get_image_features(pixels, grids).pooler_output)
            scene_index, cell, colour, digit = _cells(batch)
            seen = embeds[scene_index * 16 + cell]
            table = model.get_input_embeddings().weight
            loss = F.cross_entropy(seen @ table[colour_ids].T, colour)
            loss = loss + F.cross_entropy(seen @ table[digit_ids].T, digit)
            _step(loss, optimizer, schedule)
            if step % 50 == 49:
                self.report(
                    f"grounding {step + 1}: loss {loss.item():.3f}, digits read "
                    f"{_share(seen @ table[digit_ids].T, digit):.0%}, "
                    f"{time.perf_counter() - started:.0f} s"
                )

    def _answer(self) -> dict[str, float]:
        config = self.config
        optimizer, schedule = _optimizer(self.loaded.model, config.learning_rate, config.steps)
        stream = answering_problems(config, self.random)
        for step in range(1, config.steps + 1):
            loss = self._loss([next(stream) for _ in range(config.batch_size)])
            _step(loss, optimizer, schedule)
            if step % config.check_every == 0 or step == config.steps:
                accuracies = self.accuracies("validation")
                summary = ", ".join(f"{name} {value:.1f}" for name, value in accuracies.items())
                self.report(f"answering {step}: loss {loss.item():.3f}, {summary}")
                if step >= config.steps / 2 and accuracies["plain"] < 20:
                    raise ValueError(
                        f"Plain accuracy is {accuracies['plain']:.1f} % after {step} steps: this model reads "
                        "hints but not images. Use another seed or more grounding steps."
                    )
        return {**accuracies, "steps": float(step)}

    def _loss(self, batch: list[Problem]) -> Tensor:
        encoder, tokenizer = self.scorer.encoder, self.loaded.processor.tokenizer
        prompts = encoder.encode([problem.view.show(problem.sample) for problem in batch])
        targets = [
            torch.tensor([*tokenizer(problem.target)["input_ids"], tokenizer.eos_token_id])
            for problem in batch
        ]
        sequences = self.scorer.sequences(prompts, [[target] for target in targets])
        mean = mean_weights(sequences.response_index, "token")
        term = Term("cross_entropy", lambda block: cross_entropy(block.log_prob_C), mean)
        return self.scorer.weighted_terms(sequences, [term], {}).loss

    def accuracies(self, split: Split, count: int = 256) -> dict[str, float]:
        """Greedy accuracy in percent under each view that matters later."""
        stream = scenes("segments", split, seed=10_000)  # different from the training problems
        samples = [to_sample(next(stream)) for _ in range(count)]
        config = SamplingConfig(temperature=0.0, max_new_tokens=64)
        engine = make_engine(self.loaded, prompts_per_batch=128)
        generator = ModelGenerator(engine, config, encode=self.scorer.encode)
        views: list[View] = [Plain(), Hinted("cue"), Hinted("answer")]
        accuracies = {}
        for view in views:
            grades = grade(generator.generate(samples, view), self.grader)
            accuracies[view.name] = (
                100 * sum(verdict is not None and verdict.correct for verdict in grades) / count
            )
        return accuracies


def _cells(batch: list[SegmentsScene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scene index, cell, colour index and digit of every segment of every scene."""
    names = list(COLOURS)
    flat = [
        (i, s.cell, names.index(s.colour), s.digit) for i, scene in enumerate(batch) for s in scene.segments
    ]
    index, cell, colour, digit = (torch.tensor(column) for column in zip(*flat, strict=True))
    return index, cell, colour, digit


def _share(logits: Tensor, target: Tensor) -> float:
    return float((logits.argmax(-1) == target).float().mean())


def _optimizer(model: Any, learning_rate: float, steps: int) -> tuple[Any, Any]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    return optimizer, schedule


def _step(loss: Tensor, optimizer: Any, schedule: Any) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()

"""Repeats an update that was skipped, and shows where its numbers stop being finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.files import RECIPE_FILE
from vicur.objectives.objective import OLD
from vicur.progress import Bars
from vicur.rollouts.randomness import seed_step
from vicur.rollouts.rollout import Rollouts
from vicur.run.build import build
from vicur.run.execute import Run
from vicur.run.recipe import load_recipe
from vicur.training.checkpoint import load_tensors
from vicur.training.nonfinite import IMPORTANCE, Dump, weights_among
from vicur.training.scoring import ScoredBatch


@dataclass(frozen=True)
class Finding:
    """How many numbers of one kind are not finite.

    Attributes:
        what: the kind, e.g. "log-probs: teacher".
        bad: count of numbers that are not finite.
        total: count of all.
        first: where the first bad one is; None if all are finite.
    """

    what: str
    bad: int
    total: int
    first: str | None = None


def replay(folder: Path, bars: Bars | None = None) -> list[Finding]:
    """Repeat a skipped update with the weights and the responses of that moment.

    Args:
        folder: what the run wrote of the update, in nonfinite/.
        bars: progress bars; silent if not given.

    Returns:
        counts of the numbers that are not finite, in the order of computation.

    Raises:
        ValueError: the folder holds no such update, or the data lack its problems.
    """
    dump = Dump.read(folder)
    recipe = load_recipe(str(dump.run / RECIPE_FILE))
    # Nothing is sampled, so no engine is needed.
    rollout = replace(recipe.rollout, engine="torch", importance_cap=None)
    run = build(replace(recipe, rollout=rollout), bars)
    weights = weights_among(run.tensors())
    load_tensors(folder / "weights", weights)
    rollouts = Rollouts(_samples(run.data.problems, dump), dump.responses, dump.texts)
    return [*_weights(weights), *_scores(run, rollouts, dump)]


def _samples(problems: FileSource, dump: Dump) -> tuple[Sample, ...]:
    index = {str(name): number for number, name in enumerate(problems.column("id"))}
    missing = [name for name in dump.samples if name not in index]
    if missing:
        raise ValueError(f"The data of the run no longer have the problem {missing[0]} of {dump.folder}.")
    return tuple(problems[index[name]] for name in dump.samples)


def _weights(tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    total = sum(tensor.numel() for tensor in tensors.values())
    yield Finding("weights", sum(bad.values()), total, next((n for n, count in bad.items() if count), None))


def _scores(run: Run, rollouts: Rollouts, dump: Dump) -> Iterator[Finding]:
    trainer = run.trainer
    scoring, needs = trainer.scoring, trainer.objective.needs(dump.step)
    seed_step(run.recipe.training.seed, dump.step)  # for the dropout of adapters
    scoring.begin_step(dump.step)
    prompts = scoring.student.encode(rollouts.samples, scoring.student.view)
    for sample, prompt in zip(rollouts.samples, prompts, strict=True):
        for name, tensor in prompt.media.items():
            if not tensor.isfinite().all():
                yield _finding(f"{name} of problem {sample.id}", tensor, rollouts)
    batch = scoring.score_rollouts(rollouts, needs, dump.step, dump.log_probs.get(OLD))
    scored = scoring.score_references(batch, needs)
    yield from _scored(scored, rollouts)
    importance = dump.log_probs.get(IMPORTANCE)
    if importance is not None:
        yield _finding("importance ratios", importance, rollouts)
        importance = importance.to(scoring.student.device)
    weighed = trainer.objective.weigh(scored.scored_tokens(scoring.student.device)).times(
        importance, "importance"
    )
    for term in weighed.terms:
        if term.weights is not None:
            yield _finding(f"weights of the term {term.name}", term.weights, rollouts)
    update = trainer.updater.gradient(scored, weighed, needs)
    for name, values in update.tokens.items():
        yield _finding(f"values of {name}", values, rollouts)
    yield from _gradients(run)


def _scored(scored: ScoredBatch, rollouts: Rollouts) -> Iterator[Finding]:
    for name, scores in scored.distributions.items():
        yield _finding(f"hidden states: {name}", scores.hidden_ND.isfinite().all(-1).float().log(), rollouts)
    for name, values in scored.log_probs.items():
        yield _finding(f"log-probs: {name}", values, rollouts)
    for name, values in scored.divergences.items():
        yield _finding(f"divergences: {name}", values, rollouts)


def _gradients(run: Run) -> Iterator[Finding]:
    gradients = {n: p.grad for n, p in run.trainer.updater.optimizer.named.items() if p.grad is not None}
    bad = {name: int((~gradient.isfinite()).sum()) for name, gradient in gradients.items()}
    first = next((name for name, count in bad.items() if count), None)
    yield Finding("gradients", sum(bad.values()), sum(g.numel() for g in gradients.values()), first)


def _finding(what: str, values: Tensor, rollouts: Rollouts) -> Finding:
    """Numbers that are not finite among per-token numbers; the first by its problem and response."""
    bad = (~values.isfinite()).flatten()
    if not bad.any():
        return Finding(what, 0, bad.numel())
    first = None
    if len(values) == len(rollouts.response_index):
        response = int(rollouts.response_index[int(bad.nonzero()[0])])
        problem = rollouts.samples[int(rollouts.prompt_index[response])].id
        first = f"problem {problem}, response {response}"
    return Finding(what, int(bad.sum()), bad.numel(), first)

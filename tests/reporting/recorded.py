"""Recorded runs made by hand, without training."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models

from vicur.files import write_rows
from vicur.reporting.runs import RecordedRun
from vicur.run.recipe import recipe_of, to_yaml
from vicur.training.records import RESPONSE_TYPES


def metrics(step, **changes):
    """One line of metrics."""
    line = {
        "step": step,
        "loss": 1.0 / step,
        "gap_whole": -0.5 + 0.01 * step,
        "gap_half_1": -0.6,
        "gap_half_2": -0.4,
        "gap_absolute_whole": 0.5 - 0.01 * step,
        "rollout_accuracy": 50.0,
        "response_tokens": 20.0,
        "truncated": 0.0,
        "answers_marked": 1.0,
        "repetition": 0.0,
        "entropy": 0.3,
        "hint_samples": 0.0,
        "hint_occurrences": 0.0,
        "seconds": 2.0,
        "seconds_rollout": 1.0,
        "seconds_update": 0.5,
    }
    return line | changes


def response(step, sample, text="It is 4.", correct=True, **values):
    """One response, with a token for each character."""
    ids = [ord(character) for character in text]
    return {
        "step": step,
        "sample": sample,
        "question": f"What is {sample}?",
        "answer": "4",
        "response": text,
        "finish_reason": "stop",
        "reward": float(correct),
        "correct": correct,
        "ids": ids,
        **{name: [value] * len(ids) for name, value in values.items()},
    }


def write_run(folder, lines, rollouts=(), observed=None, evaluations=None, overrides=(), problems=8):
    """Write the folder of a run.

    Args:
        folder: the folder.
        lines: lines of metrics.
        rollouts: rows of responses to training problems.
        observed: rows of responses to held-out problems, by step.
        evaluations: whether each held-out problem was right, by step and problem.
        overrides: settings of the recipe.
        problems: number of training problems.
    """
    folder.mkdir(parents=True)
    recipe = recipe_of({"training": {"prompts_per_step": 2}}, source="test", overrides=overrides)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    status = {"status": "finished", "step": len(lines), "seconds": {"total": 10.0, "evaluation": 1.0}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}}))
    (folder / "data.json").write_text(json.dumps({"problems": problems, "train": "train.parquet"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if rollouts:
        write_rows(folder / "rollouts" / "until-step-000002.parquet", list(rollouts), RESPONSE_TYPES)
    measured = []
    for step, rows in (observed or {}).items():
        write_rows(folder / "observations" / f"step-{step:06d}.parquet", rows, RESPONSE_TYPES)
        measured.append({"step": step, "seconds": 1.0 * step, "vds": 0.1 * step, "visual_advantage": 0.2})
    (folder / "observations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
    accuracies = []
    for step, correct in (evaluations or {}).items():
        rows = [response(step, name, correct=right) for name, right in correct.items()]
        write_rows(folder / "evaluation" / f"step-{step:06d}.parquet", rows, RESPONSE_TYPES)
        share = 100 * sum(correct.values()) / len(correct)
        bounds = {"low": share - 10, "high": share + 10}
        accuracies.append({"step": step, "seconds": 3600.0 * step, "accuracy": share, **bounds})
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in accuracies))
    return RecordedRun(folder, folder.name)


def save_tokenizer(folder, texts):
    """Save a tokenizer whose tokens are characters and their ids the code points."""
    words = {character: ord(character) for character in "".join(texts)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))

"""`vicur quickstart`: the main job on CueBench, from base and teacher to table and picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.cuebench.generate import Split, write_parquet
from vicur.data.files import write_json
from vicur.data.sources import FileSource
from vicur.data.views import Hinted
from vicur.diagnostics.attention import sink_attention
from vicur.diagnostics.leakage import HintLeakage
from vicur.evaluation.runner import Evaluation, EvaluationConfig, evaluate
from vicur.evaluation.statistics import Estimate, mean_interval, paired_difference
from vicur.models.load import LoadedModel, load_model
from vicur.recipe import build, load_recipe, to_yaml
from vicur.reporting.showcase import draw_showcase
from vicur.rollouts.processors import SamplingConfig
from vicur.training.progress import Progress
from vicur.training.records import Records

METHODS = ("opsd_answer", "opsd_cue", "opsd_cue_recovery", "opd_cue")
"""What is trained: the recipes cuebench/<name>."""
DOMAINS: dict[str, Split] = {"in_domain": "test", "out_of_domain": "test_ood"}
SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class QuickstartConfig:
    """Size of the demonstration."""

    output: str = "quickstart"
    """Folder for everything."""
    seeds: int = 1
    """Repetitions, each with its own problems, order, responses and fresh weights."""
    steps: int = 60
    """Updates of each method."""
    test_problems: int = 600
    """Problems of each of the two test sets."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "test_problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Outcome:
    """One method under one seed.

    Attributes:
        in_domain, out_of_domain: what it answered on the two test sets.
        leakage: in the rollouts of its training; for base and teacher, in the answers.
        seconds: of its training, or of the evaluation where nothing is trained.
    """

    in_domain: Evaluation
    out_of_domain: Evaluation
    leakage: HintLeakage
    seconds: float


def run_quickstart(config: QuickstartConfig, console: Console) -> dict[str, Any]:
    """Train and evaluate everything, and write summary.json and showcase.png.

    Returns:
        the summary.

    Raises:
        ValueError: the output folder already holds a quickstart.
        OSError: it cannot be made or written.
    """
    output = Path(config.output)
    if (output / "summary.json").exists() or any(output.glob("seed-*")):
        raise ValueError(f"{output} already holds a quickstart. Choose another --output or remove it.")
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(config.seeds):
        folder = output / f"seed-{seed}"
        _write_data(folder, seed, config, console)
        for name, run in _jobs(folder, seed, config, console).items():
            outcomes.setdefault(name, []).append(run())
    summary = summarise(outcomes)
    write_json(output / "summary.json", summary)
    _show_cases(output, outcomes)
    return summary


def _write_data(folder: Path, seed: int, config: QuickstartConfig, console: Console) -> None:
    prompts = config.steps * load_recipe(f"cuebench/{METHODS[0]}").training.prompts_per_step
    sizes: dict[Split, int] = {"train": prompts}
    sizes.update(dict.fromkeys(DOMAINS.values(), config.test_problems))
    bar = Progress(f"seed {seed} drawing problems", console)
    for split, count in bar.over(sizes.items(), len(sizes)):
        write_parquet("segments", split, count, folder / "data" / f"{split}.parquet", seed=seed)


def _jobs(
    folder: Path, seed: int, config: QuickstartConfig, console: Console
) -> dict[str, Callable[[], Outcome]]:
    """What is done for one seed, in the order of the table."""
    tests = {domain: FileSource(folder / "data" / f"{split}.parquet") for domain, split in DOMAINS.items()}

    def assess(name: str, loaded: LoadedModel, hinted: bool = False) -> dict[str, Evaluation]:
        found = {}
        for domain, samples in tests.items():
            bar = Progress(f"seed {seed} {name} {domain}", console)
            view = Hinted("cue") if hinted else None
            settings = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=64))
            found[domain] = evaluate(loaded, samples, settings, bar, view)
            found[domain].write(folder / "evaluation" / f"{name}-{domain}.parquet")
        return found

    def untrained(name: str, model: str, hinted: bool = False) -> Outcome:
        started = time.perf_counter()
        found = assess(name, load_model(model), hinted)
        leakage = found["in_domain"].leakage + found["out_of_domain"].leakage
        return Outcome(**found, leakage=leakage, seconds=time.perf_counter() - started)

    def trained(name: str) -> Outcome:
        started = time.perf_counter()
        recipe = load_recipe(f"cuebench/{name}")
        recipe = replace(
            recipe,
            data=replace(recipe.data, train=str(folder / "data" / "train.parquet")),
            training=replace(recipe.training, output=str(folder / name), seed=seed, steps=config.steps),
        )
        trainer, loaded = build(recipe)
        with Records(Path(recipe.training.output), to_yaml(recipe)) as records:
            leakage = trainer.train(records, Progress(f"seed {seed} {name}", console))
            loaded.save(Path(recipe.training.output) / "checkpoints" / "final")
        seconds = time.perf_counter() - started
        return Outcome(**assess(name, loaded), leakage=leakage, seconds=seconds)

    return {
        "base": partial(untrained, "base", "vicur:tiny-student"),
        "base_with_cue": partial(untrained, "base_with_cue", "vicur:tiny-student", hinted=True),
        "teacher": partial(untrained, "teacher", "vicur:tiny-teacher"),
        **{name: partial(trained, name) for name in METHODS},
    }


def summarise(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Accuracies in percent, differences in points, each with a 95 % interval.

    With one seed the intervals tell the uncertainty from drawing the test problems; with several,
    Student's t over the seeds tells that of the whole experiment.
    """
    methods: dict[str, Any] = {}
    for name, runs in outcomes.items():
        methods[name] = {
            "in_domain": _named(_accuracy([run.in_domain for run in runs])),
            "out_of_domain": _named(_accuracy([run.out_of_domain for run in runs])),
            "hint_leakage": asdict(sum((run.leakage for run in runs), HintLeakage())),
            "seconds": sum(run.seconds for run in runs) / len(runs),
        }
    differences = {}
    for ours, theirs in [(name, "base") for name in METHODS] + [("opsd_cue", "opsd_answer")]:
        differences[f"{ours} - {theirs}"] = {
            domain: asdict(_difference(outcomes[ours], outcomes[theirs], domain)) for domain in DOMAINS
        }
    return {"seeds": len(outcomes["base"]), "methods": methods, "differences": differences}


def _named(estimate: Estimate) -> dict[str, float]:
    return {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}


def _accuracy(runs: list[Evaluation]) -> Estimate:
    if len(runs) == 1:
        return runs[0].accuracy
    return mean_interval([run.accuracy.value for run in runs])


def _difference(ours: list[Outcome], theirs: list[Outcome], domain: str) -> Estimate:
    pairs = [(getattr(a, domain), getattr(b, domain)) for a, b in zip(ours, theirs, strict=True)]
    if len(pairs) == 1:
        return paired_difference(pairs[0][0].graded, pairs[0][1].graded)
    return mean_interval([a.accuracy.value - b.accuracy.value for a, b in pairs])


def _show_cases(output: Path, outcomes: dict[str, list[Outcome]]) -> None:
    """Draw the first problems of seed 0 that only one of base and student gets right.

    Where there are too few of them, others fill up.
    """
    folder = output / "seed-0"
    samples = FileSource(folder / "data" / "test.parquet")
    base, student = outcomes["base"][0].in_domain, outcomes["opsd_cue_recovery"][0].in_domain
    differs = [i for i, (a, b) in enumerate(zip(base.correct, student.correct, strict=True)) if a != b]
    same = [i for i in range(len(samples)) if i not in differs]
    chosen = sorted((differs + same)[:SHOWN_PROBLEMS])
    shown = [samples[i] for i in chosen]
    student_model = load_model(str(folder / "opsd_cue_recovery" / "checkpoints" / "final"))
    draw_showcase(
        shown,
        sink_attention(student_model, shown),
        {
            "base": [base.responses[i] for i in chosen],
            "student": [student.responses[i] for i in chosen],
        },
        output / "showcase.png",
    )
